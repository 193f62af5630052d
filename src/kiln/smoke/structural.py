"""The checks of tier structural so far: the patched tree is verified, and every patch's probe is green on it."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln.errors import Finding
from kiln.image.rehearsal import describe
from kiln.smoke.records import CheckResult
from kiln.trees import answer, containers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from docker import DockerClient

    from kiln.trees.containers import Inside

_TIMEOUT_S = 180
_RED = 1
# the probe imports vLLM: the bytecode that the server has left is used, none is written beside the modules
_BYTECODE = ("-X", "pycache_prefix=/pyc")


@dataclass(frozen=True, kw_only=True)
class Patched:
    """What an image should hold: `folder` has kiln-patch.pyz and series/, `probes` one script for each patch."""

    folder: Path
    probes: tuple[tuple[str, Path], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the checks."""
        return ("verify", *(f"probe {patch}" for patch, _ in self.probes))


def run(client: DockerClient, container: str, patched: Patched) -> Iterator[CheckResult]:
    """Run the patch engine and the probes inside a running container of the image."""
    with containers.running(client, container) as place:
        yield from _checks(place, patched)


def run_idle(client: DockerClient, image: str, patched: Patched) -> Iterator[CheckResult]:
    """Run the patch engine and the probes in a container of the image in which nothing else runs."""
    with containers.made_of(client, image) as place:
        yield from _checks(place, patched)


def _checks(place: Inside, patched: Patched) -> Iterator[CheckResult]:
    root: list[str] = []
    yield _timed("verify", functools.partial(_verify, place, patched, root))
    for patch, probe in patched.probes:
        yield _timed(f"probe {patch}", functools.partial(_probe, place, probe, root))


def _verify(place: Inside, patched: Patched, root: list[str]) -> Iterator[Finding]:
    patcher, series = (place.send(patched.folder / name) for name in ("kiln-patch.pyz", "series"))
    argv = (patcher, "verify", "--json", "--series", series)
    said = answer.read(argv, place.run(argv, seconds=_TIMEOUT_S), tree=place.name, again="./inv build")
    root.append(said.root)
    if said.exit_code:
        yield Finding(where=said.root, problem="\n".join(describe(said.report)), hint="build the image again")


def _probe(place: Inside, probe: Path, root: list[str]) -> Iterator[Finding]:
    if not root:
        yield Finding(where=probe.parent.name, problem="the tree was not found, so its probe was not run")
        return
    said = place.run((*_BYTECODE, place.send(probe), root[0]), seconds=_TIMEOUT_S)
    words = "\n".join(line for line in said.stdout.splitlines() if line.startswith("red: "))
    if said.code == _RED and words:
        yield Finding(
            where=probe.parent.name, problem=words, hint="the patch is applied and does not do what it is for"
        )
    elif said.code:
        tail = "\n".join((said.stdout + said.stderr).splitlines()[-5:])
        yield Finding(where=probe.parent.name, problem=f"the probe did not run: exit code {said.code}\n{tail}")


def _timed(name: str, ask: Callable[[], Iterator[Finding]]) -> CheckResult:
    start = time.monotonic()
    try:
        findings = tuple(ask())
    except errors.KilnError as error:
        findings = (Finding(where=name, problem=error.message, hint=error.hint),)
    return CheckResult(
        tier="structural",
        name=name,
        status="failed" if findings else "passed",
        findings=findings,
        seconds=round(time.monotonic() - start, 3),
    )
