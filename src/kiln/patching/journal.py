"""What a running transaction means to do, on disk before its first change, so that the next run can end it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching import errors, paths, strictjson

if TYPE_CHECKING:
    from pathlib import Path

NAME = "kiln-journal.json"
_FIELDS = ("schema", "steps", "made", "times", "epoch")


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
    """`made` are folders to create, outermost first; `times` the mtimes (ns) of the folders that are touched."""

    steps: tuple[Step, ...]
    made: tuple[str, ...]
    times: tuple[tuple[str, int], ...]
    epoch: int | None


def write(folder: Path, journal: Journal) -> None:
    """Put the journal there whole or not at all."""
    value = {
        "schema": 1,
        "steps": [{"path": step.path, "pre": step.pre, "post": step.post} for step in journal.steps],
        "made": list(journal.made),
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
        fields = strictjson.fields(strictjson.load(where.read_bytes(), str(where)), _FIELDS, str(where))
        rows = [strictjson.fields(row, ("path", "pre", "post"), str(where)) for row in fields["steps"]]
        return Journal(
            steps=tuple(Step(paths.safe(row["path"]), row["pre"], row["post"]) for row in rows),
            made=tuple(paths.safe(path) for path in fields["made"]),
            times=tuple((path, int(mtime_ns)) for path, mtime_ns in fields["times"].items()),
            epoch=fields["epoch"],
        )
    except (errors.BadInput, TypeError, AttributeError, ValueError) as error:
        hint = "reinstall the package: its files may be of two kinds"
        raise errors.Interrupted(f"{where}: left by a killed run, not readable: {error}", hint=hint) from error


def sync(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
