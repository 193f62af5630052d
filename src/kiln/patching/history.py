"""What the ledger in a tree says, held against the files and against the series that is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.patching.outcomes import FileReport, Outcome, PatchReport, SeriesReport, digest, named, patch_report, worst

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.patching.ledger import Entry, Ledger
    from kiln.patching.series import FileChange
    from kiln.patching.tree import Tree

TAKE_BACK = "kiln-patch.pyz revert && kiln-patch.pyz apply --series DIR"  # the command line puts its own in its place


def unchanged(ledger: Ledger, tree: Tree) -> SeriesReport:
    """Say for every patch whether its files are still what the ledger says."""
    rows = tuple(patch_report(entry.id, _standing(ledger, entry, tree)) for entry in ledger.patches)
    return SeriesReport(outcome=worst(row.outcome for row in rows), patches=rows)


def compared(ledger: Ledger, wanted: Ledger, tree: Tree) -> SeriesReport:
    """Say how the applied series (`ledger`) differs from the `wanted` one."""
    applied = {entry.id: entry for entry in ledger.patches}
    rows = [_against(applied.get(entry.id), entry, ledger, tree) for entry in wanted.patches]
    ids = {entry.id for entry in wanted.patches}
    rows += [_residue(entry, ledger, tree) for entry in ledger.patches if entry.id not in ids]
    outcome = worst(row.outcome for row in rows)
    if outcome.done:
        outcome = Outcome.PATCH_CHANGED  # the same patches in another order, or for another release
    whole = unchanged(ledger, tree).outcome.done and ledger.release == wanted.release
    next_step = TAKE_BACK if whole else f"reinstall {_release(wanted)} and apply again"
    hint = f"the tree holds series {ledger.series}, not {wanted.series}; {next_step}"
    return SeriesReport(outcome=outcome, patches=tuple(rows), hint=hint)


def _against(applied: Entry | None, entry: Entry, ledger: Ledger, tree: Tree) -> PatchReport:
    if applied is None:
        files = tuple(
            FileReport(change.path, Outcome.UNKNOWN, named(change.post), named(digest(tree.read(change.path))))
            for change in entry.files
        )
        return PatchReport(entry.id, Outcome.UNKNOWN, files, "not in the series that this tree holds; not applied")
    if applied != entry:
        files = tuple(
            FileReport(change.path, Outcome.PATCH_CHANGED, named(change.post), named(digest(tree.read(change.path))))
            for change in entry.files
        )
        hint = f"applied from edition {applied.edition_sha256}, the series now has {entry.edition_sha256}"
        return PatchReport(entry.id, Outcome.PATCH_CHANGED, files, hint)
    return patch_report(entry.id, _standing(ledger, entry, tree))


def _residue(entry: Entry, ledger: Ledger, tree: Tree) -> PatchReport:
    files = tuple(
        FileReport(row.path, Outcome.STALE_RESIDUE, _pre(entry, row.path), row.found, hint=row.hint)
        for row in _standing(ledger, entry, tree)
    )
    hint = "this patch left the series, its changes are still in the tree"
    return PatchReport(entry.id, Outcome.STALE_RESIDUE, files, hint)


def _standing(ledger: Ledger, entry: Entry, tree: Tree) -> Iterator[FileReport]:
    last = {change.path: change for each in ledger.patches for change in each.files}
    for change in entry.files:
        found = digest(tree.read(change.path))
        yield _row(last[change.path], found, _release(ledger))


def _row(last: FileChange, found: str | None, release: str) -> FileReport:
    if found == last.post:
        return FileReport(last.path, Outcome.ALREADY_APPLIED, named(last.post), named(found))
    back = "the file is as it was before the patch" if found == last.pre else "the file was edited after the patch"
    hint = f"{back}; reinstall {release} and apply again"
    return FileReport(last.path, Outcome.TARGET_MODIFIED, named(last.post), named(found), hint=hint)


def _pre(entry: Entry, path: str) -> str:
    return next(named(change.pre) for change in entry.files if change.path == path)


def _release(ledger: Ledger) -> str:
    return f"{ledger.distribution}=={ledger.release}"
