"""Makes the records of editions from their bytes and the files they are for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.patching import diff, errors, hunks
from kiln.patching.outcomes import FileReport, digest, patch_report
from kiln.patching.series import FileChange, Patch, Series

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kiln.patching.tree import Tree


def edition(patch_id: str, data: bytes, tree: Tree) -> Patch:
    """Return the patch with pre and post as `tree` gives them; raise DoesNotApply where it does not fit."""
    return _fitted(patch_id, data, tree)[0]


def series(distribution: str, release: str, editions: Iterable[tuple[str, bytes]], tree: Tree) -> Series:
    """Return the series of (id, edition) pairs, each fitted to what the ones before it leave."""
    patches = []
    state: dict[str, bytes | None] = {}
    for patch_id, data in editions:
        patch, after = _fitted(patch_id, data, _Over(tree, state))
        patches.append(patch)
        state.update(after)
    return Series(distribution=distribution, release=release, patches=tuple(patches))


class _Over:
    """A tree with some files replaced or, where None, removed."""

    def __init__(self, tree: Tree, state: dict[str, bytes | None]) -> None:
        self._tree = tree
        self._state = state

    def read(self, path: str) -> bytes | None:
        return self._state[path] if path in self._state else self._tree.read(path)


def _fitted(patch_id: str, data: bytes, tree: Tree) -> tuple[Patch, dict[str, bytes | None]]:
    changes = []
    misfits = []
    state: dict[str, bytes | None] = {}
    for file in sorted(diff.parse(data, f"{patch_id}.patch"), key=lambda file: file.path):
        before = tree.read(file.path)
        after = hunks.fit(file, before)
        if isinstance(after, hunks.Misfit):
            row = FileReport(file.path, after.outcome, after.expected, after.found, after.hunk, after.hint)
            misfits.append(row)
            continue
        changes.append(FileChange(path=file.path, pre=digest(before), post=digest(after)))
        state[file.path] = after
    if misfits:
        where = ", ".join(row.path for row in misfits)
        raise errors.DoesNotApply(f"{patch_id}: does not fit {where}", report=patch_report(patch_id, misfits))
    return Patch(id=patch_id, sha256=str(digest(data)), files=tuple(changes), data=data), state
