"""Opens an image in an OCI layout, a folder or the tar that `docker save` writes, and reads it in place."""

from __future__ import annotations

import contextlib
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln.registry import records, reference
from kiln.registry.image import PLATFORM, Image, opened
from kiln.registry.reader import verified
from kiln.registry.records import Damaged, Descriptor, Manifest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

_PIECE = 1 << 20
_MAX_MEMBERS = 100_000
_INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A piece of a file: a whole one, or a member of a tar."""

    path: Path
    start: int
    size: int

    def pieces(self) -> Generator[bytes]:
        """Yield its bytes."""
        left = self.size
        with self.path.open("rb") as file:
            file.seek(self.start)
            while left and (piece := file.read(min(left, _PIECE))):
                left -= len(piece)
                yield piece


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An OCI layout; `members` is None for a folder, where each file is looked for when it is needed."""

    path: Path
    members: Mapping[str, _Place] | None = None

    def read(self, name: str, *, limit: int) -> bytes:
        """Return a file of the layout, not verified."""
        place = self._place(name)
        if place.size > limit:
            raise Damaged(f"{self.path}: {name}: {place.size} bytes, more than the {limit} that Kiln reads here")
        return b"".join(place.pieces())

    def manifest(self, ref: str) -> Manifest:
        """Return the manifest with this digest, verified."""
        where = f"{self.path}: {ref}"
        data = self.read(_blob(ref), limit=records.MAX_MANIFEST_BYTES)
        if (found := records.digest_of(data)) != ref:
            raise Damaged(f"{where}: its bytes have the digest {found}")
        named = "manifests" in records.read_json(data, where)
        return records.read_manifest(data, "", where, default=records.OCI_INDEX if named else records.OCI_MANIFEST)

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a blob, verified."""
        if descriptor.size > limit:
            raise Damaged(f"{self.path}: {descriptor.digest}: {descriptor.size} bytes, more than Kiln reads here")
        with self.stream_blob(descriptor) as pieces:
            return b"".join(pieces)

    @contextlib.contextmanager
    def stream_blob(self, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        """Yield the pieces of a blob, verified at its end."""
        with contextlib.closing(self._place(_blob(descriptor.digest)).pieces()) as pieces:
            yield verified(pieces, descriptor, f"{self.path}: {descriptor.digest}")

    def _place(self, name: str) -> _Place:
        if self.members is not None:
            found = self.members.get(name)
        else:
            file = self.path / name
            found = _Place(path=file, start=0, size=file.stat().st_size) if file.is_file() else None
        if found is None:
            raise errors.Missing(f"{self.path}: {name} is not in it")
        return found


@dataclass(frozen=True, kw_only=True)
class SavedImage(Image):
    """An image in an OCI layout."""

    layout: Layout

    def stream_blob(self, descriptor: Descriptor) -> AbstractContextManager[Iterator[bytes]]:
        """Yield the pieces of a layer, verified at its end."""
        return self.layout.stream_blob(descriptor)


def open_saved(path: Path, platform: str = PLATFORM) -> SavedImage:
    """Return the one image of an OCI layout; raises Missing where it has none for the platform."""
    layout = Layout(path=path, members=None if path.is_dir() else _members(path))
    data = layout.read(_INDEX, limit=records.MAX_MANIFEST_BYTES)
    index = records.read_manifest(data, "", f"{path}: {_INDEX}", default=records.OCI_INDEX)
    digests = {each.digest for each in index.manifests}
    if len(digests) != 1:
        raise errors.BadInput(f"{path}: {len(digests)} images in it", hint="docker save -o FILE ONE_IMAGE")
    image = opened(layout, digests.pop(), platform, str(path))
    return SavedImage(manifest=image.manifest, config=image.config, index_digest=image.index_digest, layout=layout)


def _members(path: Path) -> dict[str, _Place]:
    """Return where the files of a tar lie in it."""
    found: dict[str, _Place] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for count, member in enumerate(tar):
                if count > _MAX_MEMBERS:
                    raise Damaged(f"{path}: more than {_MAX_MEMBERS} files, so it holds no image")
                if member.isreg() and not member.issparse():
                    found[member.name] = _Place(path=path, start=member.offset_data, size=member.size)
    except tarfile.TarError as error:
        raise errors.BadInput(f"{path}: not a tar archive: {error}", hint="docker save -o FILE IMAGE") from None
    return found


def _blob(digest: str) -> str:
    algorithm, _, value = reference.checked_digest(digest).partition(":")
    return f"blobs/{algorithm}/{value}"
