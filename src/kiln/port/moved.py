"""Finds what became of a file or function that a new release no longer has where an edition expects it."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kiln.port import lines, symbols

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LEAST = 0.5  # of the lines, as git's rename detection has it
_CLEARLY = 0.2  # by which the best must be better than the next
_SHOWN = 5


def files(pre: bytes, new: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the files that hold enough of a file's lines, best first; one alone if it is clearly the best."""
    wanted = lines.split(pre)
    scored = sorted(
        ((likeness, path) for path, data in new.items() if (likeness := _likeness(pre, wanted, data)) >= LEAST),
        key=lambda pair: (-pair[0], pair[1]),
    )
    if len(scored) > 1 and scored[0][0] - scored[1][0] >= _CLEARLY:
        scored = scored[:1]
    return tuple(path for _, path in scored[:_SHOWN])


def copies(
    file: tuple[str, bytes], names: Sequence[str], new: Mapping[str, bytes], before: Mapping[str, bytes]
) -> tuple[str, ...]:
    """Return what the release has added: files that look like `file` (path, content), others that have these names."""
    path, pre = file
    name = PurePosixPath(path).name
    fresh = [other for other in new if PurePosixPath(other).name == name and other not in before and other != path]
    found = set(files(pre, {other: new[other] for other in fresh}))
    for each in names:
        places = symbol(each, pre, path, new)
        old = symbol(each, pre, path, {other: before[other] for other in places if other in before})
        found.update(set(places) - set(old))
    return tuple(sorted(found))[:_SHOWN]


def symbol(name: str, pre: bytes, path: str, new: Mapping[str, bytes]) -> tuple[str, ...]:
    """Return the other files that have the function or class of this qualified name, with enough of its lines."""
    wanted = symbols.module(pre).text(name)
    found = symbols.holders(name, wanted, new) if wanted else {}
    return tuple(sorted(other for other, likeness in found.items() if likeness >= LEAST and other != path))


def _likeness(pre: bytes, wanted: lines.Lines, data: bytes) -> float:
    if not LEAST / 2 * len(pre) <= len(data) <= len(pre) / LEAST * 2:
        return 0.0
    return lines.likeness(wanted, lines.split(data))
