"""Reads what the patch engine answered as JSON into a record, or raises the error that it names."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kiln import errors, process
from kiln.patching.outcomes import FileReport, Outcome, PatchReport, SeriesReport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiln.patching.errors import PatchingError

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the engine said of a tree; `text` is its own JSON."""

    tree: str
    distribution: str
    version: str
    root: str
    exit_code: int
    report: SeriesReport
    text: str

    @property
    def release(self) -> str:
        """The version without its local part: 0.31.0 of 0.31.0+cpu."""
        return self.version.partition("+")[0]


def read(argv: Sequence[str], said: process.Result, *, tree: str, again: str) -> Answer:
    """Return the answer; raises BadInput or NotApplied as the engine did, CommandFailed where it said nothing.

    The engine's advice is a command line of its own, in a folder that is gone by now: `again` takes its place.
    """
    own_command = re.compile(rf"(?:'[^']*'|\S+) {re.escape(shlex.quote(argv[0]))} .*")
    try:
        data = json.loads(said.stdout)
        if data["schema"] != _SCHEMA:
            raise errors.CommandFailed(f"{tree}: kiln-patch answered in schema {data['schema']!r}, not {_SCHEMA}")
        if "error" in data:
            raise _error(data, tree)
        data["report"]["hint"] = own_command.sub(lambda _: again, data["report"]["hint"])
        return Answer(
            tree=tree,
            distribution=str(data["distribution"]),
            version=str(data["version"]),
            root=str(data["root"]),
            exit_code=int(data["exit_code"]),
            report=_report(data["report"]),
            text=json.dumps(data, indent=2, sort_keys=True),
        )
    except (ValueError, KeyError, TypeError) as error:
        failed = process.failed(argv, said.code, f"{said.stderr.rstrip()}\n{said.stdout[:2000]}".lstrip("\n"))
        raise errors.CommandFailed(f"{tree}: kiln-patch did not answer\n{failed.message}") from error


def translated(error: PatchingError) -> errors.KilnError:
    """Return Kiln's error for one of the engine: same exit code, message and hint."""
    kind = errors.BadInput if error.exit_code == errors.BadInput.exit_code else errors.NotApplied
    return kind(error.message, hint=error.hint)


def _error(data: dict[str, Any], tree: str) -> errors.KilnError:
    problem = data["error"]
    files = (_file(row) for row in problem["files"])
    rows = (f"  {row.path}: {row.outcome.value}: expected {row.expected}, found {row.found}" for row in files)
    kind = errors.BadInput if data["exit_code"] == errors.BadInput.exit_code else errors.NotApplied
    return kind("\n".join([f"{tree}: {problem['message']}", *rows]), hint=str(problem["hint"]))


def _report(data: dict[str, Any]) -> SeriesReport:
    return SeriesReport(
        outcome=Outcome(data["outcome"]),
        patches=tuple(
            PatchReport(
                id=str(row["id"]),
                outcome=Outcome(row["outcome"]),
                files=tuple(_file(file) for file in row["files"]),
                hint=str(row["hint"]),
            )
            for row in data["patches"]
        ),
        files=tuple(_file(row) for row in data["files"]),
        hint=str(data["hint"]),
    )


def _file(row: dict[str, Any]) -> FileReport:
    return FileReport(
        path=str(row["path"]),
        outcome=Outcome(row["outcome"]),
        expected=str(row["expected"]),
        found=str(row["found"]),
        hunk=row["hunk"],
        hint=str(row["hint"]),
    )
