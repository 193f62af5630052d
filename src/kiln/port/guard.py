"""Refuses a merge that git calls clean: each change must be in the function, block and surroundings it was made for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching.outcomes import Outcome
from kiln.port import lines, symbols
from kiln.port.records import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.port.lines import Region
    from kiln.port.symbols import Module, Step

_CONTEXT = 3
_BY_HAND = "look at what the release made of this place, and make the change by hand"


@dataclass(frozen=True, kw_only=True)
class Sides:
    """One file: before and after the patch on its own release, on the new release, and as git merged it there."""

    path: str
    pre: bytes
    post: bytes
    theirs: bytes
    merged: bytes

    @property
    def python(self) -> bool:
        return self.path.endswith(".py")


@dataclass(frozen=True, kw_only=True)
class _Trees:
    pre: Module
    post: Module
    theirs: Module
    merged: Module


def problems(sides: Sides) -> Iterator[Problem]:
    """Yield why a merge without conflicts is not what the edition does; a merge equal to `theirs` has every change."""
    wanted = lines.regions(sides.pre, sides.post)
    if sides.merged == sides.theirs:
        yield from _already(sides, wanted) if sides.python else ()
        return
    spots = lines.landed(lines.split(sides.theirs), lines.split(sides.merged), wanted)
    if spots is None:
        yield _refused(sides, "the lines that the edition changes, and no others", "git's merge changes other lines")
        return
    if missing := sorted({region.hunk for region, spot in zip(wanted, spots, strict=True) if spot is None}):
        numbers = ", ".join(map(str, missing))
        found = f"hunk {numbers}: in part or whole in the release already, the rest is not"
        yield _refused(sides, "all of the change, or none of it", found)
        return
    placed = [(region, spot) for region, spot in zip(wanted, spots, strict=True) if spot is not None]
    unreadable = list(_unreadable(sides))
    yield from unreadable
    if not unreadable:
        firsts = (next(_misplaced(sides, region, spot), None) for region, spot in placed)
        yield from (problem for problem in firsts if problem)


def _unreadable(sides: Sides) -> Iterator[Problem]:
    """Yield what is not the text it should be; no syntax tree can be looked at then."""
    if sides.python:
        for name in ("pre", "post", "theirs"):
            if problem := symbols.module(getattr(sides, name)).problem:
                yield _refused(sides, "a module that Python can read", f"{_NAMES[name]}: {problem}")
        if problem := symbols.module(sides.merged).compile_problem(sides.path):
            yield _refused(sides, "a module that compiles", f"the merged text: {problem}")
    elif sides.path.endswith(".json"):
        try:
            json.loads(sides.merged)
        except (ValueError, RecursionError) as error:
            yield _refused(sides, "JSON", f"the merged text: {error}")


def _misplaced(sides: Sides, region: Region, spot: tuple[int, int]) -> Iterator[Problem]:
    """Yield how the place of one change differs from the one that it was made for."""
    if not sides.python:
        whole = (0, len(lines.split(sides.pre))), (0, len(lines.split(sides.theirs)))
        yield from _twins(sides, region, spot[0], whole)
        return
    trees = _Trees(**{name: symbols.module(getattr(sides, name)) for name in _Trees.__dataclass_fields__})
    at, into = spot
    before = [(trees.pre.path(region.first + n), trees.theirs.path(at + n)) for n in range(len(region.removed))]
    after = [
        (trees.post.path(region.into + n), trees.merged.path(into + n))
        for n, text in enumerate(region.added)
        if text.strip()
    ]
    for old, new in [*before, *after]:
        if old != new:
            expected, found = f"it was made for {symbols.shown(old)}", f"the change would land in {symbols.shown(new)}"
            yield _refused(sides, expected, found, region)
    yield from _counted(sides, region, (trees.pre, trees.theirs), [old for old, _ in before])
    yield from _counted(sides, region, (trees.post, trees.merged), [old for old, _ in after])
    if scope := _scope(trees, region, [old for old, _ in before or after], at):
        yield from _twins(sides, region, at, scope)


def _counted(
    sides: Sides, region: Region, trees: tuple[Module, Module], paths: Sequence[tuple[Step, ...]]
) -> Iterator[Problem]:
    """Yield each definition around a change that the new file has more or less often than the edition's."""
    for name in dict.fromkeys(prefix for path in paths for prefix in _prefixes(symbols.qualified(path))):
        here, there = (len(tree.definitions.get(name, ())) for tree in trees)
        if here != there:
            yield _refused(
                sides,
                f"{name}, defined {_times(here)}",
                f"it is defined {_times(there)}",
                region,
                outcome=Outcome.AMBIGUOUS,
            )


def _scope(
    trees: _Trees, region: Region, paths: Sequence[tuple[Step, ...]], at: int
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the lines, before and on the new release, of the definition in which a change stands.

    None for a change that only adds definitions: where among others they stand makes no difference.
    """
    names = {symbols.qualified(path) for path in paths}
    if names and not region.removed and not any(name == "" or name in trees.pre.definitions for name in names):
        return None
    name = min(names, key=len, default="")
    while name and name not in trees.pre.definitions:
        name = name.rpartition(".")[0]
    return _extent(trees.pre, name, region.first), _extent(trees.theirs, name, at)


def _extent(tree: Module, name: str, line: int) -> tuple[int, int]:
    for place in tree.definitions.get(name, ()):
        if place.first <= line <= place.last:
            return place.first, place.last
    return 0, len(tree.lines)


def _twins(sides: Sides, region: Region, at: int, scope: tuple[tuple[int, int], tuple[int, int]]) -> Iterator[Problem]:
    """Yield when the lines around a change stand several times in its function, and not as often as they did."""
    old, new = lines.split(sides.pre), lines.split(sides.theirs)
    over, past = region.last, at + len(region.removed)
    above = below = 0
    while above < min(_CONTEXT, region.first, at) and old[region.first - above - 1] == new[at - above - 1]:
        above += 1
    while below < min(_CONTEXT, len(old) - over, len(new) - past) and old[over + below] == new[past + below]:
        below += 1
    window = old[region.first - above : over + below]
    here, there = _places(old, window, scope[0]), _places(new, window, scope[1])
    if window and max(len(here), len(there)) > 1:
        rank, other = here.index(region.first - above), there.index(at - above)
        if (len(here), rank) != (len(there), other):
            expected = f"lines that stand there {_times(len(here))}, the change in number {rank + 1}"
            found = f"{_times(len(there))}, and it would be in number {other + 1}"
            yield _refused(sides, expected, found, region, outcome=Outcome.AMBIGUOUS)


def _places(text: lines.Lines, window: lines.Lines, scope: tuple[int, int]) -> list[int]:
    """Return where a window that touches the scope stands."""
    size = len(window)
    first, last = max(0, scope[0] - size), min(len(text), scope[1] + size)
    return [n for n in range(first, last - size + 1) if size and text[n] == window[0] and text[n : n + size] == window]


def _already(sides: Sides, wanted: Sequence[Region]) -> Iterator[Problem]:
    """Yield each change that the new file has, as git sees it, but not in the definition that it was made for."""
    post, theirs = symbols.module(sides.post), symbols.module(sides.theirs)
    for region in wanted:
        for n, text in enumerate(region.added):
            name = symbols.qualified(post.path(region.into + n)) if text.strip() else ""
            places = theirs.definitions.get(name, ())
            if name and not any(text in theirs.lines[place.first : place.last] for place in places):
                yield _refused(sides, f"the change in {name}", "the release has it, but elsewhere", region)
                break


def _refused(
    sides: Sides, expected: str, found: str, region: Region | None = None, *, outcome: Outcome = Outcome.CONFLICT
) -> Problem:
    return Problem(
        path=sides.path,
        outcome=outcome,
        expected=expected,
        found=found,
        hint=_BY_HAND,
        hunk=region.hunk if region else None,
        lines=(region.first, region.last) if region else None,
    )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


_NAMES = {
    "pre": "the edition's own file",
    "post": "the edition's own file with the patch",
    "theirs": "the new release's file",
}
