"""Brings the engine and a series to a tree, runs one verb there and reads the answer."""

from __future__ import annotations

import contextlib
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kiln import engine as engines
from kiln import errors, plan
from kiln.image.rehearsal import DISTRIBUTION, compile_series
from kiln.patching import errors as patching_errors
from kiln.patching import zipapp
from kiln.patching.series import read_series, write_series
from kiln.trees import answer, containers, places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.catalog import Catalog
    from kiln.patching.series import Series
    from kiln.trees.answer import Answer
    from kiln.trees.places import Place

Verb = Literal["apply", "verify", "revert", "status"]
_SECONDS = 300
_WRITING = frozenset({"apply", "revert"})


@dataclass(frozen=True, kw_only=True)
class Where:
    """The tree that a person named: exactly one of the three."""

    root: str = ""
    container: str = ""
    image: str = ""

    def check(self, verb: Verb) -> None:
        named = [flag for flag, value in vars(self).items() if value]
        if len(named) > 1:
            raise errors.BadInput(f"--{' and --'.join(named)}: name one tree")
        if not named:
            raise errors.BadInput(
                f"which tree? --root DIR (a venv or its site-packages), --container NAME{_or_image(verb)}",
                hint=f"./inv patch.{verb} --root path/to/venv",
            )
        if self.image and verb in _WRITING:
            raise errors.BadInput(
                f"--image: {verb} would not change an image, only a container made of it",
                hint="build an image that holds the series: ./inv build --variant VARIANT --arch ARCH",
            )


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The series that a person named: a folder, a target of the catalog, or none."""

    series: str = ""
    variant: str = ""
    arch: str = ""
    release: str = ""
    model: str = ""

    @property
    def target(self) -> bool:
        return any((self.variant, self.arch, self.release, self.model))

    def check(self, verb: Verb) -> None:
        if self.series and self.target:
            raise errors.BadInput("--series names a series, --variant, --arch, --release and --model another")
        if verb == "apply" and not (self.series or self.target):
            raise errors.BadInput(
                "which series? --variant and --arch, or --series DIR",
                hint="see what there is: ./inv plan --list",
            )


def run(verb: Verb, where: Where, wanted: Wanted, catalog: Catalog) -> Answer:
    """Run the engine where the tree is; raises what keeps it from answering, never what it answers."""
    where.check(verb)
    wanted.check(verb)
    with tempfile.TemporaryDirectory(prefix="kiln-") as name, _opened(where, catalog) as place:
        stage = Path(name)
        zipapp.build(stage / "kiln-patch.pyz")
        asking = _Asking(place=place, patcher=place.send(stage / "kiln-patch.pyz"), again=_again(where, wanted))
        try:
            series = _series(wanted, catalog, asking)
            if series is None:
                return asking.ask(verb)
            write_series(stage / "series", series)
        except patching_errors.PatchingError as error:
            raise answer.translated(error) from error
        return asking.ask(verb, "--series", place.send(stage / "series"))


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """The engine where the tree is; `again` is the task that its advice to begin again stands for."""

    place: Place
    patcher: str
    again: str

    def ask(self, verb: Verb, *words: str) -> Answer:
        root = ("--root", self.place.root) if self.place.root else ()
        argv = (self.patcher, verb, "--json", *root, *words)
        return answer.read(argv, self.place.run(argv, seconds=_SECONDS), tree=self.place.name, again=self.again)


def _series(wanted: Wanted, catalog: Catalog, asking: _Asking) -> Series | None:
    """Return the series named; that of a target is for the release that the tree holds, unless one is named."""
    if wanted.series:
        return read_series(Path(wanted.series))
    if not wanted.target:
        return None
    release = wanted.release or asking.ask("status").release
    chosen = plan.make(catalog, variant=wanted.variant, arch=wanted.arch, release=release, model=wanted.model)
    return compile_series(chosen, catalog)


@contextlib.contextmanager
def _opened(where: Where, catalog: Catalog) -> Iterator[Place]:
    if where.root:
        yield places.Folder(path=places.site(Path(where.root), DISTRIBUTION))
        return
    engine = engines.find(catalog.state / "engine")
    if engine is None:
        raise errors.Missing("no Docker engine answers, and the embedded one is not up", hint="./inv engine.up")
    with contextlib.closing(engine.client()) as client:
        opened = (
            containers.running(client, where.container) if where.container else containers.made_of(client, where.image)
        )
        with opened as place:
            yield place


def _again(where: Where, wanted: Wanted) -> str:
    """Return the tasks that take a series back and apply the one that was asked for; an image is built again."""
    tree, series = (
        shlex.join(f"--{name}={value}" for name, value in vars(named).items() if value) for named in (where, wanted)
    )
    if where.image:
        return f"./inv build {series if wanted.target else '--variant VARIANT --arch ARCH'}"
    return f"./inv patch.revert {tree} && ./inv patch.apply {tree} {series}"


def _or_image(verb: Verb) -> str:
    return "" if verb in _WRITING else " or --image REF"
