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
import os
import sys
from dataclasses import dataclass
from pathlib import Path
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
    """Return "unknown KIND 'NAME'", with the nearest known name in whatever case, or all of them."""
    names = sorted(known)
    folded = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    every = f"known: {', '.join(names)}" if names else "none is known"
    tail = f"did you mean {folded[near[0]]!r}?" if near else every
    return f"unknown {kind} {name!r}; {tail}"


def of_system(error: OSError) -> BadInput:
    """Say in one sentence what the operating system refused: the file, where it names one, and the reason."""
    names = (name for name in (error.filename, error.filename2) if name is not None)
    files = " -> ".join(os.fsdecode(name) if isinstance(name, bytes) else str(name) for name in names)
    reason = error.strerror or f"{type(error).__name__}: {error}".removesuffix(": ")
    return BadInput(f"{files}: {reason}" if files else reason)


def damaged(error: ImportError) -> Missing | None:
    """Say which third-party module the environment has lost; None when the error is Kiln's own fault."""
    while not error.name and isinstance(error.__cause__, ImportError):
        error = error.__cause__
    module = error.name or ""
    if module.partition(".")[0] in {"", "kiln", *sys.stdlib_module_names}:
        return None
    prefix = Path(sys.prefix)
    own = prefix == Path(__file__).parents[2] / ".venv"
    return Missing(
        f"the environment {prefix.name if own else prefix} is damaged: {module} cannot be imported",
        hint="rm -rf .venv, then the same command" if own else "install Kiln into it again: pip install -e .",
    )
