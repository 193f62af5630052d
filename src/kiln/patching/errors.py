"""Every failure that is not an outcome: bad input, and a tree that cannot be written.

PatchingError
├── BadInput             2   a wrong series directory, root, argument or environment
│   ├── BadSeries        2   series.json or an edition does not hold together
│   ├── BadDiff          2   an edition is not a unified diff that we accept
│   ├── BadPath          2   a path is unsafe, by its name or by what lies on the way
│   └── BadRoot          2   no root, two roots, or the wrong version in it
├── Locked               5   another run holds the tree
├── CannotWrite          5   the system refused a read or a write; the tree is as it was
├── Interrupted          5   a killed run left files that are neither pre nor post
└── DoesNotApply         5   an edition does not fit the files it is made for
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from kiln.patching.outcomes import FileReport, PatchReport


class PatchingError(Exception):
    """What is wrong and where; `hint` says what to do next."""

    exit_code: ClassVar[int] = 5

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class BadInput(PatchingError):
    exit_code = 2


class BadSeries(BadInput):
    pass


class BadDiff(BadInput):
    pass


class BadPath(BadInput):
    pass


class BadRoot(BadInput):
    pass


class Locked(PatchingError):
    pass


class CannotWrite(PatchingError):
    pass


class Interrupted(PatchingError):
    """`files` names every file that is neither as it was nor as it should be."""

    def __init__(self, message: str, *, hint: str = "", files: tuple[FileReport, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.files = files


class DoesNotApply(PatchingError):
    """`report` says which file and hunk."""

    def __init__(self, message: str, *, report: PatchReport, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.report = report
