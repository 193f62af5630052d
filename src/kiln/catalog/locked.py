"""Reads images/lock.json, and says where it is not what images/releases.yaml would be locked to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln import errors, report
from kiln.catalog import lock_records, records

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK = Path("images/lock.json")
HINT = "./inv lock"
_RELEASES = "images/releases.yaml"
_MAX_BYTES = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Pinned:
    """An image of the catalog, and the places that name it: (release, "cuda" or "rocm" or "twin")."""

    pin: records.ImagePin
    uses: tuple[tuple[str, str], ...]

    @property
    def at(self) -> str:
        """The first of them as keys of releases.yaml."""
        return _at(*self.uses[0])

    @property
    def releases(self) -> tuple[str, ...]:
        """Return the releases whose real images are made of it."""
        return tuple(release for release, kind in self.uses if kind != "twin")


def pins(releases: records.Releases) -> dict[str, Pinned]:
    """Return every image of the catalog by its tag reference, in order; raises BadInput where two places differ."""
    found: dict[str, Pinned] = {}
    problems = []
    for release, kind, pin in _pins(releases):
        before = found.get(pin.reference, Pinned(pin=pin, uses=()))
        if before.pin != pin:
            problems.append(f"{_RELEASES}: {_at(release, kind)}: other digests of {pin.reference} than {before.at}")
        found[pin.reference] = Pinned(pin=before.pin, uses=(*before.uses, (release, kind)))
    if problems:
        raise errors.BadInput("\n".join(problems))
    return dict(sorted(found.items()))


def inputs_sha256(pin: records.ImagePin) -> str:
    """Return the checksum of what a person wrote about an image; keys that are left out count for nothing."""
    data = pin.model_dump(mode="json", exclude_none=True)
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read(root: Path) -> bytes:
    """Return the text of the lock, which is one JSON object without a key given twice; raises BadInput."""
    path = root / LOCK
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise errors.BadInput(f"{LOCK}: is larger than {_MAX_BYTES} bytes")
        json.loads(data, object_pairs_hook=_once)
    except OSError as error:
        raise errors.BadInput(f"{LOCK}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise errors.BadInput(f"{LOCK}: is not what {HINT} writes: {error}") from error
    return data


def text(lock: lock_records.Lock) -> str:
    """Return the one form of the file: the same lock gives the same bytes."""
    return report.as_json(lock.model_dump(mode="json")) + "\n"


def sealed(entry: lock_records.LockedImage) -> lock_records.LockedImage:
    """Return an entry with the checksum over itself, without which it is not believed."""
    data = entry.model_dump(mode="json", exclude={"sha256"}, exclude_defaults=True)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return entry.model_copy(update={"sha256": hashlib.sha256(text.encode()).hexdigest()})


def damaged(lock: lock_records.Lock) -> frozenset[str]:
    """Return the images whose entry is not what was sealed: somebody edited it, or merged it badly."""
    return frozenset(name for name, entry in lock.images.items() if entry.sha256 != sealed(entry).sha256)


def problems(releases: records.Releases, lock: lock_records.Lock) -> Iterator[str]:
    """Yield what a person edited without locking it: images that are new, changed or gone."""
    try:
        wanted = pins(releases)
    except errors.BadInput as error:
        yield from error.message.splitlines()
        return
    broken = damaged(lock)
    for reference, pinned in wanted.items():
        entry, pin = lock.images.get(reference), pinned.pin
        if entry is None:
            yield f"{LOCK}: {reference} is not locked, and {_RELEASES}: {pinned.at} names it; lock it: {HINT}"
        elif (entry.repository, entry.tag) != (pin.repository, pin.tag):
            yield f"{LOCK}: {reference}: holds {entry.repository}:{entry.tag}; lock it again: {HINT}"
        elif entry.inputs_sha256 != inputs_sha256(pin):
            yield f"{LOCK}: {reference}: {_RELEASES}: {pinned.at} was edited after it was locked; lock it again: {HINT}"
        elif reference in broken:
            yield f"{LOCK}: {reference}: was changed by something else than {HINT}; lock it again: {HINT}"
    for reference in sorted(lock.images.keys() - wanted.keys()):
        yield f"{LOCK}: {reference}: no release has this image any more; lock again: {HINT}"


def _pins(releases: records.Releases) -> Iterator[tuple[str, str, records.ImagePin]]:
    for release, each in releases.releases.items():
        yield release, "cuda", each.cuda.image
        yield release, "rocm", each.rocm.image
        if each.twin and isinstance(each.twin.base, records.ImagePin):
            yield release, "twin", each.twin.base


def _at(release: str, kind: str) -> str:
    return f"releases.{release}.twin.base" if kind == "twin" else f"releases.{release}.{kind}.image"


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is given twice")
    return found
