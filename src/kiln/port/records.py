"""What a port of one edition to another release gives, and what stands in its way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiln.patching.outcomes import Outcome


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a file cannot be ported without a person: MOVED, AMBIGUOUS or CONFLICT.

    `hunk` counts from 1 and `lines` (from 0, end excluded) are of the file before the patch, on the edition's release.
    `candidates` are paths of the new release.
    """

    path: str
    outcome: Outcome
    expected: str
    found: str
    hint: str
    hunk: int | None = None
    lines: tuple[int, int] | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """`files` are those of the new release with the patch, conflict markers and all; None is no such file.

    `moved` maps the edition's path to the one that the change was merged into. Where not the file but functions or
    classes of it went there, `definitions` has their names by the same path, and `files` both files, if both change.
    """

    files: Mapping[str, bytes | None]
    problems: tuple[Problem, ...] = ()
    moved: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    merged: bool = False  # every change is in the new release already

    @property
    def clean(self) -> bool:
        return not self.problems
