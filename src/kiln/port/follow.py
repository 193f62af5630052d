"""Follows functions and classes that a release has moved to another file, where it is beyond doubt that it has."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.port import bindings, guard, lines, merge, moved, symbols

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kiln.port.merge import Labels

PART = "the release has a part of the change already"
_SURE = 0.75  # of the lines: with fewer it may have been split or written anew
_PIECE = 2  # lines that another new definition may not share with it, if they are half of that one


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file that an edition changes; `theirs` is b"" where the new release has no such file."""

    path: str
    pre: bytes
    post: bytes
    theirs: bytes

    @property
    def gone(self) -> tuple[str, ...]:
        """Return the changed definitions at module level that the new release's file no longer has."""
        pre, post, theirs = (symbols.module(data) for data in (self.pre, self.post, self.theirs))
        if pre.problem or post.problem or theirs.problem:
            return ()
        names = (name for name in pre.definitions if "." not in name and name not in theirs.definitions)
        texts = ((name, pre.text(name), post.text(name)) for name in names)
        return tuple(name for name, old, new in texts if old and new and old != new)


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Why a definition is not followed; `candidates` are files that have it and had it not before."""

    why: str
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Move:
    """The definitions `names` of a file are in the file `target` now."""

    source: Source
    target: str
    names: tuple[str, ...]

    @property
    def stays(self) -> bytes:
        """Return the file after the edition, with these definitions as they were before it."""
        data = self.source.post
        for name in self.names:
            data = _swapped(data, name, symbols.module(self.source.pre).text(name))
        return data

    def alone(self, name: str) -> bytes:
        """Return the file before the edition, with one of these definitions as it is after it."""
        return _swapped(self.source.pre, name, symbols.module(self.source.post).text(name))


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The other file with the change; `already` says that the release has it."""

    data: bytes
    already: bool


def find(source: Source, new: Mapping[str, bytes], old: Mapping[str, bytes]) -> Move | Doubt:
    """Return where all of the changed definitions that are gone are now, in the files of the new release."""
    fresh: set[str] = set()
    why = ""
    for name in source.gone:
        wanted = symbols.module(source.pre).text(name)
        here, there = (
            {path: likeness for path, likeness in symbols.holders(name, wanted, files).items() if path != source.path}
            for files in (new, old)
        )
        enough = {path for path, likeness in here.items() if likeness >= moved.LEAST}
        places = here.keys() - there.keys()
        fresh |= enough & places
        if twins := sorted(path for path in there if path in enough or there[path] >= moved.LEAST):
            why = why or f"{name} was in {twins[0]}, too"
        elif len(places) != 1:
            why = why or f"{name} is new in {len(places)} files"
        elif (likeness := here[next(iter(places))]) < _SURE:
            why = why or f"{name} has {likeness:.0%} of its lines there"
    candidates = tuple(sorted(fresh))
    if not why and len(candidates) > 1:
        why = "the definitions went to several files"
    if why:
        return Doubt(why=why, candidates=candidates)
    move = Move(source=source, target=candidates[0], names=source.gone)
    try:
        why = next(_doubts(move, new[move.target], old.get(move.target, b"")), "")
    except RecursionError:
        why = f"{move.target} or the file itself is nested too deeply to be compared"
    return Doubt(why=why, candidates=candidates) if why else move


def into(move: Move, data: bytes, labels: Labels) -> Placed | str:
    """Return the other file, given as `data`, with the change of each definition, or why that is no good."""
    source = move.source
    already = set()
    for name in move.names:
        pre, post, theirs = (b"".join(symbols.module(text).text(name)) for text in (source.pre, source.post, data))
        if not theirs.endswith(b"\n"):
            return f"{name} is not there just once, or lacks its last line's end"
        result = merge.three_way(pre, post, theirs, labels)
        if result.problem or result.conflicts:
            return result.problem or f"the release changed the same lines of {name}, too"
        merged = _swapped(data, name, lines.split(result.data))
        sides = guard.Sides(path=move.target, pre=source.pre, post=move.alone(name), theirs=data, merged=merged)
        for problem in guard.problems(sides):
            return f"{problem.expected}; {problem.found}"
        already.add(merged == data)
        data = merged
    if len(already) != 1:
        return PART
    return Placed(data=data, already=already.pop())


def _doubts(move: Move, there: bytes, was: bytes) -> Iterator[str]:
    """Yield why a definition that is in just one new place may still not be what it was."""
    source = move.source
    now, old, new = (
        bindings.bound(data, path)
        for data, path in ((source.theirs, source.path), (source.pre, source.path), (there, move.target))
    )
    for name in move.names:
        if not all(symbols.module(data).text(name)[-1].endswith(b"\n") for data in (source.pre, source.post)):
            yield f"the last line of {name} has no end"
        if bindings.kinds(old[name]) != bindings.kinds(new.get(name, ())):
            yield f"{name} is bound in another way there"
        if not now.get(name, frozenset()) <= set(_imports(move.target, name)):
            yield f"{name} is something else in this file now"
    for path, data, known in (
        (move.target, there, symbols.module(was).definitions),
        (source.path, source.theirs, ()),
    ):
        for name, piece in _pieces(move, data, known):
            yield f"{piece} of {path} has lines of {name}, too"
    modules = bindings.Modules(
        source.path, move.target, (source.pre, source.post, source.theirs, there), along=move.names
    )
    for name in move.names:
        before, after = (symbols.module(data).node(name) for data in (source.pre, source.post))
        if before and after and (needed := bindings.unmet(before, after, modules)):
            yield f"the change in {name} needs {needed}, which is another or none there"


def _imports(target: str, name: str) -> Iterator[str]:
    """Yield how a name may be imported from a file: from it, or from a package that it is in."""
    parts = bindings.dotted(target).split(".")
    for n in range(1, len(parts) + 1):
        yield f"from {'.'.join(parts[:n])} import {name}"


def _pieces(move: Move, data: bytes, known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield each new definition that has come out of one that was moved: it was split, renamed or copied."""
    pre, tree = symbols.module(move.source.pre), symbols.module(data)
    for other in tree.definitions:
        if "." in other or other in known or other in pre.definitions:
            continue
        text = _counted(tree.text(other))
        for name in move.names:
            shared = (text & _counted(pre.text(name))).total()
            if shared >= _PIECE and shared * 2 >= text.total():
                yield name, other


def _counted(text: lines.Lines) -> Counter[bytes]:
    return Counter(line for each in text if (line := each.strip()))


def _swapped(data: bytes, name: str, text: lines.Lines) -> bytes:
    """Return a file with the text of a definition replaced."""
    tree = symbols.module(data)
    (place,) = tree.definitions[name]
    return b"".join((*tree.lines[: place.first], *text, *tree.lines[place.last :]))
