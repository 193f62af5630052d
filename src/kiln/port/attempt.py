"""Ports one edition to another release in memory: git merges each file, and nothing that looks misplaced passes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln.patching.outcomes import ABSENT, Outcome
from kiln.port import follow, guard, lines, merge, moved, symbols
from kiln.port.merge import Labels
from kiln.port.records import Attempt, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kiln.port.lines import Region

    Files = Mapping[str, bytes | None]
    Find = Callable[[], Mapping[str, bytes]]

__all__ = ["Attempt", "Between", "Problem", "attempt"]


@dataclass(frozen=True, kw_only=True)
class Between:
    """The two releases by name, and all Python files of the edition's own, `before`.

    Without those a moved file is only named, never merged: what looks like it may be a twin that was always there. Nor
    is it seen that the release has made a copy of a file, which may be the one that is used now.
    """

    edition: str = "the edition's release"
    release: str = "this release"
    before: Find | None = None


_UNNAMED = Between()


def attempt(
    pre: Files,
    post: Files,
    theirs: Files,
    find: Find,
    *,
    between: Between = _UNNAMED,
) -> Attempt:
    """Merge what an edition does to `pre`, giving `post`, into `theirs`, the same paths of another release.

    `find` returns all Python files of the new release. Raises Missing where there is no git.
    """
    stay = [_File(path, (pre[path], post[path], theirs.get(path)), find, between) for path in sorted(pre)]
    went: list[_Went] = []
    for file in [file for file in stay if file.problems]:
        if found := _followed(file, stay, went, between):
            stay.remove(file)
            went.append(found)
    # in this order: what went into a file comes on top of what the edition changes there
    done: list[_File | _Went] = [*stay, *went]
    problems = [problem for file in stay for problem in file.problems]
    inside = [file for file in done if file.already]
    if not problems and inside and len(inside) < len(done):
        problems = [_half(file.into) for file in inside]
    return Attempt(
        files={path: data for file in done for path, data in file.results.items()},
        problems=tuple(problems),
        moved={file.path: file.into for file in done if file.into != file.path},
        definitions={file.path: file.names for file in went},
        merged=not problems and len(inside) == len(done),
    )


@dataclass(frozen=True, kw_only=True)
class _Went:
    """A file whose changed definitions were followed into another one: all of its change is in `results`."""

    path: str
    into: str
    names: tuple[str, ...]
    results: Mapping[str, bytes | None]
    already: bool
    problems: tuple[Problem, ...] = ()


def _followed(file: _File, stay: Sequence[_File], went: Sequence[_Went], between: Between) -> _Went | None:
    """Follow the definitions that a file no longer has; where that is in doubt, say so in its problems."""
    source = file.source()
    if not source or not source.gone or not between.before:
        return None
    move = follow.find(source, file.find(), between.before())
    if isinstance(move, follow.Doubt):
        file.doubt(move.why, move.candidates)
        return None
    found = _placed(file, move, [*stay, *went], between)
    if isinstance(found, str):
        file.doubt(f"{move.target}: {found}", (move.target,))
        return None
    return found


def _placed(file: _File, move: follow.Move, others: Sequence[_File | _Went], between: Between) -> _Went | str:
    """Return what stays in a file, merged there, and what went to another one, merged here; or why that cannot be."""
    rest: _File | None = None
    if move.stays != move.source.pre:
        if file.theirs is None:
            return "the change has more than these definitions, and its file is gone"
        rest = _File(file.path, (move.source.pre, move.stays, file.theirs), file.find, between)
        if rest.problems:
            return f"the rest of the change: {rest.problems[0].found}"
    there = _there(file, move.target, others)
    if isinstance(there, str):
        return there
    placed = follow.into(move, there, file.labels)
    if not isinstance(placed, str) and rest and rest.already != placed.already:
        placed = follow.PART
    if isinstance(placed, str):
        return placed
    results = (rest.results if rest else {}) | {move.target: placed.data}
    return _Went(path=file.path, into=move.target, names=move.names, results=results, already=placed.already)


def _there(file: _File, target: str, others: Sequence[_File | _Went]) -> bytes | str:
    """Return the file that definitions went to, with what else the edition changes there; or why that is no good."""
    there = file.find()[target]
    for other in (other for other in others if target in other.results):
        if other.problems:
            return "the patch's own change of that file has problems"
        there = other.results[target] or b""
    return there


class _File:
    """One file of an edition on its way: `into` is where it went, `already` says that the release has the change."""

    def __init__(
        self,
        path: str,
        sides: tuple[bytes | None, bytes | None, bytes | None],
        find: Find,
        between: Between,
    ) -> None:
        self.path = self.into = path
        self.find, self._before = find, between.before
        self.labels = Labels(edition=between.edition, release=between.release)
        self._pre, self._post, self.theirs = sides
        self.already = False
        self.results: dict[str, bytes | None] = {path: self.theirs}
        self.problems = tuple(self._merged())
        self.already = self.already and not self.problems

    def source(self) -> follow.Source | None:
        """Return the file for definitions to be followed from; None where it is one that goes as a whole."""
        if self._pre is None or self._post is None or self.into != self.path or not self.path.endswith(".py"):
            return None
        return follow.Source(path=self.path, pre=self._pre, post=self._post, theirs=self.theirs or b"")

    def doubt(self, why: str, candidates: tuple[str, ...]) -> None:
        """Add to the problems why definitions that are gone were not followed."""
        gone = self.theirs is None and bool(candidates)
        self.problems = tuple(
            replace(
                each,
                outcome=Outcome.MOVED if gone else each.outcome,
                found=f"{each.found}; not followed: {why}" if gone or each.outcome is Outcome.MOVED else each.found,
                candidates=each.candidates or candidates if gone else each.candidates,
            )
            for each in self.problems
        )

    def _merged(self) -> Iterator[Problem]:
        pre, post, theirs = self._pre, self._post, self.theirs
        if pre is None or post is None:
            yield from self._whole(pre, post, theirs)
        elif theirs is None:
            yield from self._gone(pre, post)
        else:
            problems = list(self._into(pre, post, theirs))
            yield from problems or self._copied(pre, post)

    def _whole(self, pre: bytes | None, post: bytes | None, theirs: bytes | None) -> Iterator[Problem]:
        """Create or delete a file."""
        if theirs == post:
            self.already = True
        elif theirs == pre:
            self.results[self.path] = post
        elif post is None:
            yield self._problem("the file as the patch deletes it", "the release changed it")
        elif theirs is not None:
            self.results[self.path] = merge.three_way(b"", post, theirs, self.labels).data
            yield self._problem(ABSENT, f"a file of {len(theirs)} bytes", hint="the patch creates this file")

    def _gone(self, pre: bytes, post: bytes) -> Iterator[Problem]:
        """Merge into the file that this one became, if that is beyond doubt."""
        known = self._before() if self._before else {}
        python = self.path.endswith(".py")
        found = moved.files(
            pre, {path: data for path, data in self.find().items() if path not in known} if python else {}
        )
        if self._before and len(found) == 1:
            self.into = found[0]
            del self.results[self.path]
            yield from self._into(pre, post, self.find()[self.into])
            return
        outcome = Outcome.MOVED if found else Outcome.CONFLICT
        text = "files that look like it" if found else "and no file that is new looks like it" if known else ""
        problem = self._problem("the file", f"{ABSENT}, {text}".rstrip(", "), hint="find out what became of it")
        yield replace(problem, outcome=outcome, candidates=found)

    def _copied(self, pre: bytes, post: bytes) -> Iterator[Problem]:
        """Refuse where the release has copied what is changed: which one is used cannot be seen here."""
        if not self._before or not self.path.endswith(".py"):
            return
        names = list(dict.fromkeys(name for region in lines.regions(pre, post) for name in _owners(pre, region)))
        if found := moved.copies((self.path, pre), names, self.find(), self._before()):
            text = "the release has it in another file, too"
            problem = self._problem("one place for this change", text, hint="find out which one is used")
            yield replace(problem, outcome=Outcome.AMBIGUOUS, candidates=(self.path, *found))

    def _into(self, pre: bytes, post: bytes, theirs: bytes) -> Iterator[Problem]:
        self.results[self.into] = theirs
        if theirs == post:
            self.already = True
            return
        if theirs == pre:
            self.results[self.into] = post
            return
        result = merge.three_way(pre, post, theirs, self.labels)
        self.results[self.into] = result.data
        if result.problem:
            yield self._problem("a text that git can merge", result.problem)
        elif result.conflicts:
            yield from self._conflicts(pre, post, theirs, result)
        else:
            self.already = result.data == theirs
            sides = guard.Sides(path=self.into, pre=pre, post=post, theirs=theirs, merged=result.data)
            for problem in guard.problems(sides):
                yield self._moved(problem, pre, post, theirs)

    def _conflicts(self, pre: bytes, post: bytes, theirs: bytes, result: merge.Merged) -> Iterator[Problem]:
        """Name each conflict, with the hunk that it belongs to."""
        wanted = lines.regions(pre, post)
        clashes = merge.clashes(result, self.labels)
        if not clashes:  # the text has lines of its own that look like markers
            yield self._problem("a text that git can merge", f"{result.conflicts} conflicts")
        for clash in clashes:
            span, at = merge.located(pre, theirs, clash)
            hit = next((each for each in wanted if each.first <= span[1] and span[0] <= each.last), None)
            expected, found, hint = merge.difference(clash, (span[0] + 1, at + 1))
            problem = replace(self._problem(expected, found, hint=hint), hunk=hit.hunk if hit else None, lines=span)
            yield self._moved(problem, pre, post, theirs)

    def _moved(self, problem: Problem, pre: bytes, post: bytes, theirs: bytes) -> Problem:
        """Say where the function of a problem's hunk went, if it is no longer in this file."""
        if not self.into.endswith(".py") or problem.hunk is None:
            return problem
        known = symbols.module(theirs).definitions
        for region in lines.regions(pre, post):
            if region.hunk == problem.hunk:
                gone = [name for name in _owners(pre, region) if name not in known]
                if gone:
                    found = moved.symbol(gone[0], pre, self.into, self.find())
                    text = f"{gone[0]} is no longer in this file{'; it is elsewhere' if found else ''}"
                    outcome = Outcome.MOVED if found else Outcome.CONFLICT
                    says = text if text in problem.found else f"{text}; {problem.found}"
                    return replace(problem, outcome=outcome, found=says, candidates=found)
        return problem

    def _problem(self, expected: str, found: str, *, hint: str = merge.BY_HAND) -> Problem:
        return Problem(path=self.into, outcome=Outcome.CONFLICT, expected=expected, found=found, hint=hint)


def _half(path: str) -> Problem:
    return Problem(
        path=path,
        outcome=Outcome.CONFLICT,
        expected="all of the change, or none of it",
        found="the release has the change of this file already, that of other files it has not",
        hint="find out whether upstream made the change in another way",
    )


def _owners(pre: bytes, region: Region) -> list[str]:
    """Return the definitions, of the file before the patch, in which a change stands."""
    tree = symbols.module(pre)
    last = max(region.last, region.first + 1)
    first = region.first - (1 if not region.removed and region.first else 0)
    names = (symbols.qualified(tree.path(line)) for line in range(first, last))
    return [name for name in dict.fromkeys(names) if name]
