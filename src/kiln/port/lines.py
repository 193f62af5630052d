"""The lines of files: what one text changes in another, and where the same changes stand in a third."""

from __future__ import annotations

import bisect
import difflib
import functools
import io
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Lines = tuple[bytes, ...]

_CONTEXT = 3  # of a unified diff
_LARGEST = 4_000_000  # pairs of lines that difflib is asked to compare


@dataclass(frozen=True, kw_only=True)
class Region:
    """Lines `first` to `last` of a file become `added`, which begin at line `into`; all count from 0, ends excluded.

    `hunk` counts from 1, as in a unified diff.
    """

    hunk: int
    first: int
    last: int
    into: int
    removed: Lines
    added: Lines


def split(data: bytes) -> Lines:
    """Return the lines with their ends, as git and the patch engine see them."""
    return tuple(io.BytesIO(data).readlines())


@functools.lru_cache(maxsize=128)
def regions(before: bytes, after: bytes) -> tuple[Region, ...]:
    """Return what changes, in order; lines that are only added or removed stand as far down as they can."""
    old, new = split(before), split(after)
    spans: list[tuple[int, int, int, int]] = []
    for first, last, into, over in _changed(old, new, (0, len(old), 0, len(new))):
        touches = spans and (spans[-1][1], spans[-1][3]) == (first, into)
        start = spans.pop() if touches else (first, last, into, over)
        spans.append((start[0], last, start[2], over))
    limits = [*(span[0] for span in spans[1:]), len(old)]
    lowered = [_lowered(old, new, span, limit) for span, limit in zip(spans, limits, strict=True)]
    hunk, end, found = 0, -1, []
    for first, last, into, over in lowered:
        hunk += hunk == 0 or first - end > 2 * _CONTEXT
        end = last
        found.append(
            Region(hunk=hunk, first=first, last=last, into=into, removed=old[first:last], added=new[into:over])
        )
    return tuple(found)


def landed(theirs: Lines, merged: Lines, wanted: Sequence[Region]) -> list[tuple[int, int] | None] | None:
    """Return, for each change, the line of `theirs` and of `merged` where it begins: None where it is left out.

    None for all of it: `merged` is not `theirs` with some of these changes and nothing else.
    """
    found: list[tuple[int, int] | None] = []
    here, there = 0, 0
    for region in wanted:
        step = _equal(theirs, merged, here, there)
        at, into = here + step, there + step
        over, past = at + len(region.removed), into + len(region.added)
        if theirs[at:over] == region.removed and merged[into:past] == region.added:
            found.append((at, into))
            here, there = over, past
        else:
            found.append(None)
    return found if theirs[here:] == merged[there:] else None


def likeness(one: Lines, other: Lines) -> float:
    """Return how much of the larger text stands in the other one, too, blank lines apart: 0 to 1."""
    left, right = (Counter(line for text in lines if (line := text.strip())) for lines in (one, other))
    return (left & right).total() / max(1, left.total(), right.total())


def _equal(theirs: Lines, merged: Lines, here: int, there: int) -> int:
    """Return how many lines are equal from these places on."""
    most = min(len(theirs) - here, len(merged) - there)
    return next((step for step in range(most) if theirs[here + step] != merged[there + step]), most)


def _changed(old: Lines, new: Lines, span: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield the differing parts of a span; lines that both texts hold just once are paired first."""
    a, b, c, d = span
    while a < b and c < d and old[a] == new[c]:
        a, c = a + 1, c + 1
    while a < b and c < d and old[b - 1] == new[d - 1]:
        b, d = b - 1, d - 1
    if a == b or c == d:
        if (a, c) != (b, d):
            yield a, b, c, d
        return
    pairs = _anchors(old, new, (a, b, c, d))
    if not pairs:
        yield from _compared(old, new, (a, b, c, d))
        return
    for here, there in [*pairs, (b, d)]:
        yield from _changed(old, new, (a, here, c, there))
        a, c = here, there


def _anchors(old: Lines, new: Lines, span: tuple[int, int, int, int]) -> list[tuple[int, int]]:
    """Return the longest rising run of pairs of lines that each side holds once."""
    a, b, c, d = span
    once = Counter(old[a:b]), Counter(new[c:d])
    places = {line: n for n, line in enumerate(new[c:d], c) if once[1][line] == 1}
    pairs = [(n, places[line]) for n, line in enumerate(old[a:b], a) if once[0][line] == 1 and line in places]
    tails: list[int] = []
    links: list[tuple[int, int]] = []  # place in its run, index of the pair before
    ends: list[int] = []
    for n, (_, there) in enumerate(pairs):
        at = bisect.bisect_left(tails, there)
        tails[at : at + 1] = [there]
        ends[at : at + 1] = [n]
        links.append((at, ends[at - 1] if at else -1))
    run: list[tuple[int, int]] = []
    n = ends[-1] if ends else -1
    while n >= 0:
        run.append(pairs[n])
        n = links[n][1]
    return run[::-1]


def _compared(old: Lines, new: Lines, span: tuple[int, int, int, int]) -> Iterator[tuple[int, int, int, int]]:
    a, b, c, d = span
    if (b - a) * (d - c) > _LARGEST:
        yield span
        return
    matcher = difflib.SequenceMatcher(None, old[a:b], new[c:d], autojunk=False)
    for tag, *parts in matcher.get_opcodes():
        if tag != "equal":
            yield a + parts[0], a + parts[1], c + parts[2], c + parts[3]


def _lowered(old: Lines, new: Lines, span: tuple[int, int, int, int], limit: int) -> tuple[int, int, int, int]:
    """Move lines that are only added, or only removed, down past equal ones, but not into the next change."""
    a, b, c, d = span
    while a == b < limit and new[c] == new[d]:
        a, b, c, d = a + 1, b + 1, c + 1, d + 1
    while c == d and b < limit and old[a] == old[b]:
        a, b, c, d = a + 1, b + 1, c + 1, d + 1
    return a, b, c, d
