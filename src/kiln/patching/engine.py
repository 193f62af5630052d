"""Applies a series to an installed distribution, says later whether it is still applied, and takes it back."""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from kiln.patching import bytecode, errors, history, journal, ledger, lock, paths, plan, record, undo
from kiln.patching.outcomes import (
    ABSENT,
    FileReport,
    Outcome,
    PatchReport,
    SeriesReport,
    digest,
    named,
    patch_report,
    worst,
)
from kiln.patching.tree import Directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from kiln.patching.plan import Plan
    from kiln.patching.roots import Root
    from kiln.patching.series import Series

WAIT_S = 30.0


def apply(series: Series, root: Root, *, wait_s: float = WAIT_S) -> SeriesReport:
    """Apply the whole series or nothing; waits up to `wait_s` seconds for another run on the same tree."""
    epoch = source_date_epoch()
    with _refusals(root):
        if ledger_bytes(root) is not None and not _interrupted(root):
            report = planned(series, root).report
            if report.outcome is Outcome.ALREADY_APPLIED:
                return _with(report, _stale_bytecode(series, root))
        from kiln.patching import transaction, writes

        with lock.held(root.metadata, wait_s=wait_s) as held:
            note = transaction.recover(root, held)
            found = planned(series, root)
            if found.report.outcome is Outcome.APPLIED:
                transaction.commit(root, writes.applying(series, found, root), held, epoch=epoch)
            return replace(found.report, hint=note or found.report.hint)


def revert(root: Root, series: Series | None = None, *, wait_s: float = WAIT_S) -> SeriesReport:
    """Take back the series that the ledger names (it must be `series`, where given), or change nothing.

    Files get the bytes and modes they had, and the time of this run; folders keep their times; RECORD is as it was;
    folders that the series made go when they are empty; bytecode is for Python to make again.
    """
    epoch = source_date_epoch()
    with _refusals(root):
        if ledger_bytes(root) is None and not _interrupted(root):
            return _nothing_to_revert(root, series)
        from kiln.patching import transaction

        with lock.held(root.metadata, wait_s=wait_s) as held:
            note = transaction.recover(root, held)
            report = _taken_back(root, series, held, epoch=epoch)
            return replace(report, hint=note or report.hint)


def verify(root: Root, series: Series | None = None) -> SeriesReport:
    """Say whether the tree holds the series (without one: what its ledger says), RECORD and bytecode included."""
    with _refusals(root):
        report = _status(root, series)
        return _with(report, _findings(root))


def _with(report: SeriesReport, rows: Iterable[FileReport]) -> SeriesReport:
    """Return the report with findings added to it, and to its outcome."""
    files = tuple(dict.fromkeys((*report.files, *rows)))
    return replace(report, outcome=worst([report.outcome, *(row.outcome for row in files)]), files=files)


def status(root: Root, series: Series | None = None) -> SeriesReport:
    """Say for every patch and file what the tree holds, by the hashes of the files and the ledger alone."""
    with _refusals(root):
        return _status(root, series)


def planned(series: Series, root: Root) -> Plan:
    """Return the plan for this series on this tree, as both are now."""
    tree = Directory(root.path)
    return plan.plan(series, tree, ledger=tree.read(f"{root.dist_info}/{ledger.NAME}"))


def ledger_bytes(root: Root) -> bytes | None:
    return Directory(root.path).read(f"{root.dist_info}/{ledger.NAME}")


def source_date_epoch() -> int | None:
    """Return the time that written files get: SOURCE_DATE_EPOCH where it is set."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise errors.BadInput(f"SOURCE_DATE_EPOCH={text!r}: not a number of seconds", hint="unset it, or: date +%s")
    if len(text) > len(str(journal.LATEST_EPOCH)) or int(text) > journal.LATEST_EPOCH:
        raise errors.BadInput(f"SOURCE_DATE_EPOCH={text[:40]}: too far away", hint="unset it, or: date +%s")
    return int(text)


def copy_ledger(root: Root, target: Path) -> None:
    """Write the ledger of the tree to `target` too, with its parents and under the same rule for times."""
    data = ledger_bytes(root)
    assert data is not None
    if target.is_file() and target.read_bytes() == data:
        return
    epoch = source_date_epoch()
    try:
        made = [parent for parent in target.parents if not parent.exists()]
        above = (made[-1] if made else target).parent
        mtime_ns = above.stat().st_mtime_ns if epoch is None else epoch * 10**9
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        for path in (target, *made) if epoch is not None else ():
            os.utime(path, ns=(mtime_ns, mtime_ns))
        os.utime(above, ns=(mtime_ns, mtime_ns))
    except OSError as error:
        raise errors.CannotWrite(
            f"{target}: {error.strerror}", hint="the series is applied; only the copy failed"
        ) from error


def _interrupted(root: Root) -> bool:
    """Say whether a run goes on in this tree, or was killed in it."""
    return any((root.metadata / name).exists() for name in (journal.NAME, lock.NAME))


def _status(root: Root, series: Series | None) -> SeriesReport:
    left = tuple(_pending(root))
    report = _without_series(root) if series is None else _with_series(series, root)
    if left:
        return replace(report, outcome=Outcome.HALF_APPLIED, files=(*left, *report.files), hint=left[0].hint)
    return report


@contextlib.contextmanager
def _refusals(root: Root) -> Iterator[None]:
    """Turn what the system refuses into a named failure."""
    try:
        yield
    except OSError as error:
        message = f"{root.path}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
        hint = "the tree is as it was, unless a journal is left in it; free space or mount it writable, then run again"
        if error.errno in {errno.EACCES, errno.EPERM}:
            hint = "run this as the owner of these files; the tree is as it was, unless a journal is left in it"
        raise errors.CannotWrite(message, hint=hint) from error


def _pending(root: Root) -> Iterator[FileReport]:
    """Name the files of a killed run, each as it is now; none when no run was killed."""
    meant = journal.read(root.metadata)
    tree = Directory(root.path)
    hint = "a run was killed here; run it again, it will finish or roll back"
    for step in meant.steps if meant else ():
        found = named(digest(tree.read(step.path)))
        yield FileReport(step.path, Outcome.HALF_APPLIED, named(step.post), found, hint=hint)


def _residue(root: Root) -> Iterator[FileReport]:
    """Name what is left of a series whose ledger is gone."""
    if _undo_bytes(root) is not None:
        yield FileReport(undo.NAME, Outcome.STALE_RESIDUE, ABSENT, "a file", hint="the ledger beside it is gone")


def _nothing_to_revert(root: Root, series: Series | None) -> SeriesReport:
    """Report a tree without a ledger: as reverted, unless there is a trace of a series after all."""
    residue = tuple(_residue(root))
    if residue:
        return SeriesReport(Outcome.STALE_RESIDUE, files=residue, hint=_REINSTALL)
    if series is not None:
        report = planned(series, root).report
        if report.outcome is not Outcome.APPLIED:
            return report
    return SeriesReport(Outcome.REVERTED, hint=_NOTHING)


def _taken_back(root: Root, series: Series | None, held: lock.Held, *, epoch: int | None) -> SeriesReport:
    data = ledger_bytes(root)
    if data is None:
        return _nothing_to_revert(root, series)
    report = _without_series(root) if series is None else planned(series, root).report
    if report.outcome is not Outcome.ALREADY_APPLIED:
        return report
    try:
        kept = undo.parse(_undo_bytes(root) or b"")
        applied = undo.series(ledger.parse(data, ledger.NAME), kept)
        before = undo.taken_back(applied, Directory(root.path))
    except errors.BadInput as error:
        row = FileReport(undo.NAME, Outcome.UNKNOWN, "the file that the apply wrote", error.message, hint=_REINSTALL)
        return replace(report, outcome=Outcome.UNKNOWN, files=(row,), hint=_REINSTALL)
    from kiln.patching import transaction, writes

    found = writes.reverting(before, kept, root)
    if found is None:
        hint = f"another program changed RECORD after the apply; {_REINSTALL}"
        row = FileReport(f"{root.dist_info}/RECORD", Outcome.TARGET_MODIFIED, kept.record.sha256, hint=hint)
        return replace(report, outcome=Outcome.TARGET_MODIFIED, files=(row,), hint=hint)
    transaction.commit(root, found, held, epoch=epoch, gone=writes.folders(kept))
    rows = tuple(
        patch_report(
            patch.id,
            [FileReport(file.path, Outcome.REVERTED, named(file.pre), named(file.pre)) for file in patch.files],
        )
        for patch in applied.patches
    )
    return SeriesReport(Outcome.REVERTED, rows)


def _undo_bytes(root: Root) -> bytes | None:
    return Directory(root.path).read(f"{root.dist_info}/{undo.NAME}")


def _with_series(series: Series, root: Root) -> SeriesReport:
    report = planned(series, root).report
    if report.outcome is not Outcome.APPLIED:
        return report
    rows = tuple(
        PatchReport(
            row.id,
            Outcome.UNKNOWN,
            tuple(replace(file, outcome=Outcome.UNKNOWN, found="as before the patch") for file in row.files),
            "not applied; the files are ready for it",
        )
        for row in report.patches
    )
    return SeriesReport(Outcome.UNKNOWN, rows, hint=_NO_LEDGER)


def _without_series(root: Root) -> SeriesReport:
    data = ledger_bytes(root)
    if data is None:
        return SeriesReport(Outcome.UNKNOWN, hint=_NO_LEDGER)
    try:
        held = ledger.parse(data, ledger.NAME)
    except errors.BadInput as error:
        return plan.unreadable(error)
    return history.unchanged(held, Directory(root.path))


def _findings(root: Root) -> Iterator[FileReport]:
    """Check what hashes do not: RECORD lines, bytecode and leftovers of every file that the ledger names."""
    held = ledger_bytes(root)
    if held is None:
        yield from _residue(root)
        return
    try:
        entries = ledger.parse(held, ledger.NAME).patches
    except errors.BadInput as error:
        yield from plan.unreadable(error).files
        return
    tree = Directory(root.path)
    files = {path: tree.read(path) for path in sorted({change.path for entry in entries for change in entry.files})}
    if _undo_bytes(root) is None:
        yield FileReport(undo.NAME, Outcome.TARGET_MODIFIED, "a file", ABSENT, hint="revert will not be possible")
    where, own = f"{root.dist_info}/RECORD", f"{root.dist_info}/{undo.NAME}"
    lines = {**files, own: _undo_bytes(root), f"{root.dist_info}/{ledger.NAME}": held}
    for _, expected, found in record.untrue(tree.read(where) or b"", lines):
        yield FileReport(where, Outcome.TARGET_MODIFIED, expected, found, hint="RECORD does not tell the truth")
    yield from _stale(tree, files)
    yield from _droppings(tree, files)


def _stale_bytecode(series: Series, root: Root) -> Iterator[FileReport]:
    """Name the bytecode that Python would run instead of what the series has put there."""
    tree = Directory(root.path)
    yield from _stale(tree, {path: tree.read(path) for path in sorted(series.chains())})


def _stale(tree: Directory, files: Mapping[str, bytes | None]) -> Iterator[FileReport]:
    for path, source in files.items():
        for compiled, problem in bytecode.stale(tree, path, source):
            yield FileReport(compiled, Outcome.STALE_RESIDUE, f"bytecode of {path}", problem, hint="remove this file")


def _droppings(tree: Directory, files: Iterable[str]) -> Iterator[FileReport]:
    """Name what a patching tool or a killed run left beside the files of a series."""
    for path in files:
        folder, _, name = path.rpartition("/")
        left = {name + suffix for suffix in paths.DROPPINGS}.intersection(tree.names(folder) if folder else ())
        for each in sorted(left):
            where = f"{folder}/{each}"
            yield FileReport(where, Outcome.STALE_RESIDUE, ABSENT, "left by a patching tool", hint="remove this file")


_REINSTALL = "reinstall the package"
_NOTHING = "nothing to revert: no series was applied to this tree, it has no ledger"
_NO_LEDGER = "no ledger: no series was applied to this tree"
