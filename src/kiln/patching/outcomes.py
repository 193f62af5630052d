"""The closed vocabulary of outcomes, and the records that carry them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

ABSENT = "absent"


class Outcome(str, Enum):
    """What is so, from best to worst: of several, the last one listed here names the whole."""

    ALREADY_APPLIED = "ALREADY_APPLIED"
    APPLIED = "APPLIED"
    REVERTED = "REVERTED"
    UNKNOWN = "UNKNOWN"
    MERGED = "MERGED"
    MERGED_DIFFERENT = "MERGED_DIFFERENT"
    MOVED = "MOVED"
    OFFSET = "OFFSET"
    AMBIGUOUS = "AMBIGUOUS"
    CONFLICT = "CONFLICT"
    TARGET_MODIFIED = "TARGET_MODIFIED"
    PATCH_CHANGED = "PATCH_CHANGED"
    STALE_RESIDUE = "STALE_RESIDUE"
    HALF_APPLIED = "HALF_APPLIED"

    @property
    def done(self) -> bool:
        """Say whether things are as this word promises: the series is in the tree, or (REVERTED) no longer in it."""
        return self in {Outcome.APPLIED, Outcome.ALREADY_APPLIED, Outcome.REVERTED}


_RANK = {outcome: rank for rank, outcome in enumerate(Outcome)}


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome that names the whole; of nothing at all, ALREADY_APPLIED."""
    return max(outcomes, key=_RANK.__getitem__, default=Outcome.ALREADY_APPLIED)


@dataclass(frozen=True)
class FileReport:
    """One file. `expected` and `found` are hashes, or line number and text when `hunk` is given."""

    path: str
    outcome: Outcome
    expected: str = ""
    found: str = ""
    hunk: int | None = None
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "outcome": self.outcome.value,
            "expected": self.expected,
            "found": self.found,
            "hunk": self.hunk,
            "hint": self.hint,
        }


@dataclass(frozen=True)
class PatchReport:
    id: str
    outcome: Outcome
    files: tuple[FileReport, ...] = ()
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "outcome": self.outcome.value,
            "files": [file.to_json() for file in self.files],
            "hint": self.hint,
        }


@dataclass(frozen=True)
class SeriesReport:
    """The whole. `files` are those that belong to no patch: RECORD, the ledger, what a killed run left."""

    outcome: Outcome
    patches: tuple[PatchReport, ...] = ()
    files: tuple[FileReport, ...] = ()
    hint: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome.value,
            "patches": [patch.to_json() for patch in self.patches],
            "files": [file.to_json() for file in self.files],
            "hint": self.hint,
        }


def patch_report(patch_id: str, files: Iterable[FileReport], hint: str = "") -> PatchReport:
    rows = tuple(files)
    return PatchReport(id=patch_id, outcome=worst(row.outcome for row in rows), files=rows, hint=hint)


def digest(data: bytes | None) -> str | None:
    """Return the sha256 in hex; None (no such file) stays None."""
    return None if data is None else hashlib.sha256(data).hexdigest()


def named(sha256: str | None) -> str:
    return ABSENT if sha256 is None else sha256


def shown(line: bytes) -> str:
    """Return a line of a file as one printable line of text; a line end other than a bare newline shows."""
    body = line[:-1] if line.endswith(b"\n") else line + b"\\ No newline at end of file"
    text = body[:200].decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
