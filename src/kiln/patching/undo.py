"""What taking a series back needs and the ledger does not hold: the editions, RECORD as it was, modes, new folders.

One file beside the ledger, small and the same for the same tree and series: a line of JSON, then every edition as
it was read. Times are not in it, so a file that comes back is as old as the run that brings it back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching import errors, hunks, ledger, paths, record, strictjson
from kiln.patching.outcomes import digest
from kiln.patching.series import Patch, Series

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiln.patching.tree import Tree

NAME = "kiln-undo"
_MOST_LINES = 10_000_000
_FIELDS = ("schema", "editions", "record", "modes", "made")
_HIGHEST_MODE = 0o7777


@dataclass(frozen=True)
class Undo:
    """`modes` are those of the files that the series deletes, `made` the folders it creates, outermost first."""

    editions: tuple[bytes, ...]
    record: record.Before
    modes: tuple[tuple[str, int], ...]
    made: tuple[str, ...]


def render(undo: Undo) -> bytes:
    value = {
        "schema": 1,
        "editions": [len(data) for data in undo.editions],
        "record": {
            "sha256": undo.record.sha256,
            "ends": undo.record.ends,
            "lines": [{"at": place, "line": line.decode("latin-1")} for place, line in undo.record.lines],
        },
        "modes": dict(undo.modes),
        "made": list(undo.made),
    }
    return strictjson.line(value) + b"".join(undo.editions)


def parse(data: bytes) -> Undo:
    """Read what `render` wrote, and only that: anything else raises BadSeries or BadPath."""
    head, _, rest = data.partition(b"\n")
    fields = strictjson.fields(strictjson.load(head, NAME), _FIELDS, NAME)
    before = strictjson.fields(fields["record"], ("sha256", "ends", "lines"), f"{NAME}: record")
    found = Undo(
        editions=_cut(rest, strictjson.typed(fields["editions"], list, f"{NAME}: editions")),
        record=record.Before(
            sha256=strictjson.typed(before["sha256"], str, f"{NAME}: record: sha256"),
            ends=strictjson.typed(before["ends"], bool, f"{NAME}: record: ends"),
            lines=_lines(strictjson.typed(before["lines"], list, f"{NAME}: record: lines")),
        ),
        modes=_modes(strictjson.typed(fields["modes"], dict, f"{NAME}: modes")),
        made=strictjson.path_list(fields["made"], f"{NAME}: made"),
    )
    if render(found) != data:
        raise errors.BadSeries(f"{NAME}: not as it was written")
    return found


def series(held: ledger.Ledger, undo: Undo) -> Series:
    """Return the series that the tree itself holds; raise BadSeries where ledger and editions disagree."""
    if len(held.patches) != len(undo.editions):
        raise errors.BadSeries(f"{NAME}: {len(undo.editions)} editions, and {len(held.patches)} in {ledger.NAME}")
    found = Series(
        distribution=held.distribution,
        release=held.release,
        patches=tuple(
            Patch(id=entry.id, sha256=entry.edition_sha256, files=entry.files, data=data)
            for entry, data in zip(held.patches, undo.editions, strict=True)
        ),
    )
    changed = [patch.id for patch in found.patches if patch.changed]
    if changed:
        raise errors.BadSeries(f"{NAME}: not the edition that {ledger.NAME} names: {', '.join(changed)}")
    return found


def taken_back(applied: Series, tree: Tree) -> Mapping[str, bytes | None]:
    """Return what each file of the series was before it; raise BadSeries where the editions do not lead back."""
    state = {path: tree.read(path) for path in applied.chains()}
    for patch in reversed(applied.patches):
        diffs = patch.diffs()
        for change in patch.files:
            before = hunks.fit(diffs[change.path].back(), state[change.path])
            if isinstance(before, hunks.Misfit) or digest(before) != change.pre:
                raise errors.BadSeries(f"{NAME}: {patch.id}: does not lead back to {change.path} as it was")
            state[change.path] = before
    return state


def _cut(data: bytes, sizes: list[object]) -> tuple[bytes, ...]:
    editions = []
    at = 0
    for size in sizes:
        end = at + strictjson.typed(size, int, f"{NAME}: editions")
        editions.append(data[at:end])
        at = end
    return tuple(editions)


def _lines(rows: list[object]) -> tuple[tuple[int, bytes], ...]:
    where = f"{NAME}: record: lines"
    found = []
    for row in rows:
        fields = strictjson.fields(row, ("at", "line"), where)
        place = strictjson.typed(fields["at"], int, where)
        line = strictjson.typed(fields["line"], str, where)
        if not 0 <= place <= _MOST_LINES or any(character > "\xff" for character in line):
            raise errors.BadSeries(f"{where}: no line of a RECORD")
        found.append((place, line.encode("latin-1")))
    return tuple(found)


def _modes(rows: dict[str, object]) -> tuple[tuple[str, int], ...]:
    found = []
    for path, value in sorted(rows.items()):
        mode: int = strictjson.typed(value, int, f"{NAME}: modes: {path}")
        if not 0 <= mode <= _HIGHEST_MODE:
            raise errors.BadSeries(f"{NAME}: modes: {path}: no mode")
        found.append((paths.target(path), mode))
    return tuple(found)
