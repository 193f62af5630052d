"""Keeps one issue a fact: made once, edited when the fact changes, closed when it is gone, reopened when it is back."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote

from kiln import errors, process
from kiln.drift import attention
from kiln.drift.markdown import fence, span
from kiln.drift.words import line, visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kiln.drift.attention import Item
    from kiln.drift.records import Cell, FileVerdict, Report
    from kiln.report import Reporter

LABEL = "kiln-drift"
_MOST = 1000
_TIMEOUT_S = 60.0
_MOST_TEXT, _MOST_FILES = 4000, 20
_MARK = re.compile(r"^<!-- kiln-drift: ([^\s<>]+) -->\r?$", re.MULTILINE)
_FOOT = (
    "This text is kept by `./inv drift --issues`: edited when the fact changes, closed when it is gone, opened again "
    "when it is back. Write comments; what is written here is overwritten."
)


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One issue with the label `kiln-drift`, as the repository has it."""

    number: int
    title: str
    body: str
    state: Literal["open", "closed"]


@dataclass(frozen=True, kw_only=True)
class Action:
    """One change of one issue; `title` and `body` are what it says afterwards."""

    kind: Literal["create", "edit", "reopen", "close"]
    number: int | None
    title: str
    body: str


def plan(report: Report, existing: Sequence[Issue], *, whole: bool) -> tuple[Action, ...]:
    """Return what makes the issues say what the report says; nothing where they do.

    whole: the report was not narrowed down, so a fact that it does not name is gone. What a narrowed report did not
    look at, and any fact of a column that could not be read, keeps its issues as they are.
    """
    wanted = {item.key: item for item in attention.items(report)}
    known = _by_key(existing)
    kept = (action for item in wanted.values() for action in _keep(item, known.get(item.key, ())))
    gone = (
        issue
        for key, issues in known.items()
        if key not in wanted and _over(key, report, whole=whole)
        for issue in issues
    )
    return (*kept, *_close(gone))


def run(report: Report, *, whole: bool, dry_run: bool, reporter: Reporter) -> None:
    """Make the repository's issues say what the report says. Raises Missing or CommandFailed."""
    with reporter.step("issues"):
        actions = plan(report, listed(), whole=whole)
    apply(actions, dry_run=dry_run, reporter=reporter)


def listed() -> tuple[Issue, ...]:
    """Return the repository's issues with the label. Raises Missing (no gh) or CommandFailed."""
    argv = ("gh", "issue", "list", f"--label={LABEL}", "--state=all", f"--limit={_MOST}")
    rows = json.loads(_gh((*argv, "--json=number,title,body,state")))
    if len(rows) >= _MOST:
        message = f"there are {_MOST} issues with the label {LABEL} or more: gh did not list all, so none is changed"
        raise errors.CommandFailed(message, hint=f"delete old ones: gh issue list --label {LABEL} --state closed")
    return tuple(
        Issue(number=row["number"], title=row["title"], body=row["body"] or "", state=row["state"].lower())
        for row in rows
    )


def apply(actions: Sequence[Action], *, dry_run: bool, reporter: Reporter) -> None:
    """Do each action with gh; one that fails does not stop the others. Raises Missing or CommandFailed."""
    if not dry_run and any(action.kind == "create" for action in actions):
        _gh(("gh", "label", "create", LABEL, "--description=New drift, kept by ./inv drift", "--force"))
    failures = []
    for action in actions:
        number = f" #{action.number}" if action.number else ""
        reporter.note(f"{'would ' if dry_run else ''}{action.kind} issue{number}: {action.title}")
        try:
            for argv in () if dry_run else _commands(action):
                _gh(argv, stdin=action.body)
        except errors.CommandFailed as error:
            failures.append(error.message)
    if failures:
        raise errors.CommandFailed(
            "\n".join(failures), hint="gh auth status; then the same command: it goes on from here"
        )


def _keep(item: Item, issues: Sequence[Issue]) -> Iterator[Action]:
    """Yield what makes one open issue say the fact, and closes its twins."""
    title, body = _title(item), _body(item)
    opened = sorted((issue for issue in issues if issue.state == "open"), key=lambda issue: issue.number)
    if opened:
        if (opened[0].title, _plain(opened[0].body)) != (title, _plain(body)):
            yield Action(kind="edit", number=opened[0].number, title=title, body=body)
        yield from _close(opened[1:])
    elif issues:
        yield Action(kind="reopen", number=min(issue.number for issue in issues), title=title, body=body)
    else:
        yield Action(kind="create", number=None, title=title, body=body)


def _close(issues: Iterable[Issue]) -> Iterator[Action]:
    for issue in sorted(issues, key=lambda issue: issue.number):
        if issue.state == "open":
            yield Action(kind="close", number=issue.number, title=issue.title, body=issue.body)


def _over(key: str, report: Report, *, whole: bool) -> bool:
    """Say whether this report looked at the fact of `key`, which it does not name any more."""
    if any(key.endswith(f"@{column}") for column in attention.unread(report)):
        return False
    looked_at = {cell.key for cell in report.cells} | {f"@{column.name}" for column in report.columns}
    return key in looked_at or (whole and any(key.endswith(f"@{column.name}") for column in report.columns))


def _by_key(issues: Iterable[Issue]) -> dict[str, list[Issue]]:
    """Return issues by the key in their mark; one without a mark is a person's, and left alone."""
    found: defaultdict[str, list[Issue]] = defaultdict(list)
    for issue in issues:
        if mark := _MARK.search(issue.body):
            found[unquote(mark[1])].append(issue)
    return found


def _mark(key: str) -> str:
    """Return the line that holds a key; nothing in the key can end the comment."""
    return f"<!-- kiln-drift: {quote(key, safe='@/:.+')} -->"


def _title(item: Item) -> str:
    return f"{'[forced] ' if item.forced else ''}drift: {line(item.subject, 150)}: {line(item.word, 60)}"


def _body(item: Item) -> str:
    """Return the text of an issue; the mark comes first, and text of the data cannot look like one."""
    parts = [f"{span(item.subject)}: {span(item.word)}"]
    if item.forced:
        parts.append("**Forced**: this verdict was set by hand (`--force`) to test alerts. It is no fact.")
    parts += [fence(_cut(item.says)), *(_of_cell(item.cell) if item.cell else ())]
    if item.next:
        parts.append(f"Next:\n\n{fence(_cut(item.next), 'sh')}")
    return "\n\n".join([_mark(item.key), *(part.replace("<!--", "<! --") for part in parts), _FOOT]) + "\n"


def _of_cell(cell: Cell) -> Iterator[str]:
    if cell.files:
        yield fence(_cut("\n".join(text for file in cell.files[:_MOST_FILES] for text in _of_file(file))))
    if len(cell.files) > _MOST_FILES:
        yield f"and {len(cell.files) - _MOST_FILES} files more"
    if cell.port == "clean":
        yield f"The ported edition, from {span(cell.edition)}, is among the files of the run; its probe has not run."


def _of_file(file: FileVerdict) -> Iterator[str]:
    yield f"{file.verdict.value}  {file.path}{f', hunk {file.hunk}' if file.hunk else ''}"
    for label, text in (("expected", file.expected), ("found", file.found), ("next", file.hint)):
        if text:
            yield f"  {label}: {line(text, 400)}"
    for candidate in file.candidates[:_MOST_FILES]:
        yield f"  candidate: {line(candidate, 400)}"


def _cut(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= _MOST_TEXT else f"{shown[:_MOST_TEXT]}\n... {len(shown) - _MOST_TEXT} characters more"


def _plain(body: str) -> str:
    """Return a body without what the tracker changes: line ends, and blanks at the end."""
    return body.replace("\r\n", "\n").rstrip()


def _commands(action: Action) -> Iterator[tuple[str, ...]]:
    title, body = f"--title={action.title}", "--body-file=-"
    number = str(action.number)
    if action.kind == "create":
        yield ("gh", "issue", "create", f"--label={LABEL}", title, body)
    if action.kind in {"edit", "reopen"}:
        yield ("gh", "issue", "edit", number, title, body)
    if action.kind in {"reopen", "close"}:
        yield ("gh", "issue", action.kind, number)


def _gh(argv: tuple[str, ...], *, stdin: str | None = None) -> str:
    try:
        result = process.run(argv, stdin=stdin, timeout_s=_TIMEOUT_S)
    except errors.Missing as error:
        raise errors.Missing(error.message, hint="install GitHub's gh, or leave --issues out") from error
    if result.code:
        raise process.failed(argv, result.code, f"{result.stderr.rstrip()}\n{result.stdout}".lstrip("\n"))
    return result.stdout
