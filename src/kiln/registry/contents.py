"""Reads one layer: its chosen entries, and what it takes away from the layers below it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from kiln.registry.archive import Layer
from kiln.registry.records import Damaged

if TYPE_CHECKING:
    import tarfile
    from collections.abc import Iterator

    from kiln.registry.image import Content

Progress = Callable[[str], None]
Select = Callable[[str], bool]
Kind = Literal["file", "link", "folder", "other"]

_WHITEOUT = ".wh."
_RESERVED = ".wh..wh."  # other metadata of the same origin; no file of the image
_OPAQUE = ".wh..wh..opq"
_MAX_MEMBERS = 3_000_000
_MAX_KEPT_BYTES = 512 << 20
_MAX_NAME = 4096
_TELL_EVERY = 256 << 20
_MB = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Found:
    """An entry of an image: `mode` its permission bits, `sha256` and `data` a file's, `link` where a symlink leads."""

    path: str
    layer: int
    layer_digest: str
    mode: int
    size: int
    sha256: str
    data: bytes | None
    link: str = ""
    kind: Kind = "file"


@dataclass(frozen=True, kw_only=True)
class HardLink:
    """A second name for a file of the same layer, or of one below it."""

    target: str


@dataclass(kw_only=True)
class Contents:
    """What a layer holds: chosen entries, and what takes away from the layers below it; `solid` is no folder."""

    entries: dict[str, Found | HardLink] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    opaque: set[str] = field(default_factory=set)
    solid: set[str] = field(default_factory=set)

    def hides(self, path: str) -> bool:
        """Say whether a lower layer's `path` is taken away."""
        if path in self.gone:
            return True
        return any(each in self.gone or each in self.opaque or each in self.solid for each in above(path))


@dataclass(kw_only=True)
class Reader:
    """Reads the layers of an image, one at a time; what it passes and keeps of all of them together is bounded."""

    image: Content
    progress: Progress
    members: int = 0
    kept: int = 0

    def read(self, index: int, choose: Select, keep: Select) -> Contents:
        """Read a whole layer, verified; `keep` says of which chosen files the bytes are kept."""
        descriptor, where = self.image.layers[index], self.where(index)
        contents = Contents()
        with self.image.stream_blob(descriptor) as pieces:
            layer = Layer(self._told(pieces, index), descriptor, self.image.diff_ids[index], where)
            for member in layer.members():
                self.members += 1
                if self.members > _MAX_MEMBERS:
                    raise Damaged(f"{where}: the image has more than {_MAX_MEMBERS} entries")
                path = normal(member.name, where)
                if not path or _take_away(path, contents, where):
                    continue
                (contents.solid.discard if member.isdir() else contents.solid.add)(path)
                if choose(path):
                    if path in contents.entries:
                        contents.repeated.add(path)
                    entry = self._entry(member, path, index)
                    if isinstance(entry, Found) and member.isreg():
                        entry = self._with_content(entry, layer.content(member), keep=keep(path))
                    contents.entries[path] = entry
        for path in contents.entries:
            if any(each in contents.solid for each in above(path)):
                raise Damaged(f"{where}: {path} is in what is no folder")
        return contents

    def where(self, index: int) -> str:
        """Return how messages name a layer."""
        return f"layer {index + 1} ({self.image.layers[index].digest})"

    def _entry(self, member: tarfile.TarInfo, path: str, index: int) -> Found | HardLink:
        where = f"{self.where(index)}: {path}"
        if member.islnk():
            return HardLink(target=normal(member.linkname, where))
        if member.issparse():
            raise Damaged(f"{where}: a sparse file, which layers do not have")
        kinds: tuple[tuple[bool, Kind], ...] = (
            (member.isreg(), "file"),
            (member.isdir(), "folder"),
            (member.issym(), "link"),
        )
        return Found(
            path=path,
            layer=index,
            layer_digest=self.image.layers[index].digest,
            mode=member.mode & 0o7777,
            size=member.size if member.isreg() else 0,
            sha256="",
            data=None,
            link=member.linkname if member.issym() else "",
            kind=next((kind for holds, kind in kinds if holds), "other"),
        )

    def _with_content(self, found: Found, content: Iterator[memoryview], *, keep: bool) -> Found:
        sha256, data = hashlib.sha256(), bytearray()
        self.kept += found.size if keep else 0
        if self.kept > _MAX_KEPT_BYTES:
            where = f"{self.where(found.layer)}: {found.path}"
            raise Damaged(f"{where}: with it, more than the {_MAX_KEPT_BYTES} bytes that Kiln keeps")
        for piece in content:
            sha256.update(piece)
            if keep:
                data += piece
        return replace(found, sha256=sha256.hexdigest(), data=bytes(data) if keep else None)

    def _told(self, pieces: Iterator[bytes], index: int) -> Iterator[bytes]:
        """Yield the pieces of a layer's blob, and say how far it is."""
        size, done, told = self.image.layers[index].size, 0, 0
        name = f"layer {index + 1} of {len(self.image.layers)}"
        self.progress(f"{name}: {size / _MB:.1f} MB")
        for piece in pieces:
            done += len(piece)
            if done - told >= _TELL_EVERY:
                told = done
                self.progress(f"{name}: {done / _MB:.0f} of {size / _MB:.0f} MB")
            yield piece


def above(path: str) -> Iterator[str]:
    """Yield the folders that hold `path`, the root ("") last."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def normal(name: str, where: str) -> str:
    """Return a name of an archive as a path in the image, "" for its root; raises Damaged where it leaves it."""
    if len(name) > _MAX_NAME:
        raise Damaged(f"{where}: a name of {len(name)} characters")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise Damaged(f"{where}: {name!r} leaves the image")
    return "/".join(parts)


def _take_away(path: str, contents: Contents, where: str) -> bool:
    """Note what a whiteout takes away; False where `path` is an entry of the image."""
    folder, _, name = path.rpartition("/")
    if not name.startswith(_WHITEOUT):
        return False
    if name == _OPAQUE:
        contents.opaque.add(folder)
    elif not name.startswith(_RESERVED):
        target = name.removeprefix(_WHITEOUT)
        if target in {"", ".", ".."}:
            raise Damaged(f"{where}: a whiteout of nothing: {path!r}")
        contents.gone.add(f"{folder}/{target}" if folder else target)
    return True
