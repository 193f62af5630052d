"""Judges each hunk of a diff against a release's own files, in the closed vocabulary; pure."""

from __future__ import annotations

import difflib
import io
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from kiln.patching import hunks
from kiln.patching.diff import FileDiff
from kiln.patching.hunks import Misfit
from kiln.patching.outcomes import ABSENT, Outcome, worst

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kiln.patching.diff import Hunk

_MOST = 5
_HALF = {Outcome.APPLIED, Outcome.MERGED}


@dataclass(frozen=True, kw_only=True)
class HunkIntake:
    """One hunk; `expected` and `found` are lines, or what stands there."""

    number: int
    outcome: Outcome
    expected: str
    found: str
    hint: str = ""


@dataclass(frozen=True, kw_only=True)
class FileIntake:
    """One file; `candidates` are files of the same name where it is not there; `after` is what it becomes."""

    path: str
    outcome: Outcome
    hunks: tuple[HunkIntake, ...] = ()
    candidates: tuple[str, ...] = ()
    after: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Intake:
    """A diff on a release: only where all is APPLIED an edition can be made of it; `problem` says why not.

    `fits` are the other releases of the catalog on which every hunk would be; nobody looks where it is APPLIED.
    `advice` is what to do where that is not to make it on one of them.
    """

    release: str
    outcome: Outcome
    files: tuple[FileIntake, ...]
    left_out: tuple[tuple[str, str], ...]
    fits: tuple[str, ...] = ()
    problem: str = ""
    advice: str = ""

    def as_data(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "release": self.release,
            "outcome": self.outcome.value,
            "files": [
                {
                    "path": file.path,
                    "outcome": file.outcome.value,
                    "hunks": [asdict(hunk) | {"outcome": hunk.outcome.value} for hunk in file.hunks],
                }
                for file in self.files
            ],
            "left_out": [{"path": path, "why": why} for path, why in self.left_out],
            "fits": list(self.fits),
            "problem": self.problem,
            "advice": self.advice,
        }


def whole(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome of several together; what is there in part is HALF_APPLIED, not MERGED."""
    found = set(outcomes)
    return Outcome.HALF_APPLIED if found == _HALF else worst(found)


def files(
    diffs: Sequence[FileDiff], read: Callable[[str], bytes | None], names: Callable[[], Iterable[str]]
) -> tuple[FileIntake, ...]:
    """Judge a diff; of a file that it changes twice, each part on what the part before it leaves.

    `read` gives a file of the release, `names` all of its files.
    """
    found: dict[str, FileIntake] = {}
    for each in diffs:
        earlier = found.get(each.path)
        before = earlier.after if earlier else read(each.path)
        made = _file(each, before, names)
        if earlier:
            shift = len(earlier.hunks)
            more = tuple(replace(hunk, number=hunk.number + shift) for hunk in made.hunks)
            made = replace(made, outcome=whole({earlier.outcome, made.outcome}), hunks=(*earlier.hunks, *more))
        found[each.path] = made
    return tuple(found.values())


def _file(file: FileDiff, before: bytes | None, names: Callable[[], Iterable[str]]) -> FileIntake:
    if before is None and not file.created:
        return _absent(file, names)
    if file.created or file.deleted:
        return _made_or_gone(file, before)
    assert before is not None
    rows = tuple(_hunk(hunk, file.path, before) for hunk in file.hunks)
    fitting = tuple(hunk for hunk, row in zip(file.hunks, rows, strict=True) if row.outcome is Outcome.APPLIED)
    after = hunks.fit(replace(file, hunks=fitting), before)
    assert isinstance(after, bytes), "each of them fits by itself, and they do not overlap"
    return FileIntake(path=file.path, outcome=whole(row.outcome for row in rows), hunks=rows, after=after)


def _absent(file: FileDiff, names: Callable[[], Iterable[str]]) -> FileIntake:
    """Judge a file that the release does not have: gone already, moved, or never there."""
    near = () if file.deleted else _candidates(file.path, names())
    if file.deleted:
        outcome, hint = Outcome.MERGED, "the release has no such file any more"
    elif near:
        outcome, hint = Outcome.MOVED, f"files of the same name: {', '.join(near)}"
    else:
        outcome, hint = Outcome.CONFLICT, "the release has no file of this name"
    rows = tuple(
        HunkIntake(number=hunk.number, outcome=outcome, expected=_line(hunk.index), found=ABSENT, hint=hint)
        for hunk in file.hunks
    )
    return FileIntake(path=file.path, outcome=outcome, hunks=rows, candidates=near)


def _made_or_gone(file: FileDiff, before: bytes | None) -> FileIntake:
    """Judge a file that is created or deleted as a whole."""
    after = hunks.fit(file, before)
    content = b"".join(line for hunk in file.hunks for line in hunk.target)
    if file.created and before == content:
        outcome, found, hint = Outcome.MERGED, "the same file", "the release has it"
    elif isinstance(after, Misfit):
        outcome, found, hint = after.outcome, after.found, after.hint
    else:
        outcome, found, hint = Outcome.APPLIED, ABSENT if file.created else _line(0), ""
    expected = ABSENT if file.created else _line(0)
    rows = tuple(
        HunkIntake(number=hunk.number, outcome=outcome, expected=expected, found=found, hint=hint)
        for hunk in file.hunks
    )
    kept = before if isinstance(after, Misfit) else after
    return FileIntake(path=file.path, outcome=outcome, hunks=rows, after=kept)


def _hunk(hunk: Hunk, path: str, before: bytes) -> HunkIntake:
    """Judge one hunk by itself on the untouched lines; its place there does not depend on the others."""
    fitted = hunks.fit(FileDiff(path=path, created=False, deleted=False, hunks=(hunk,)), before)
    there, done = _places(hunk.source, before), _places(hunk.target, before)
    # lines that are added at an end of the old text leave that text standing within the new one
    old = [at for at in there if not any(new <= at <= new + len(hunk.target) - len(hunk.source) for new in done)]
    stated = _line(hunk.index)
    if done and not old:
        found = f"the new text at {_shown(done)}"
        return HunkIntake(number=hunk.number, outcome=Outcome.MERGED, expected=stated, found=found)
    if isinstance(fitted, Misfit):
        return HunkIntake(
            number=hunk.number,
            outcome=fitted.outcome,
            expected=fitted.expected,
            found=fitted.found,
            hint=fitted.hint,
        )
    if len(there) > 1:
        hint = "the same lines stand at several places; more lines of context would say which is meant"
        return HunkIntake(
            number=hunk.number, outcome=Outcome.AMBIGUOUS, expected=stated, found=_shown(there), hint=hint
        )
    return HunkIntake(number=hunk.number, outcome=Outcome.APPLIED, expected=stated, found=stated)


def _places(wanted: Sequence[bytes], data: bytes) -> list[int]:
    """Return the first few 0-based lines at which these lines stand."""
    lines = io.BytesIO(data).readlines()
    text, needle = b"\n" + data, b"\n" + b"".join(wanted)
    found: list[int] = []
    at = text.find(needle) if wanted else -1
    while at >= 0 and len(found) <= _MOST:
        index = text.count(b"\n", 0, at)
        if tuple(lines[index : index + len(wanted)]) == tuple(wanted):
            found.append(index)
        at = text.find(needle, at + 1)
    return found


def _candidates(path: str, names: Iterable[str]) -> tuple[str, ...]:
    """Return files of the same name, the most alike paths first."""
    base = path.rpartition("/")[2]
    same = [name for name in names if name.rpartition("/")[2] == base]
    return tuple(sorted(same, key=lambda name: (-difflib.SequenceMatcher(None, path, name).ratio(), name))[:_MOST])


def _shown(places: Sequence[int]) -> str:
    return f"line{'s' * (len(places) > 1)} {', '.join(str(place + 1) for place in places)}"


def _line(index: int) -> str:
    return f"line {index + 1}"
