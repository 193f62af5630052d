"""Fits hunks to lines at the stated place and nowhere else; says where they would have fitted."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching.outcomes import ABSENT, Outcome, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiln.patching.diff import FileDiff, Hunk

_PLACES_SHOWN = 5


@dataclass(frozen=True)
class Misfit:
    """Why a file does not take its hunks; `hunk` counts from 1, None stands for the file as a whole."""

    outcome: Outcome
    expected: str
    found: str
    hunk: int | None = None
    hint: str = ""


def fit(file: FileDiff, before: bytes | None) -> bytes | Misfit | None:
    """Return the bytes after, None for a deleted file, or the first misfit."""
    if file.created and before is not None:
        return Misfit(Outcome.CONFLICT, ABSENT, f"a file of {len(before)} bytes", hint="the patch creates this file")
    if not file.created and before is None:
        return Misfit(Outcome.CONFLICT, "the file", ABSENT, hint="the file is not in this installation")
    lines = io.BytesIO(before or b"").readlines()
    after: list[bytes] = []
    at = 0
    for hunk in file.hunks:
        misfit = _misfit(hunk, lines)
        if misfit:
            return misfit
        after += lines[at : hunk.index]
        after += hunk.target
        at = hunk.index + len(hunk.source)
    after += lines[at:]
    if file.deleted:
        return _leftover(after, at) if after else None
    return b"".join(after)


def _leftover(after: Sequence[bytes], at: int) -> Misfit:
    found = f"line {at + 1}: {shown(after[0])}"
    return Misfit(Outcome.CONFLICT, "end of file", found, hint="the patch deletes the file, which holds more lines")


def _misfit(hunk: Hunk, lines: Sequence[bytes]) -> Misfit | None:
    if _fits(hunk, lines, hunk.index):
        return None
    stated = f"line {hunk.index + 1}"
    places = [place + 1 for place in _places(hunk, lines)]
    if len(places) > 1:
        found = "lines " + ", ".join(map(str, places[:_PLACES_SHOWN]))
        hint = "the same lines stand at several places; nothing says which is meant"
        return Misfit(Outcome.AMBIGUOUS, stated, found, hunk.number, hint)
    if places:
        hint = "the lines moved; check that this is the right place and make a new edition"
        return Misfit(Outcome.OFFSET, stated, f"line {places[0]}", hunk.number, hint)
    return _conflict(hunk, lines)


def _conflict(hunk: Hunk, lines: Sequence[bytes]) -> Misfit:
    """Name the first line that differs at the stated place; where all are equal, the file goes on after them."""
    stated = (*lines[hunk.index : hunk.index + len(hunk.source) + 1], b"", *(b"" for _ in hunk.source))
    pairs = enumerate(zip((*hunk.source, b""), stated, strict=False), hunk.index + 1)
    number, want, have = next((number, want, have) for number, (want, have) in pairs if want != have)
    expected = f"line {number}: {shown(want)}" if want else "end of file"
    found = f"line {number}: {shown(have)}" if have else "end of file"
    return Misfit(Outcome.CONFLICT, expected, found, hunk.number, _eol_hint(want, have))


def _eol_hint(want: bytes, have: bytes) -> str:
    if want.rstrip(b"\r\n") == have.rstrip(b"\r\n") and want and have:
        return "EOL_MISMATCH: the texts are equal, their line ends are not"
    return "the file changed at this place; make a new edition for these bytes"


def _places(hunk: Hunk, lines: Sequence[bytes]) -> list[int]:
    """Return the first few places where the hunk would fit; linear in the file, whatever it repeats."""
    text, wanted = b"\n" + b"".join(lines), b"\n" + b"".join(hunk.source)
    found: list[int] = []
    at = text.find(wanted)
    while at >= 0 and len(found) <= _PLACES_SHOWN:
        found.append(text.count(b"\n", 0, at))
        at = text.find(wanted, at + 1)
    return [index for index in found if _fits(hunk, lines, index)]


def _fits(hunk: Hunk, lines: Sequence[bytes], index: int) -> bool:
    end = index + len(hunk.source)
    if end > len(lines) or tuple(lines[index:end]) != hunk.source:
        return False
    ends_file = bool(hunk.target) and not hunk.target[-1].endswith(b"\n")
    return not ends_file or end == len(lines)
