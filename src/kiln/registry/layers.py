"""Reads files of an image out of its layers, the top one first, as a container would see them.

A link is reported, not followed. Every layer that is read is read to its end and checked against digest and diff id
before anything found in it is returned.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln.registry.contents import Contents, Found, HardLink, Kind, Progress, Reader, Select, normal
from kiln.registry.records import Damaged

if TYPE_CHECKING:
    from collections.abc import Collection

    from kiln.registry.image import Content

__all__ = ["Changes", "Found", "Kind", "Progress", "Select", "changes", "find", "scan"]

_MAX_STEPS = 40

# what is known of names in a layer: an entry, or that the layer has none
_Known = dict[str, Found | HardLink | None]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What layers hold, and which paths they remove from, or which folders they empty of, what is below them."""

    found: dict[str, Found]
    removed: frozenset[str]
    emptied: frozenset[str]


def find(image: Content, paths: Collection[str], *, progress: Progress, keep: bool = True) -> dict[str, Found]:
    """Return those of the paths that the image has, read from the top until all are decided; `keep` their bytes."""
    wanted = frozenset(paths)
    for path in wanted:
        if not path or path != normal(path, "asked for"):
            raise errors.BadInput(f"{path!r}: a path in an image is written without a slash at its ends")
    search = _search(image, wanted.__contains__, lambda _: keep, progress)
    for index in reversed(range(len(image.layers))):
        if search.decided(wanted):
            break
        search.read(index)
    found = search.finish()
    return {path: found[path] for path in paths if path in found}


def scan(
    image: Content, select: Select, *, layers: Collection[int] | None, progress: Progress, keep: bool = False
) -> dict[str, Found]:
    """Return every selected entry that all layers, or those chosen (0 is the lowest), make visible together."""
    search = _search(image, select, lambda _: keep, progress)
    for index in reversed(range(len(image.layers))):
        if layers is None or index in layers:
            search.read(index)
    return search.finish()


def changes(image: Content, above: int, *, keep: Select, progress: Progress) -> Changes:
    """Return what the layers from number `above` (0 is the lowest) make of those below them; `keep` selects bytes."""
    search = _search(image, lambda _: True, keep, progress)
    for index in reversed(range(above, len(image.layers))):
        search.read(index)
    return Changes(
        found=search.finish(),
        removed=frozenset(search.above.gone),
        emptied=frozenset(search.above.opaque),
    )


def _search(image: Content, select: Select, keep: Select, progress: Progress) -> _Search:
    return _Search(reader=Reader(image=image, progress=progress), select=select, keep=keep)


@dataclass(kw_only=True)
class _Search:
    """A walk down the layers: what was found, what is hidden from here on, and names that stand for others.

    `aliases` holds, for a file that a layer further down must have, the hard links that are names of it.
    """

    reader: Reader
    select: Select
    keep: Select
    found: dict[str, Found] = field(default_factory=dict)
    aliases: dict[str, list[str]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    above: Contents = field(default_factory=Contents)

    def decided(self, wanted: Collection[str]) -> bool:
        """Say whether no lower layer can change what is known of these paths."""
        return not self.aliases and not any(self._is_open(path) for path in wanted)

    def finish(self) -> dict[str, Found]:
        """Return what was found, by path; raises Damaged where a hard link was found and its file was not."""
        for target, names in self.aliases.items():
            raise Damaged(f"{names[0]}: a hard link to {target}, which no layer read has")
        return dict(sorted(self.found.items()))

    def read(self, index: int) -> None:
        """Take in a layer, below those taken in before."""
        waiting, self.aliases = self.aliases, {}
        contents = self.reader.read(
            index,
            lambda path: path in waiting or self._is_wanted(path),
            lambda path: any(map(self.keep, (path, *waiting.get(path, ())))),
        )
        names = {
            path: [*waiting.pop(path, ()), *([path] if self._is_wanted(path) else ())] for path in contents.entries
        }
        for target, others in waiting.items():
            if contents.hides(target):
                where = self.reader.where(index)
                raise Damaged(f"{others[0]}: a hard link to {target}, which {where} takes away")
            self.aliases.setdefault(target, []).extend(others)
        known = self._with_targets(index, contents, names)
        for path, own in names.items():
            end = self._end(path, known, index)
            if end not in known:
                raise Damaged(f"{self.reader.where(index)}: {path}: hard links on hard links")
            entry = known[end]
            if isinstance(entry, Found):
                self.found |= {name: self._named(entry, name) for name in own}
            else:
                self.aliases.setdefault(end, []).extend(own)
        self.seen.update(contents.entries)
        self.above.gone |= contents.gone
        self.above.opaque |= contents.opaque
        self.above.solid |= contents.solid

    def _is_open(self, path: str) -> bool:
        """Say whether a lower layer's `path` would be seen."""
        return path not in self.seen and not self.above.hides(path)

    def _is_wanted(self, path: str) -> bool:
        return self.select(path) and self._is_open(path)

    def _named(self, found: Found, name: str) -> Found:
        return replace(found, path=name, data=found.data if self.keep(name) else None)

    def _with_targets(self, index: int, contents: Contents, names: dict[str, list[str]]) -> _Known:
        """Return what is known of a layer's entries, and of the files that its hard links are names of.

        Such a file stands before its links, so the layer is read once more for it, or for its bytes.
        """
        known: _Known = dict(contents.entries)
        links = [path for path, entry in contents.entries.items() if isinstance(entry, HardLink)]
        if not links:
            return known
        kept = {path for path in links if any(map(self.keep, names[path]))}
        missing = set()
        for path in links:
            end = known.get(name := self._end(path, known, index))
            if end is None or (path in kept and isinstance(end, Found) and end.kind == "file" and end.data is None):
                missing.add(name)
        repeated = contents.repeated
        if missing:
            again = self.reader.read(index, missing.__contains__, lambda _: bool(kept))
            known |= {**dict.fromkeys(missing), **again.entries}
            repeated = repeated | again.repeated
        if unclear := sorted({entry.target for entry in known.values() if isinstance(entry, HardLink)} & repeated):
            where = self.reader.where(index)
            raise Damaged(f"{where}: a hard link to {unclear[0]}, which the layer holds more than once")
        return known

    def _end(self, path: str, known: _Known, index: int) -> str:
        """Return the name at the end of a chain of hard links: of a file, or of what the layer is not known to have."""
        name = path
        for _ in range(_MAX_STEPS):
            entry = known.get(name)
            if not isinstance(entry, HardLink):
                return name
            name = entry.target
        raise Damaged(f"{self.reader.where(index)}: {path}: hard links in a circle")
