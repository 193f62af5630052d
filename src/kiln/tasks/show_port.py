"""Prints how a port ended: its files, and beside each problem what upstream did there, or JSON and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kiln import errors, report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.port.records import Problem
    from kiln.port.run import Ported
    from kiln.port.upstream_change import Change

_HEADERS = ("file", "outcome", "where")
_ID_SHOWN = 12


def show_port(found: Ported, *, json: bool) -> None:
    """Print how a port ended; raises NotApplied for a conflict, Findings where the gate has refused the edition."""
    if json:
        print(report.as_json(_data(found)))
    else:
        print(report.table(_HEADERS, list(_rows(found))))
        for problem, change in found.problems:
            print("\n".join(_problem(problem, change)))
        for each in found.findings:
            print(f"{each.where}: {each.problem}{f'{chr(10)}  next: {each.hint}' if each.hint else ''}")
    what = f"{found.patch}, edition {found.origin}, on {found.to}"
    if found.state == "conflict":
        count = len(found.problems)
        raise errors.NotApplied(
            f"{what}: {count} problem{'s' * (count > 1)}; no edition was written", hint=_next(found)
        )
    if found.state == "refused":
        raise errors.Findings(f"{what}: it merges, but was refused; no edition was written", hint=_next(found))
    if not json:
        print(_END[found.state].format(what=what, patch=found.patch, to=found.to))


_END = {
    "written": "{what}: written to patches/{patch}/{to}.patch; next: git diff patches/{patch}",
    "fits": "{what}: it merges and passes its probe; nothing was written (--dry-run)",
    "merged": "{what}: MERGED, the release has every line; nothing was written; next: ./inv drift --patch {patch}",
}


def _next(found: Ported) -> str:
    if found.worktree is None:
        return f"./inv patch.port {found.patch} --to {found.to} (without --dry-run it opens a worktree)"
    return f"edit the files under {found.worktree}, then: ./inv patch.export {found.patch} --release {found.to}"


def _rows(found: Ported) -> Iterator[tuple[str, str, str]]:
    """Yield a row for each problem, and one for each file that has none."""
    for path in found.files:
        source = "; ".join(_moves(found, path))
        own = [problem for problem, _ in found.problems if problem.path == path]
        for problem in own:
            yield path, problem.outcome.value, f"hunk {problem.hunk}" if problem.hunk else "the whole file"
        if not own:
            yield path, "MERGED" if found.state == "merged" else "clean", source


def _moves(found: Ported, path: str) -> Iterator[str]:
    """Yield what was moved into a file: another one, or functions and classes of it."""
    for old in (old for old, new in found.moved.items() if new == path):
        names = ", ".join(found.definitions.get(old, ()))
        yield f"{names} moved from {old}" if names else f"moved from {old}"


def _problem(problem: Problem, change: Change) -> Iterator[str]:
    yield ""
    yield f"{problem.outcome.value} {problem.path}{f', hunk {problem.hunk}' if problem.hunk else ''}"
    rows = (("expected", problem.expected), ("found", problem.found), ("next", problem.hint))
    yield from (f"  {name + ':':<9} {text}" for name, text in rows if text)
    yield from (f"  {'see:':<9} {path}" for path in problem.candidates)
    if change.diff:
        yield "  what upstream changed there:"
        yield from (f"    {line}" for line in change.diff.splitlines())
    for commit in change.commits:
        about = "" if change.exact else " (changed the file)"
        yield f"    {commit.id[:_ID_SHOWN]} {commit.date} {commit.subject}{about}"


def _data(found: Ported) -> dict[str, Any]:
    """Return plain JSON data; a diff and a path are text."""
    rows = [
        asdict(problem) | {"outcome": problem.outcome.value, "upstream": asdict(change)}
        for problem, change in found.problems
    ]
    return {
        "patch": found.patch,
        "release": found.to,
        "origin": found.origin,
        "outcome": found.state,
        "files": [{"path": path, "outcome": outcome, "where": where} for path, outcome, where in _rows(found)],
        "moved": dict(found.moved),
        "definitions": {path: list(names) for path, names in found.definitions.items()},
        "problems": rows,
        "findings": [asdict(each) for each in found.findings],
        "diff": found.diff.decode("utf-8", "replace"),
        "worktree": str(found.worktree) if found.worktree else None,
    }
