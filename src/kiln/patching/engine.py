"""Applies a series to an installed distribution, and says later whether it is still applied."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from kiln.patching import bytecode, errors, history, journal, ledger, lock, plan, record, transaction
from kiln.patching.outcomes import FileReport, Outcome, PatchReport, SeriesReport, worst
from kiln.patching.plan import Plan, Write
from kiln.patching.tree import Directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.patching.roots import Root
    from kiln.patching.series import Series

WAIT_S = 30.0


def apply(series: Series, root: Root, *, wait_s: float = WAIT_S) -> SeriesReport:
    """Apply the whole series or nothing; waits up to `wait_s` seconds for another run on the same tree."""
    epoch = source_date_epoch()
    if ledger_bytes(root) is not None and not _interrupted(root):
        report = planned(series, root).report
        if report.outcome is Outcome.ALREADY_APPLIED:
            return report
    try:
        with lock.held(root.metadata, wait_s=wait_s) as held:
            note = transaction.recover(root, held)
            found = planned(series, root)
            if found.report.outcome is Outcome.APPLIED:
                transaction.commit(root, _writes(found, root), held, epoch=epoch)
            return replace(found.report, hint=note or found.report.hint)
    except OSError as error:
        message = f"{root.path}: {error.strerror or error}: {error.filename or ''}".rstrip(": ")
        hint = "the tree is as it was, unless a journal is left in it; free space or mount it writable, then run again"
        raise errors.CannotWrite(message, hint=hint) from error


def verify(root: Root, series: Series | None = None) -> SeriesReport:
    """Say whether the tree holds the series (without one: what its ledger says), RECORD and bytecode included."""
    report = status(root, series)
    held = ledger_bytes(root)
    try:
        extra = (*report.files, *(() if held is None else _findings(root, held)))
    except errors.BadInput as error:
        extra = (*report.files, *plan.unreadable(error).files)
    return replace(
        report, outcome=worst([report.outcome, *(row.outcome for row in extra)]), files=tuple(dict.fromkeys(extra))
    )


def status(root: Root, series: Series | None = None) -> SeriesReport:
    """Say for every patch and file what the tree holds, by the hashes of the files and the ledger alone."""
    left = transaction.pending(root)
    report = _without_series(root) if series is None else _with_series(series, root)
    if left:
        return replace(report, outcome=Outcome.HALF_APPLIED, files=(*left, *report.files), hint=left[0].hint)
    return report


def planned(series: Series, root: Root) -> Plan:
    """Return the plan for this series on this tree, as both are now."""
    return plan.plan(series, Directory(root.path), ledger=ledger_bytes(root))


def ledger_bytes(root: Root) -> bytes | None:
    return Directory(root.path).read(f"{root.dist_info}/{ledger.NAME}")


def source_date_epoch() -> int | None:
    """Return the time that written files get: SOURCE_DATE_EPOCH where it is set."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit()):
        raise errors.BadInput(f"SOURCE_DATE_EPOCH={text!r}: not a number of seconds", hint="unset it, or: date +%s")
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


def _writes(found: Plan, root: Root) -> tuple[Write, ...]:
    """Return everything a transaction writes: modules, their bytecode away, RECORD, and the ledger last."""
    tree = Directory(root.path)
    compiled = tuple(Write(path, None) for write in found.writes for path in bytecode.files(tree, write.path))
    own = Write(f"{root.dist_info}/{ledger.NAME}", found.ledger)
    where = f"{root.dist_info}/RECORD"
    before = tree.read(where)
    assert before is not None
    after = record.updated(before, {write.path: write.data for write in (*found.writes, own)})
    return (*found.writes, *compiled, Write(where, after), own)


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
        return history.unchanged(ledger.parse(data, ledger.NAME), Directory(root.path))
    except errors.BadInput as error:
        return plan.unreadable(error)


def _findings(root: Root, held: bytes) -> Iterator[FileReport]:
    """Check what hashes do not: RECORD lines and bytecode of every file that the ledger names."""
    tree = Directory(root.path)
    names = {change.path for entry in ledger.parse(held, ledger.NAME).patches for change in entry.files}
    files = {path: tree.read(path) for path in sorted(names)}
    where = f"{root.dist_info}/RECORD"
    lines = {**files, f"{root.dist_info}/{ledger.NAME}": held}
    for _, expected, found in record.untrue(tree.read(where) or b"", lines):
        yield FileReport(where, Outcome.TARGET_MODIFIED, expected, found, hint="RECORD does not tell the truth")
    for path, source in files.items():
        for compiled, problem in bytecode.stale(tree, path, source):
            yield FileReport(compiled, Outcome.STALE_RESIDUE, f"bytecode of {path}", problem, hint="remove this file")


_NO_LEDGER = "no ledger: no series was applied to this tree"
