"""Series and tree in, what would be written out: hashes decide, and nothing is touched."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln.patching import errors, history, hunks
from kiln.patching import ledger as ledgers
from kiln.patching.outcomes import FileReport, Outcome, PatchReport, SeriesReport, digest, named, patch_report, worst

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.patching.diff import FileDiff
    from kiln.patching.series import FileChange, Patch, Series
    from kiln.patching.tree import Tree


@dataclass(frozen=True)
class Write:
    """The bytes that a file gets; None removes it. A file that is not there yet gets `mode`."""

    path: str
    data: bytes | None
    mode: int = 0o644


@dataclass(frozen=True)
class Plan:
    """`writes` is empty unless the outcome is APPLIED; `ledger` depends on the series alone."""

    report: SeriesReport
    writes: tuple[Write, ...]
    ledger: bytes


def plan(series: Series, tree: Tree, *, ledger: bytes | None = None) -> Plan:
    """Say what applying `series` to `tree` would do; `ledger` is the one that the tree holds now."""
    wanted = ledgers.of(series)
    rendered = ledgers.render(wanted)
    changed = _changed(series)
    if changed:
        return Plan(report=changed, writes=(), ledger=rendered)
    if ledger is None:
        report, writes = _computed(series, tree)
        return Plan(report=report, writes=writes, ledger=rendered)
    if ledger == rendered:
        return Plan(report=history.unchanged(wanted, tree), writes=(), ledger=rendered)
    return Plan(report=_other(ledger, wanted, tree), writes=(), ledger=rendered)


def _other(ledger: bytes, wanted: ledgers.Ledger, tree: Tree) -> SeriesReport:
    try:
        held = ledgers.parse(ledger, ledgers.NAME)
    except errors.BadInput as error:
        return unreadable(error)
    return history.compared(held, wanted, tree)


def unreadable(error: errors.BadInput) -> SeriesReport:
    """Report a ledger that says nothing."""
    hint = "reinstall the package and apply again"
    row = FileReport(ledgers.NAME, Outcome.UNKNOWN, "a ledger", error.message, hint=hint)
    return SeriesReport(outcome=Outcome.UNKNOWN, files=(row,), hint=hint)


def _changed(series: Series) -> SeriesReport | None:
    if not any(patch.changed for patch in series.patches):
        return None
    rows = tuple(
        _all(patch, Outcome.PATCH_CHANGED, f"{patch.edition} has sha256 {digest(patch.data)}, not {patch.sha256}")
        if patch.changed
        else _all(patch, Outcome.UNKNOWN, "not looked at: an edition of this series changed")
        for patch in series.patches
    )
    return SeriesReport(Outcome.PATCH_CHANGED, rows, hint="write the series again from editions that you trust")


def _all(patch: Patch, outcome: Outcome, hint: str) -> PatchReport:
    files = tuple(FileReport(change.path, outcome, named(change.post)) for change in patch.files)
    return PatchReport(patch.id, outcome, files, hint)


def _computed(series: Series, tree: Tree) -> tuple[SeriesReport, tuple[Write, ...]]:
    """Fit every edition to a tree that has no ledger."""
    fitting = _Fitting(series, tree)
    rows = tuple(patch_report(patch.id, tuple(fitting.rows(patch))) for patch in series.patches)
    rows = tuple(_compiled(row, fitting.state, series) for row in rows)
    outcome = worst(row.outcome for row in rows) if rows else Outcome.APPLIED
    if outcome is not Outcome.APPLIED:
        return _refused(rows, fitting, f"{series.distribution}=={series.release}"), ()
    changed = {
        path: fitting.state[path] for path in sorted(fitting.start) if fitting.state[path] != fitting.start[path]
    }
    return SeriesReport(outcome, rows), tuple(Write(path, data) for path, data in changed.items())


class _Fitting:
    """The files of a series while its patches are fitted to them, one after the other."""

    def __init__(self, series: Series, tree: Tree) -> None:
        self.start = {path: tree.read(path) for path in series.chains()}
        self.state = dict(self.start)
        self.broken: set[str] = set()
        self.beyond = {path for path, chain in series.chains().items() if self._beyond(path, chain)}
        self.finished = bool(self.start) and all(
            digest(self.start[path]) == chain[-1].post for path, chain in series.chains().items()
        )

    def _beyond(self, path: str, chain: list[FileChange]) -> bool:
        """Say whether a patch of this series is in the file already."""
        found = digest(self.start[path])
        return found != chain[0].pre and found in {change.post for change in chain}

    def rows(self, patch: Patch) -> Iterator[FileReport]:
        diffs = patch.diffs()
        for change in patch.files:
            row = self._row(change, diffs[change.path])
            if not row.outcome.done and row.outcome is not Outcome.TARGET_MODIFIED:
                self.broken.add(change.path)
            yield row

    def _row(self, change: FileChange, file: FileDiff) -> FileReport:
        path, before = change.path, self.state[change.path]
        found = named(digest(before))
        if path in self.beyond:
            outcome = Outcome.MERGED if self.finished else Outcome.HALF_APPLIED
            return FileReport(path, outcome, named(change.post), found)
        if path in self.broken:
            hint = "not tried: an earlier patch of the series does not fit this file"
            return FileReport(path, Outcome.UNKNOWN, named(change.pre), found, hint=hint)
        result = hunks.fit(file, before)
        if isinstance(result, hunks.Misfit):
            return FileReport(path, result.outcome, result.expected, result.found, result.hunk, result.hint)
        self.state[path] = result
        if found != named(change.pre):
            hint = "every hunk fits, but the file is not the one this edition is made for"
            return FileReport(path, Outcome.TARGET_MODIFIED, named(change.pre), found, hint=hint)
        if digest(result) != change.post:
            hint = "the edition gives other bytes than the series says; write the series again"
            return FileReport(path, Outcome.CONFLICT, named(change.post), named(digest(result)), hint=hint)
        return FileReport(path, Outcome.APPLIED, named(change.post), named(digest(result)))


def _compiled(row: PatchReport, state: dict[str, bytes | None], series: Series) -> PatchReport:
    """Compile what each module ends as; blame the last patch that touches it."""
    last = {change.path: patch.id for patch in series.patches for change in patch.files}
    files = []
    for file in row.files:
        data = state[file.path]
        problem = ""
        if file.outcome is Outcome.APPLIED and last[file.path] == row.id and data is not None:
            problem = _syntax_problem(file.path, data) if file.path.endswith(".py") else ""
        files.append(
            replace(file, outcome=Outcome.CONFLICT, expected="a module that compiles", found=problem)
            if problem
            else file
        )
    return patch_report(row.id, files, row.hint)


def _syntax_problem(path: str, data: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(data, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:  # NUL bytes, nesting too deep
        return str(error) or type(error).__name__
    return ""


def _refused(rows: tuple[PatchReport, ...], fitting: _Fitting, release: str) -> SeriesReport:
    """Turn every "would be applied" into what is so, as nothing gets written."""
    if fitting.finished:
        hint = f"the content is there already, without our ledger; drop these patches or reinstall {release}"
        return SeriesReport(Outcome.MERGED, rows, hint=hint)
    still, hint = Outcome.UNKNOWN, "left as it was: nothing is written unless the whole series fits"
    advice = f"make editions that fit these files, or reinstall {release} and apply again"
    if fitting.beyond:
        still, hint = Outcome.HALF_APPLIED, "this file is as before the patch, others are as after it"
        advice = f"some files are as after the series and some as before it; reinstall {release} and apply again"
    told = tuple(
        patch_report(
            row.id,
            tuple(
                replace(file, outcome=still, found=named(digest(fitting.start[file.path])), hint=hint)
                if file.outcome is Outcome.APPLIED
                else file
                for file in row.files
            ),
        )
        for row in rows
    )
    return SeriesReport(worst(row.outcome for row in told), told, hint=advice)
