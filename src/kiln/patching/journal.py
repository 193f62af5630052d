"""What a running transaction means to do, on disk before its first change, so that the next run can end it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching import errors, paths, strictjson

if TYPE_CHECKING:
    from pathlib import Path

NAME = "kiln-journal.json"
_FIELDS = ("schema", "steps", "made", "gone", "times", "epoch")
_LATEST_NS = 2**66  # past what file systems hold, below what utime takes
LATEST_EPOCH = 2**34


@dataclass(frozen=True)
class Step:
    """One file from sha256 `pre` to `post`; its new bytes lie beside it, and so does what it was."""

    path: str
    pre: str | None
    post: str | None

    @property
    def new(self) -> str:
        return self.path + paths.NEW

    @property
    def old(self) -> str:
        return self.path + paths.OLD


@dataclass(frozen=True)
class Journal:
    """`made` are folders to create, outermost first, `gone` those to remove at the end where they are empty.

    `times` are the mtimes (ns) of the folders that are touched.
    """

    steps: tuple[Step, ...]
    made: tuple[str, ...]
    gone: tuple[str, ...]
    times: tuple[tuple[str, int], ...]
    epoch: int | None


def write(folder: Path, journal: Journal) -> None:
    """Put the journal there whole or not at all."""
    value = {
        "schema": 1,
        "steps": [{"path": step.path, "pre": step.pre, "post": step.post} for step in journal.steps],
        "made": list(journal.made),
        "gone": list(journal.gone),
        "times": dict(journal.times),
        "epoch": journal.epoch,
    }
    beside = folder / (NAME + paths.NEW)
    try:
        with beside.open("xb") as file:
            file.write(strictjson.render(value))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(folder / NAME)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(folder)


def read(folder: Path) -> Journal | None:
    """Return the journal that a killed run left; raise Interrupted when it cannot be used."""
    where = folder / NAME
    if not where.is_file():
        return None
    try:
        return _parsed(where.read_bytes(), str(where))
    except errors.BadInput as error:
        hint = f"files may be of two kinds: remove {where} and every *.kiln-new and *.kiln-old, reinstall the package"
        raise errors.Interrupted(f"{where}: left by a killed run, not readable: {error}", hint=hint) from error


def _parsed(data: bytes, where: str) -> Journal:
    fields = strictjson.fields(strictjson.load(data, where), _FIELDS, where)
    if strictjson.typed(fields["schema"], int, where) != 1:
        raise errors.BadSeries(f"{where}: schema {fields['schema']!r}; this program reads 1")
    epoch = fields["epoch"]
    return Journal(
        steps=tuple(_step(row, where) for row in strictjson.typed(fields["steps"], list, where)),
        made=strictjson.path_list(fields["made"], where),
        gone=strictjson.path_list(fields["gone"], where),
        times=tuple(
            (path if path == "." else paths.safe(path), _time(mtime_ns, _LATEST_NS, where))
            for path, mtime_ns in sorted(strictjson.typed(fields["times"], dict, where).items())
        ),
        epoch=None if epoch is None else _time(epoch, LATEST_EPOCH, where),
    )


def _step(row: object, where: str) -> Step:
    fields = strictjson.fields(row, ("path", "pre", "post"), where)
    for sha256 in (fields["pre"], fields["post"]):
        if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", strictjson.typed(sha256, str, where)):
            raise errors.BadSeries(f"{where}: {sha256!r} is no sha256")
    return Step(paths.safe(strictjson.typed(fields["path"], str, where)), fields["pre"], fields["post"])


def _time(value: object, latest: int, where: str) -> int:
    number: int = strictjson.typed(value, int, where)
    if abs(number) > latest:
        raise errors.BadSeries(f"{where}: {number} is no time")
    return number


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
