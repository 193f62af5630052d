"""Turns what a series changes into everything a transaction writes: modules, bytecode away, RECORD, undo, ledger."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from kiln.patching import bytecode, ledger, record, transaction, undo
from kiln.patching.outcomes import digest
from kiln.patching.plan import Write
from kiln.patching.tree import Directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kiln.patching.plan import Plan
    from kiln.patching.roots import Root
    from kiln.patching.series import Series


def applying(series: Series, found: Plan, root: Root) -> tuple[Write, ...]:
    """Return the writes of an apply, the ledger last."""
    tree = Directory(root.path)
    names, where = _own(root), f"{root.dist_info}/RECORD"
    held = _record(tree, where)
    kept = undo.Undo(
        editions=tuple(patch.data for patch in series.patches),
        record=record.before(held, {*names, *(write.path for write in found.writes)}),
        modes=tuple((write.path, _mode(tree, write.path)) for write in found.writes if write.data is None),
        made=transaction.missing_folders(root, (write.path for write in found.writes)),
    )
    own = (Write(names[0], undo.render(kept)), Write(names[1], found.ledger))
    after = record.updated(held, {write.path: write.data for write in (*found.writes, *own)})
    return (*found.writes, *_compiled(tree, found.writes), Write(where, after), *own)


def reverting(before: Mapping[str, bytes | None], kept: undo.Undo, root: Root) -> tuple[Write, ...] | None:
    """Return the writes that give files the bytes of `before`, or None when RECORD is not as the apply left it."""
    tree = Directory(root.path)
    names, where = _own(root), f"{root.dist_info}/RECORD"
    modes = dict(kept.modes)
    changed = {path: data for path, data in sorted(before.items()) if digest(tree.read(path)) != digest(data)}
    modules = tuple(Write(path, data, modes.get(path, Write.mode)) for path, data in changed.items())
    held = record.restored(_record(tree, where), {*names, *changed}, kept.record)
    if held is None:
        return None
    return (*modules, *_compiled(tree, modules), Write(where, held), *(Write(name, None) for name in names))


def folders(kept: undo.Undo) -> tuple[str, ...]:
    """Return the folders that an apply made and Python may have filled with bytecode since, outermost first."""
    return tuple(sorted({*kept.made, *(f"{folder}/__pycache__" for folder in kept.made)}))


def _own(root: Root) -> tuple[str, str]:
    return f"{root.dist_info}/{undo.NAME}", f"{root.dist_info}/{ledger.NAME}"


def _compiled(tree: Directory, modules: Iterable[Write]) -> tuple[Write, ...]:
    return tuple(Write(path, None) for write in modules for path in bytecode.files(tree, write.path))


def _record(tree: Directory, where: str) -> bytes:
    data = tree.read(where)
    assert data is not None, "roots.find has seen it"
    return data


def _mode(tree: Directory, path: str) -> int:
    return stat.S_IMODE(tree.locate(path).stat().st_mode)
