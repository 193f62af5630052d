"""Reads single files of a released wheel by HTTP range, never the whole wheel, with a cache keyed by the wheel's hash.

The wheel is found by its file name on the configured package index (PEP 503), must be listed there with the pinned
sha256, and every file read is checked against its CRC in the zip's central directory.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import re
import struct
import tempfile
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import requests

from kiln import errors, files
from kiln.upstream import index

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kiln.catalog import records

_MAX_MEMBER_BYTES = 64_000_000
_TAIL_BYTES = 800_000  # holds the whole central directory of a vLLM wheel
_GAP_BYTES = 131_072  # two members nearer than this are fetched by one request
_SPAN_BYTES = 8_000_000
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
# what zipfile raises on bytes that are not what the central directory says they are
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, ValueError, OSError)


def read(pin: records.WheelPin, paths: Iterable[str], *, cache: Path) -> dict[str, bytes]:
    """Return the bytes of each path in the wheel; a path the wheel does not have is left out.

    Raises Missing when index or wheel cannot be reached, BadInput when the index lists another hash.
    """
    wanted = tuple(dict.fromkeys(paths))
    folder = cache / pin.sha256
    found = {path: data for path in wanted if (data := cached(folder, path)) is not None}
    missing = [path for path in wanted if path not in found]
    if missing:
        for path, data in RemoteWheel(pin).read(missing).items():
            keep(pin, path, data, cache=cache)
            found[path] = data
    return {path: found[path] for path in wanted if path in found}


def keep(pin: records.WheelPin, path: str, data: bytes, *, cache: Path) -> None:
    """Put a file of a wheel into the cache, with its hash beside it."""
    folder = cache / pin.sha256
    files.write(folder / "files" / _contained(path), data)
    files.write(folder / "sums" / _contained(path), hashlib.sha256(data).hexdigest())


def cached(folder: Path, path: str) -> bytes | None:
    """Return a file of the cache, unless it is not what was put there."""
    try:
        data = (folder / "files" / _contained(path)).read_bytes()
        intact = (folder / "sums" / path).read_text() == hashlib.sha256(data).hexdigest()
    except (OSError, UnicodeDecodeError):
        return None
    return data if intact else None


def download(pin: records.WheelPin, target: Path) -> None:
    """Fetch a whole wheel to `target`; raises BadInput when its bytes are not the pinned ones."""
    target.parent.mkdir(parents=True, exist_ok=True)
    session = index.session()
    url = index.locate(pin, session)
    sha256 = hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        beside = Path(folder) / pin.file
        try:
            with session.get(url, timeout=index.TIMEOUT_S, stream=True) as answer, beside.open("wb") as out:
                answer.raise_for_status()
                for block in answer.iter_content(1 << 20):
                    sha256.update(block)
                    out.write(block)
        except requests.RequestException as error:
            raise errors.Missing(f"{pin.file}: cannot be fetched: {type(error).__name__}") from error
        if sha256.hexdigest() != pin.sha256:
            raise errors.BadInput(f"{pin.file}: pinned sha256 {pin.sha256}, fetched {sha256.hexdigest()}")
        beside.replace(target)


class RemoteWheel:
    """A wheel on the index, opened by range; `fetched_bytes` counts what came over the wire."""

    def __init__(self, pin: records.WheelPin, url: str = "") -> None:
        """Read the wheel's directory; without `url` the wheel is located on its index first."""
        self._session = index.session()
        self._name = pin.file
        self.url = url or index.locate(pin, self._session)
        self._file = _RangeFile(self.url, self._session)
        try:
            self._zip = zipfile.ZipFile(self._file)
        except _DAMAGED as error:
            raise errors.Missing(f"{pin.file}: what the index serves is no zip file") from error

    @property
    def fetched_bytes(self) -> int:
        return self._file.fetched_bytes

    def names(self) -> list[str]:
        return self._zip.namelist()

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return size and CRC-32 of every file, as the directory says them: equal stamps mean an unchanged file."""
        return {info.filename: (info.file_size, info.CRC) for info in self._zip.infolist()}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of each path the wheel has, fetching neighbours together."""
        names = set(self._zip.namelist())
        infos = [self._zip.getinfo(path) for path in paths if path in names]
        for info in infos:
            if info.file_size > _MAX_MEMBER_BYTES:
                raise errors.BadInput(f"{info.filename}: {info.file_size} bytes is more than Kiln reads from a wheel")
        self._file.prefetch(self._extents(infos))
        try:
            return {info.filename: self._zip.read(info) for info in infos}
        except _DAMAGED as error:
            raise errors.BadInput(f"{self._name}: damaged: {error}") from error

    def _extents(self, infos: Iterable[zipfile.ZipInfo]) -> list[tuple[int, int]]:
        offsets = sorted(info.header_offset for info in self._zip.infolist())
        ends = dict(zip(offsets, [*offsets[1:], self._zip.start_dir], strict=True))
        extents = sorted((info.header_offset, ends[info.header_offset]) for info in infos)
        if any(start < 0 or end <= start for start, end in extents):
            raise errors.BadInput(f"{self._name}: damaged: its directory names places outside it")
        return extents


class _RangeFile(io.RawIOBase):
    """A seekable read-only file over HTTP ranges; spans fetched once are kept."""

    def __init__(self, url: str, session: requests.Session) -> None:
        self._url, self._session = url, session
        self._position = 0
        self._spans: list[tuple[int, bytes]] = []
        self._size = 0
        self._fetch(f"bytes=-{_TAIL_BYTES}")

    @property
    def fetched_bytes(self) -> int:
        return sum(len(data) for _, data in self._spans)

    def prefetch(self, extents: Iterable[tuple[int, int]]) -> None:
        """Fetch sorted (start, end) extents, neighbours by one request, several requests at once."""
        merged: list[list[int]] = []
        for start, end in extents:
            near = merged and start - merged[-1][1] <= _GAP_BYTES and end - merged[-1][0] <= _SPAN_BYTES
            if near:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        missing = [(start, end) for start, end in merged if self._held(start, end) is None]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda span: self._fetch(f"bytes={span[0]}-{span[1] - 1}"), missing))

    def _held(self, start: int, end: int) -> bytes | None:
        for begin, data in self._spans:
            if begin <= start and end <= begin + len(data):
                return data[start - begin : end - begin]
        return None

    def _fetch(self, wanted: str) -> None:
        begin, _, end = wanted.removeprefix("bytes=").partition("-")
        most = int(end) - int(begin) + 1 if begin else int(end)
        answer = index.get(self._session, self._url, "the wheel cannot be read", span=wanted, most=most)
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if not found:
            raise errors.Missing("the package index does not serve byte ranges, so single files cannot be read")
        start, last, self._size = (int(number) for number in found.groups())
        if len(answer.body) != last - start + 1:
            raise errors.Missing("the package index serves other byte ranges than it says")
        self._spans.append((start, answer.body))

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        start = self._position
        end = self._size if size is None or size < 0 else min(start + size, self._size)
        if end <= start:
            return b""
        data = self._held(start, end)
        if data is None:
            self._fetch(f"bytes={start}-{end - 1}")
            data = self._held(start, end)
        if data is None:
            raise errors.Missing("the package index serves other byte ranges than were asked for")
        self._position = end
        return data


def _contained(path: str) -> Path:
    if not path or path.startswith("/") or ".." in PurePosixPath(path).parts or "\\" in path:
        raise errors.BadInput(f"{path!r}: not a path inside a wheel")
    return Path(path)
