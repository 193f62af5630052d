"""Every failure a user can cause or fix, with its exit code and the command to type next.

KilnError
├── BadInput         2   a wrong argument or a wrong catalog file
├── Missing          3   a tool, engine, registry or index is not there
├── CommandFailed    4   an external command failed
├── NotApplied       5   a patch did not apply
├── Findings         6   a check or drift found something
├── SmokeFailed      7   a smoke check failed
└── PublishRefused   8   publishing was refused
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, of several: where, what, and what ends it."""

    where: str
    problem: str
    hint: str = ""


class KilnError(Exception):
    """What is wrong and where; `hint` is the command or edit that comes next."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(KilnError):
    exit_code = 2


class Missing(KilnError):
    exit_code = 3


class CommandFailed(KilnError):
    exit_code = 4


class NotApplied(KilnError):
    exit_code = 5


class Findings(KilnError):
    exit_code = 6


class SmokeFailed(KilnError):
    exit_code = 7


class PublishRefused(KilnError):
    exit_code = 8


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return "unknown KIND 'NAME'", with the nearest known name, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    tail = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {tail}"
