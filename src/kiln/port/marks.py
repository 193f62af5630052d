"""Puts what a port refuses between conflict markers that say what is asked, so that no export takes it unseen."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from kiln.port import lines

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kiln.port.lines import Region
    from kiln.port.merge import Labels
    from kiln.port.records import Attempt, Problem
    from kiln.port.sources import Images

_LONGEST = 300
_MARKER = b"<<<<<<< "


def files(made: Attempt, images: Images, theirs: Mapping[str, bytes | None], labels: Labels) -> dict[str, bytes | None]:
    """Return the files of an attempt as a person gets them: every change that a problem is about is marked.

    Where a problem's own file has no change that could be, every change of the other files is: half of a patch is none.
    """
    came = {new: old for old, new in made.moved.items() if old not in made.definitions}
    found, homeless = dict(made.files), []
    for path in made.files:
        own = [problem for problem in made.problems if problem.path == path]
        old = came.get(path, path)
        wanted = lines.regions(images.pre.get(old) or b"", images.post.get(old) or b"")
        found[path] = marked(theirs[path], made.files[path], own, labels, wanted=wanted)
        homeless += own if found[path] == theirs[path] else []
    homeless += [problem for problem in made.problems if problem.path not in made.files]
    for path in found if homeless else ():
        found[path] = marked(theirs[path], found[path], homeless, labels)
    return found


def marked(
    theirs: bytes | None,
    merged: bytes | None,
    problems: Sequence[Problem],
    labels: Labels,
    *,
    wanted: Sequence[Region] = (),
) -> bytes | None:
    """Return the merged file with each change that the problems are about between markers.

    `wanted` is what the edition changes, to find the place that a problem names; else all of the file is marked. What
    is in conflict, and so is marked already, stays.
    """
    old, new = lines.split(theirs or b""), lines.split(merged or b"")
    if not problems or theirs == merged or any(line.startswith(_MARKER) for line in set(new) - set(old)):
        return merged
    out, at = io.BytesIO(), 0
    for (first, last), (into, over), asked in _asked(old, new, problems, wanted):
        out.writelines(new[at:into])
        after = f"{labels.sides[2]}: {_text(asked)}"
        for part in (f"<<<<<<< {labels.release}", old[first:last], "=======", new[into:over], f">>>>>>> {after}"):
            out.write(f"{part}\n".encode() if isinstance(part, str) else _ended(b"".join(part)))
        at = over
    out.writelines(new[at:])
    return out.getvalue()


def _asked(
    old: lines.Lines, new: lines.Lines, problems: Sequence[Problem], wanted: Sequence[Region]
) -> Iterator[tuple[tuple[int, int], tuple[int, int], list[Problem]]]:
    """Yield each change to mark: its lines in the release's file and in the merged one, and what is asked."""
    spots = lines.landed(old, new, wanted) or [None] * len(wanted)
    placed = [(region, spot) for region, spot in zip(wanted, spots, strict=True) if spot]
    if any(not any(_is_about(problem, region) for region, _ in placed) for problem in problems):
        for each in lines.regions(b"".join(old), b"".join(new)):
            yield (each.first, each.last), (each.into, each.into + len(each.added)), list(problems)
        return
    for region, (at, into) in placed:
        if asked := [problem for problem in problems if _is_about(problem, region)]:
            yield (at, at + len(region.removed)), (into, into + len(region.added)), asked


def _is_about(problem: Problem, region: Region) -> bool:
    if problem.hunk != region.hunk:
        return False
    return not problem.lines or (problem.lines[0] <= region.last and region.first <= problem.lines[1])


def _text(problems: Sequence[Problem]) -> str:
    """Return what a person is asked, as one line."""
    told = (
        part
        for problem in problems
        for part in (problem.found, problem.expected, *(f"see {path}" for path in problem.candidates))
    )
    plain = "".join(c if c.isprintable() else " " for c in "; ".join(dict.fromkeys(told)))
    return f"{' '.join(plain.split())[:_LONGEST]}; is this right?"


def _ended(part: bytes) -> bytes:
    return part if not part or part.endswith(b"\n") else part + b"\n"
