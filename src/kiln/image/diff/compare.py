"""Compares two images: what they say of themselves, their layers, and the files in the layers that only one has.

Layers that both have are not read. So where they share some, a file in one image's own layers may be new or changed:
it is then said which image wrote or deleted it, and no more. Pins, patches and packages are those of the own layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kiln.image.diff import facts
from kiln.registry import layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.image.diff.facts import Facts
    from kiln.registry.image import RemoteImage
    from kiln.registry.layers import Changes, Found
    from kiln.registry.records import Descriptor
    from kiln.registry.saved import SavedImage

    Comparable = RemoteImage | SavedImage

Surely = Literal["added", "removed", "changed"]
Above = Literal["written by A", "written by B", "deleted by A", "deleted by B", "emptied by A", "emptied by B"]
How = Surely | Above


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer that the other image does not have; `size` is as it is pushed."""

    number: int
    digest: str
    size: int
    made_by: str


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two images; `layers` are its own, above those that are shared."""

    name: str
    digest: str
    size: int
    layer_count: int
    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A value that differs; None where an image has none."""

    what: str
    a: str | None
    b: str | None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file or link of an image: `mode` its permission bits, `sha256` of a file, `link` where a link leads."""

    kind: str
    size: int
    mode: str
    sha256: str
    link: str


@dataclass(frozen=True, kw_only=True)
class FileChange:
    """A path that is not the same; an entry is None where the image, or its own layers, have none."""

    path: str
    how: How
    a: Entry | None = None
    b: Entry | None = None


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What differs between A and B; `shared_layers` and `shared_bytes` are of the lowest layers, which both have."""

    a: Side
    b: Side
    shared_layers: int
    shared_bytes: int
    pins: tuple[Change, ...]
    patches: tuple[Change, ...]
    python: tuple[Change, ...]
    debian: tuple[Change, ...]
    settings: tuple[Change, ...]
    environment: tuple[Change, ...]
    labels: tuple[Change, ...]
    files: tuple[FileChange, ...]


def compare(names: tuple[str, str], a: Comparable, b: Comparable, *, progress: Callable[[str], None]) -> Diff:
    """Read the layers that only one of the two has, and return all that differs."""
    shared = _shared(a, b)
    own_a, own_b = (_read(image, shared, progress) for image in (a, b))
    removed_a, removed_b = facts.python_removed(own_a.removed), facts.python_removed(own_b.removed)
    debian_a, debian_b = _debian(a, own_a, own_b, progress), _debian(b, own_b, own_a, progress)
    # what one image took away of the shared layers, the other still has
    return Diff(
        a=_side(names[0], a, shared),
        b=_side(names[1], b, shared),
        shared_layers=shared,
        shared_bytes=_bytes(a.layers[:shared]),
        pins=_changes(facts.pins(own_a.found), facts.pins(own_b.found)),
        patches=_changes(facts.patches(own_a.found), facts.patches(own_b.found)),
        python=_changes(
            _but(removed_b, removed_a) | facts.python(own_a.found),
            _but(removed_a, removed_b) | facts.python(own_b.found),
        ),
        debian=_changes(debian_a, debian_b),
        settings=_changes(facts.settings(a), facts.settings(b)),
        environment=_changes(facts.environment(a), facts.environment(b)),
        labels=_changes(a.labels, b.labels),
        files=tuple(_files(own_a, own_b, whole=not shared)),
    )


def _shared(a: Comparable, b: Comparable) -> int:
    """Return how many of the lowest layers are the same files: equal diff ids, however they are compressed."""
    count = 0
    for one, other in zip(a.diff_ids, b.diff_ids, strict=False):
        if one != other:
            break
        count += 1
    return count


def _read(image: Comparable, shared: int, progress: Callable[[str], None]) -> Changes:
    return layers.changes(image, shared, keep=facts.wanted, progress=progress)


def _side(name: str, image: Comparable, shared: int) -> Side:
    rows = list(enumerate(zip(image.layers, facts.made_by(image), strict=True), 1))[shared:]
    return Side(
        name=name,
        digest=image.digest,
        size=_bytes(image.layers),
        layer_count=len(image.layers),
        layers=tuple(
            Layer(number=number, digest=layer.digest, size=layer.size, made_by=made_by)
            for number, (layer, made_by) in rows
        ),
    )


def _bytes(descriptors: tuple[Descriptor, ...]) -> int:
    return sum(each.size for each in descriptors)


def _debian(image: Comparable, own: Changes, other: Changes, progress: Callable[[str], None]) -> Facts:
    """Return an image's Debian packages; where the other one rewrote their list, it is looked for in shared layers."""
    if facts.DEBIAN in own.found or facts.DEBIAN not in other.found or facts.DEBIAN in own.removed:
        return facts.debian(own.found)
    return facts.debian(own.found | layers.find(image, [facts.DEBIAN], progress=progress))


def _but(these: Facts, those: Facts) -> Facts:
    return {name: value for name, value in these.items() if name not in those}


def _changes(a: Facts, b: Facts) -> tuple[Change, ...]:
    names = sorted({*a, *b})
    return tuple(Change(what=name, a=a.get(name), b=b.get(name)) for name in names if a.get(name) != b.get(name))


def _files(a: Changes, b: Changes, *, whole: bool) -> Iterator[FileChange]:
    """Yield every path that is not the same; `whole`: all layers were read, so what was not found is not there."""
    for path in sorted({*a.found, *b.found}):
        one, other = a.found.get(path), b.found.get(path)
        in_a, in_b = _entry(one), _entry(other)
        if one and other:
            if in_a != in_b:
                yield FileChange(path=path, how="changed", a=in_a, b=in_b)
        elif (only := one or other) and only.kind != "folder":  # a file's folders are written again with it
            gone = whole or _is_removed(path, b if one else a)
            yield FileChange(path=path, how=_how(one, gone=gone), a=in_a, b=in_b)
    if whole:
        return
    for path in sorted(a.removed ^ b.removed):
        if not any(path in side.found or _is_removed(path, side, but=path) for side in (a, b)):
            yield FileChange(path=path, how="deleted by A" if path in a.removed else "deleted by B")
    for path in sorted(a.emptied ^ b.emptied):
        yield FileChange(path=path, how="emptied by A" if path in a.emptied else "emptied by B")


def _how(one: Found | None, *, gone: bool) -> How:
    if gone:
        return "removed" if one else "added"
    return "written by A" if one else "written by B"


def _is_removed(path: str, side: Changes, *, but: str = "") -> bool:
    """Say whether a side's layers take a path, or a folder that it is in, away from the layers below."""
    above = [path[:index] for index, letter in enumerate(path) if letter == "/"]
    emptied = any(each in side.emptied for each in ("", *above))
    return emptied or any(each in side.removed for each in (*above, path) if each != but)


def _entry(found: Found | None) -> Entry | None:
    if found is None:
        return None
    return Entry(kind=found.kind, size=found.size, mode=f"{found.mode:04o}", sha256=found.sha256, link=found.link)
