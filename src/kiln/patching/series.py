"""The ordered patches with their hashes, and the directory that holds them; a Series that exists holds together."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kiln.patching import errors, paths, strictjson
from kiln.patching.outcomes import digest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kiln.patching import diff

INDEX = "series.json"
SCHEMA = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,98}[a-z0-9])?")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_RELEASE = re.compile(r"[0-9]+(\.[0-9]+)*((a|b|rc|\.post|\.dev)[0-9]+)*")


@dataclass(frozen=True)
class FileChange:
    """sha256 of a file before and after its patch; None stands for no such file."""

    path: str
    pre: str | None
    post: str | None

    def __post_init__(self) -> None:
        paths.target(self.path)
        for sha256 in (self.pre, self.post):
            if sha256 is not None and not _SHA256.fullmatch(sha256):
                raise errors.BadSeries(f"{self.path}: {sha256!r} is no sha256 in lower-case hex")
        if self.pre == self.post:
            raise errors.BadSeries(f"{self.path}: pre equals post; the patch would change nothing")


@dataclass(frozen=True)
class Patch:
    """One edition: its bytes, the hash they should have, and what it does to which files, in order of path."""

    id: str
    sha256: str
    files: tuple[FileChange, ...]
    data: bytes

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise errors.BadSeries(f"{self.id!r}: a patch id is lower-case letters, digits, '.', '_' and '-'")
        if not _SHA256.fullmatch(self.sha256):
            raise errors.BadSeries(f"{self.id}: {self.sha256!r} is no sha256 in lower-case hex")
        names = [file.path for file in self.files]
        if not names or names != sorted(set(names)):
            raise errors.BadSeries(f"{self.id}: 'files' is not sorted by path, names a file twice, or is empty")

    @property
    def edition(self) -> str:
        return f"{self.id}.patch"

    @property
    def changed(self) -> bool:
        """Say whether the bytes are not those that the series means."""
        return digest(self.data) != self.sha256

    def diffs(self) -> dict[str, diff.FileDiff]:
        """Parse the edition; raise BadSeries when it does not touch the files it is said to touch."""
        from kiln.patching import diff

        found = {file.path: file for file in diff.parse(self.data, self.edition)}
        for change in self.files:
            file = found.get(change.path)
            if file is None:
                raise errors.BadSeries(f"{self.edition}: does not touch {change.path}, which {INDEX} says it does")
            if (file.created, file.deleted) != (change.pre is None, change.post is None):
                raise errors.BadSeries(f"{self.edition}: {change.path}: created or deleted, and {INDEX} disagrees")
        extra = sorted(found.keys() - {change.path for change in self.files})
        if extra:
            raise errors.BadSeries(f"{self.edition}: touches {', '.join(extra)}, which {INDEX} does not name")
        return found


@dataclass(frozen=True)
class Series:
    distribution: str
    release: str
    patches: tuple[Patch, ...]

    def __post_init__(self) -> None:
        if not _DISTRIBUTION.fullmatch(self.distribution):
            raise errors.BadSeries(f"{self.distribution!r}: no name of a distribution")
        if not _RELEASE.fullmatch(self.release):
            raise errors.BadSeries(f"{self.release!r}: no release; write it like 0.31.0, with no local part")
        _refuse_twice("patch id", (patch.id for patch in self.patches))
        _refuse_twice("edition content", (patch.sha256 for patch in self.patches))
        paths.refuse_collisions(file.path for patch in self.patches for file in patch.files)
        for path, chain in self.chains().items():
            for before, after in itertools.pairwise(chain):
                if before.post != after.pre:
                    problem = f"one patch leaves it at {before.post}, the next expects {after.pre}"
                    raise errors.BadSeries(f"{path}: {problem}")

    def chains(self) -> dict[str, list[FileChange]]:
        """Return, for each file, its changes in order."""
        found: dict[str, list[FileChange]] = {}
        for patch in self.patches:
            for file in patch.files:
                found.setdefault(file.path, []).append(file)
        return found

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Return, for each patch, those before it that touch a file it touches; with all others it may change places.

        An edition is for one exact text, so two patches of one file never commute, and two of no common file always do.
        """
        found: dict[str, tuple[str, ...]] = {}
        for n, patch in enumerate(self.patches):
            own = {file.path for file in patch.files}
            found[patch.id] = tuple(
                other.id for other in self.patches[:n] if not own.isdisjoint(file.path for file in other.files)
            )
        return found


def read_series(folder: Path) -> Series:
    """Return the series of a directory that holds series.json and its editions, and nothing else."""
    where = folder / INDEX
    value = strictjson.load(_file_bytes(where), str(where))
    fields = strictjson.fields(value, ("schema", "distribution", "release", "patches"), str(where))
    if fields["schema"] != SCHEMA or isinstance(fields["schema"], bool):
        raise errors.BadSeries(f"{where}: schema {fields['schema']!r}; this program reads {SCHEMA}")
    rows = strictjson.typed(fields["patches"], list, f"{where}: patches")
    try:
        patches = tuple(_patch(folder, row, f"{where}: patches[{n}]") for n, row in enumerate(rows))
        series = Series(
            distribution=strictjson.typed(fields["distribution"], str, f"{where}: distribution"),
            release=strictjson.typed(fields["release"], str, f"{where}: release"),
            patches=patches,
        )
    except (errors.BadSeries, errors.BadPath) as error:
        raise type(error)(error.message if INDEX in error.message else f"{where}: {error.message}") from error
    known = {INDEX, *(patch.edition for patch in patches)}
    extra = sorted(entry.name for entry in folder.iterdir() if entry.name not in known)
    if extra:
        raise errors.BadSeries(f"{folder}: holds what {where.name} does not name: {', '.join(extra)}")
    return series


def write_series(folder: Path, series: Series) -> None:
    """Write the directory that `read_series` reads; replaces a series that is there, refuses anything else."""
    folder.mkdir(parents=True, exist_ok=True)
    present = sorted(folder.iterdir())
    foreign = [entry.name for entry in present if entry.name != INDEX and entry.suffix != ".patch"]
    if foreign:
        raise errors.BadSeries(f"{folder}: not a series directory, it holds {', '.join(foreign)}")
    for entry in present:
        entry.unlink()
    for patch in series.patches:
        (folder / patch.edition).write_bytes(patch.data)
    (folder / INDEX).write_bytes(strictjson.render(_as_json(series)))


def changes_as_json(files: Iterable[FileChange]) -> list[dict[str, str | None]]:
    return [{"path": file.path, "pre": file.pre, "post": file.post} for file in files]


def changes(value: object, where: str) -> tuple[FileChange, ...]:
    """Read what `changes_as_json` wrote."""
    found = []
    for n, row in enumerate(strictjson.typed(value, list, where)):
        fields = strictjson.fields(row, ("path", "pre", "post"), f"{where}[{n}]")
        path = strictjson.typed(fields["path"], str, f"{where}[{n}]: path")
        pre, post = (
            None if fields[key] is None else strictjson.typed(fields[key], str, f"{where}[{n}]: {key}")
            for key in ("pre", "post")
        )
        found.append(FileChange(path=path, pre=pre, post=post))
    return tuple(found)


def _as_json(series: Series) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "distribution": series.distribution,
        "release": series.release,
        "patches": [
            {
                "id": patch.id,
                "edition": patch.edition,
                "sha256": patch.sha256,
                "files": changes_as_json(patch.files),
            }
            for patch in series.patches
        ],
    }


def _patch(folder: Path, row: object, where: str) -> Patch:
    fields = strictjson.fields(row, ("id", "edition", "sha256", "files"), where)
    patch_id = strictjson.typed(fields["id"], str, f"{where}: id")
    if not _ID.fullmatch(patch_id) or fields["edition"] != f"{patch_id}.patch":
        raise errors.BadSeries(f"{where}: the edition of {patch_id!r} is not named '{patch_id}.patch'")
    return Patch(
        id=patch_id,
        sha256=strictjson.typed(fields["sha256"], str, f"{where}: sha256"),
        files=changes(fields["files"], f"{where}: files"),
        data=_file_bytes(folder / f"{patch_id}.patch"),
    )


def _file_bytes(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise errors.BadSeries(f"{path}: no such regular file", hint="--series names the folder with series.json")
    try:
        with path.open("rb") as file:
            data = file.read(paths.LARGEST + 1)
    except OSError as error:
        raise errors.BadSeries(f"{path}: {error.strerror}") from error
    if len(data) > paths.LARGEST:
        raise errors.BadSeries(f"{path}: {path.stat().st_size} bytes; the limit is {paths.LARGEST}")
    return data


def _refuse_twice(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise errors.BadSeries(f"{what} {value!r} stands there twice")
        seen.add(value)
