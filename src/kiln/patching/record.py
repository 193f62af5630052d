"""Keeps a wheel's RECORD true: the lines of changed files are rewritten, all others stay as they are."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching.outcomes import digest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


@dataclass(frozen=True)
class Before:
    """What RECORD was: its sha256, whether its last line ended, and each line that `updated` changed, by its place."""

    sha256: str
    ends: bool
    lines: tuple[tuple[int, bytes], ...]


def before(record: bytes, paths: Collection[str]) -> Before:
    """Return what `restored` needs to undo an update of the lines of `paths`."""
    rows = enumerate(io.BytesIO(record))
    lines = tuple((place, line) for place, line in rows if _path(line) in paths)
    return Before(str(digest(record)), record.endswith(b"\n") or not record, lines)


def restored(record: bytes, paths: Collection[str], was: Before) -> bytes | None:
    """Return RECORD as it was, or None when lines of other files than `paths` changed since."""
    lines = [line for line in io.BytesIO(record) if _path(line) not in paths]
    for place, line in was.lines:
        lines.insert(place, line)
    data = b"".join(lines)
    if not was.ends:
        data = data.removesuffix(b"\n").removesuffix(b"\r")
    return data if digest(data) == was.sha256 else None


def updated(record: bytes, changes: Mapping[str, bytes | None]) -> bytes:
    """Return RECORD with a true line for each file of `changes`, and none where that is None."""
    lines = io.BytesIO(record).readlines()
    ending = b"\r\n" if lines and lines[0].endswith(b"\r\n") else b"\n"
    missing = {path: data for path, data in changes.items() if data is not None}
    kept: list[bytes] = []
    for line in lines:
        path = _path(line)
        if path not in changes:
            kept.append(line)
            continue
        data = changes[path]
        if data is not None:
            missing.pop(path, None)
            kept.append(_line(path, data) + _ending(line, ending))
    if kept and missing and not kept[-1].endswith(b"\n"):
        kept[-1] += ending
    kept += [_line(path, missing[path]) + ending for path in sorted(missing)]
    return b"".join(kept)


def untrue(record: bytes, files: Mapping[str, bytes | None]) -> Iterator[tuple[str, str, str]]:
    """Yield (path, expected, found) for each file whose line is missing, wrong, doubled or should not be there."""
    found: dict[str, list[bytes]] = {}
    for line in io.BytesIO(record):
        found.setdefault(_path(line), []).append(line.rstrip(b"\r\n"))
    for path, data in sorted(files.items()):
        expected = [] if data is None else [_line(path, data)]
        if found.get(path, []) != expected:
            yield path, _text(expected), _text(found.get(path, []))


def _path(line: bytes) -> str:
    if not line.startswith(b'"'):
        return line.partition(b",")[0].rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    import csv

    return next(iter(csv.reader([line.decode("utf-8", "surrogateescape")])), [""])[0]


def _line(path: str, data: bytes) -> bytes:
    sha256 = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    if "," in path or '"' in path:
        path = '"' + path.replace('"', '""') + '"'
    return f"{path},sha256={sha256},{len(data)}".encode()


def _ending(line: bytes, default: bytes) -> bytes:
    if line.endswith(b"\r\n"):
        return b"\r\n"
    return b"\n" if line.endswith(b"\n") else default


def _text(lines: list[bytes]) -> str:
    return "; ".join(line.decode("utf-8", "backslashreplace") for line in lines) or "no line"
