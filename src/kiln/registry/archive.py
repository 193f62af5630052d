"""Reads a layer's tar as it comes, decompressed, bounded, and checked against its diff id at the end."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from typing import IO, TYPE_CHECKING, Any, cast

import zstandard

from kiln.registry.records import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.registry.records import Descriptor

PIECE = 1 << 20
_MAX_HEADER_BYTES = 1 << 20  # what a long name or an extended header may take, as in other readers of tar
_MAX_WINDOW_BYTES = 1 << 27
_MAX_RATIO, _ALWAYS_ALLOWED = 200, 1 << 30
_FEED = 64 << 10  # zlib copies what is left after each member of many
_GZIP = 31  # zlib's name for it
_KINDS = {"tar": "plain", "gzip": "gzip", "zstd": "zstd"}


# what tarfile raises on bytes that are no archive
_MALFORMED = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError)


class Layer:
    """A layer's tar, read forward only: `members` once, and of each member `content` before the next one."""

    def __init__(self, blob: Iterator[bytes], descriptor: Descriptor, diff_id: str, where: str) -> None:
        self._where, self._diff_id = where, diff_id
        self._stream = _Forward(_decompressed(blob, descriptor, where), descriptor, where)

    def members(self) -> Iterator[tarfile.TarInfo]:
        """Yield every member, then read on to the end; raises Damaged unless all of it has the diff id."""
        try:
            with tarfile.TarFile(fileobj=cast("IO[bytes]", self._stream), encoding="utf-8") as tar:
                while member := tar.next():
                    cast("Any", tar).members.clear()  # or it would hold all of them
                    self._stream.begin_member()
                    yield member
        except _MALFORMED as error:
            if not self._stream.ended_empty():
                raise Damaged(f"{self._where}: not a tar archive: {error}") from None
        self._stream.finish(self._diff_id)

    def content(self, member: tarfile.TarInfo) -> Iterator[memoryview]:
        """Yield the pieces of the member that `members` has just given."""
        self._stream.seek(member.offset_data)
        yield from self._stream.pieces(member.size)


class _Forward:
    """What `tarfile` takes for a file, over pieces that come once: goes forward, and hashes all that it passes."""

    def __init__(self, pieces: Iterator[bytes], descriptor: Descriptor, where: str) -> None:
        self._pieces, self._where = pieces, where
        self._most = max(_ALWAYS_ALLOWED, _MAX_RATIO * descriptor.size)
        self._sha256 = hashlib.sha256()
        self._left = memoryview(b"")
        self._position = self._received = 0
        self._last = b""
        self._header_bytes = 0

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise Damaged(f"{self._where}: a member that begins before the end of the one before")
        for _ in self.pieces(position - self._position):
            pass
        return self._position

    def read(self, size: int) -> bytes:
        self._header_bytes += max(size, 0)
        if size < 0 or self._header_bytes > _MAX_HEADER_BYTES:
            raise Damaged(f"{self._where}: a header of more than {_MAX_HEADER_BYTES} bytes")
        data = self._last = b"".join(self._some(size))
        return data

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield exactly so many bytes; raises Damaged where the archive ends before."""
        if size < 0:
            raise Damaged(f"{self._where}: a member of {size} bytes")
        before = self._position
        yield from self._some(size)
        if self._position - before != size:
            raise Damaged(f"{self._where}: the archive ends in the middle of a member")

    def begin_member(self) -> None:
        """Note that a member's header has been read: what is read next belongs to the one after it."""
        self._header_bytes = 0

    def ended_empty(self) -> bool:
        """Say whether there was nothing at all: an archive without members and without an end."""
        return not self._received

    def finish(self, diff_id: str) -> None:
        """Read what follows the last member: nothing but zeros, or another reader would see other members."""
        if any(self._last):
            raise Damaged(f"{self._where}: not a tar archive after {self._position} bytes")
        while self._left or self._fill():
            if any(self._left):
                raise Damaged(f"{self._where}: more after the end of the archive")
            self._position += len(self._left)
            self._left = memoryview(b"")
        if (found := f"sha256:{self._sha256.hexdigest()}") != diff_id:
            raise Damaged(f"{self._where}: unpacked it is {found}, the image's config says {diff_id}")

    def _some(self, size: int) -> Iterator[memoryview]:
        while size and (self._left or self._fill()):
            part, self._left = self._left[:size], self._left[size:]
            size -= len(part)
            self._position += len(part)
            yield part

    def _fill(self) -> bool:
        piece = next(self._pieces, b"")
        self._received += len(piece)
        if self._received > self._most:
            raise Damaged(f"{self._where}: unpacks to more than {self._most} bytes")
        self._sha256.update(piece)
        self._left = memoryview(piece)
        return bool(piece)


def _decompressed(blob: Iterator[bytes], descriptor: Descriptor, where: str) -> Iterator[bytes]:
    """Yield the tar in pieces that are not empty, and read the blob to its end, so that its digest is checked."""
    kind = _KINDS.get(descriptor.media_type.replace("+", ".").rpartition(".")[2])
    if kind is None:
        raise Damaged(f"{where}: a layer of a kind that Kiln does not read: {descriptor.media_type}")
    readers: dict[str, Callable[[Iterator[bytes]], Iterator[bytes]]]
    readers = {"plain": iter, "gzip": _gunzip, "zstd": _unzstd}
    try:
        yield from (piece for piece in readers[kind](blob) if piece)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise Damaged(f"{where}: not the {kind} that its manifest says: {error}") from None
    for _ in blob:
        raise Damaged(f"{where}: more after the end of its compressed content")


def _gunzip(blob: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what one or more gzip members hold, never more than a piece at once."""
    squeeze = zlib.decompressobj(_GZIP)
    begun = False
    for rest in (chunk[start : start + _FEED] for chunk in blob for start in range(0, len(chunk), _FEED)):
        while rest or begun:
            begun = True
            out = squeeze.decompress(rest, PIECE)
            yield out
            rest = squeeze.unconsumed_tail  # noqa: PLW2901 - the loop's own
            if squeeze.eof:
                rest, squeeze, begun = squeeze.unused_data, zlib.decompressobj(_GZIP), False  # noqa: PLW2901
            elif not rest and len(out) < PIECE:
                break
    if begun:
        raise EOFError("it ends too early")


def _unzstd(blob: Iterator[bytes]) -> Iterator[bytes]:
    """Yield what one or more zstd frames hold, never more than a piece at once."""
    reader = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES).stream_reader(
        cast("IO[bytes]", _Readable(blob)), read_size=PIECE, read_across_frames=True
    )
    while piece := reader.read(PIECE):
        yield piece


class _Readable:
    """Pieces as something to read from, one at a time."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def read(self, size: int) -> bytes:
        piece = self._left or next(self._pieces, b"")
        self._left = piece[size:]
        return piece[:size]
