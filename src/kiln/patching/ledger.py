"""The record, inside the patched tree, of what was applied to which bytes; the same series gives the same bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching import errors, series, strictjson
from kiln.patching.outcomes import digest

if TYPE_CHECKING:
    from kiln.patching.series import FileChange, Series

NAME = "kiln-ledger.json"


@dataclass(frozen=True)
class Entry:
    id: str
    edition_sha256: str
    files: tuple[FileChange, ...]


@dataclass(frozen=True)
class Ledger:
    distribution: str
    release: str
    series: str
    patches: tuple[Entry, ...]


def of(source: Series) -> Ledger:
    """Return the ledger that a tree holds once `source` is applied to it."""
    patches = tuple(Entry(patch.id, patch.sha256, patch.files) for patch in source.patches)
    return Ledger(source.distribution, source.release, _identity(patches), patches)


def render(ledger: Ledger) -> bytes:
    return strictjson.render(
        {
            "schema": series.SCHEMA,
            "distribution": ledger.distribution,
            "release": ledger.release,
            "series": ledger.series,
            "patches": _rows(ledger.patches),
        }
    )


def parse(data: bytes, where: str) -> Ledger:
    """Read what `render` wrote, and only that: one changed byte raises BadSeries."""
    fields = strictjson.fields(
        strictjson.load(data, where), ("schema", "distribution", "release", "series", "patches"), where
    )
    patches = []
    for n, row in enumerate(strictjson.typed(fields["patches"], list, f"{where}: patches")):
        entry = strictjson.fields(row, ("id", "edition_sha256", "files"), f"{where}: patches[{n}]")
        files = series.changes(entry["files"], f"{where}: patches[{n}]: files")
        patches.append(Entry(str(entry["id"]), str(entry["edition_sha256"]), files))
    found = Ledger(str(fields["distribution"]), str(fields["release"]), str(fields["series"]), tuple(patches))
    if found.series != _identity(found.patches) or render(found) != data:
        raise errors.BadSeries(f"{where}: not as it was written")
    return found


def _identity(patches: tuple[Entry, ...]) -> str:
    """Return the sha256 that names a series: over ids, editions and files, in order."""
    return str(digest(strictjson.render({"patches": _rows(patches)})))


def _rows(patches: tuple[Entry, ...]) -> list[dict[str, object]]:
    return [
        {"id": entry.id, "edition_sha256": entry.edition_sha256, "files": series.changes_as_json(entry.files)}
        for entry in patches
    ]
