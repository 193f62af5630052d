"""The released wheels of a project: what changed is told by their directories, and only that is read."""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kiln import errors, files
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
    from pathlib import Path

    from kiln.catalog import records

_PARALLEL = 8


@dataclass(kw_only=True)
class Released:
    """A wheel on the index, read by range; its directory and what was read of it are kept by the wheel's hash."""

    pin: records.WheelPin
    url: str
    cache: Path
    fetched_bytes: int = 0
    _remote: wheel.RemoteWheel | None = field(default=None, repr=False)
    _stamps: dict[str, tuple[int, int]] | None = field(default=None, repr=False)

    def stamps(self) -> Mapping[str, tuple[int, int]]:
        """Return size and CRC-32 of every file."""
        if self._stamps is None:
            self._stamps = self._kept() or self._listed()
        return self._stamps

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of each path that is there, and keep them; raises KilnError."""
        wanted = [path for path in dict.fromkeys(paths) if path in self.stamps()]
        folder = self.cache / self.pin.sha256
        found = {path: data for path in wanted if (data := wheel.cached(folder, path)) is not None}
        for path, data in self.fetch(path for path in wanted if path not in found).items():
            wheel.keep(self.pin, path, data, cache=self.cache)
            found[path] = data
        return {path: found[path] for path in wanted}

    def fetch(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of each path that is there, and keep none; raises KilnError, also for what is damaged."""
        wanted = [path for path in paths if path in self.stamps()]
        if not wanted:
            return {}
        remote = self._opened()
        found = remote.read(wanted)
        self.fetched_bytes = remote.fetched_bytes
        for path, data in found.items():
            if self.stamps()[path] != (len(data), zlib.crc32(data)):
                raise errors.BadInput(f"{self.pin.file}: {path}: not what its directory says")
        return found

    @property
    def _directory(self) -> Path:
        return self.cache / self.pin.sha256 / "directory.json"

    def _kept(self) -> dict[str, tuple[int, int]]:
        try:
            read = json.loads(files.read_summed(self._directory))
            return {str(path): (int(size), int(crc)) for path, (size, crc) in read.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _listed(self) -> dict[str, tuple[int, int]]:
        stamps = self._opened().stamps()
        files.write_summed(self._directory, json.dumps(stamps))
        return stamps

    def _opened(self) -> wheel.RemoteWheel:
        if self._remote is None:
            self._remote = wheel.RemoteWheel(self.pin, self.url)
            self.fetched_bytes = self._remote.fetched_bytes
        return self._remote


def read_all(
    sources: Sequence[Released], wanted: Callable[[Collection[str]], Collection[str]]
) -> tuple[dict[str, bytes] | errors.KilnError, ...]:
    """Return of each wheel the files that `wanted` picks from its names, or why they could not be read.

    A file that did not change from one wheel to another is read once; size and CRC-32 in their directories tell.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        problems = tuple(pool.map(_problem, sources))
        picked = [
            () if problem else [path for path in dict.fromkeys(wanted(source.stamps())) if path in source.stamps()]
            for source, problem in zip(sources, problems, strict=True)
        ]
        first: dict[tuple[str, Hashable], int] = {}
        for number, (source, chosen) in enumerate(zip(sources, picked, strict=True)):
            for path in chosen:
                first.setdefault((path, source.stamps()[path]), number)
        own: dict[int, list[str]] = {}
        for (path, _), number in first.items():
            own.setdefault(number, []).append(path)
        read = dict(zip(own, pool.map(lambda number: _read(sources[number], own[number]), own), strict=True))
    return tuple(
        problem or _gathered(source, chosen, first, read)
        for source, problem, chosen in zip(sources, problems, picked, strict=True)
    )


def _gathered(
    source: Released,
    chosen: Iterable[str],
    first: Mapping[tuple[str, Hashable], int],
    read: Mapping[int, dict[str, bytes] | errors.KilnError],
) -> dict[str, bytes] | errors.KilnError:
    """Return the files of a wheel from wherever each was read."""
    found = {}
    for path in chosen:
        there = read[first[path, source.stamps()[path]]]
        if isinstance(there, errors.KilnError):  # of another wheel, maybe: this one has the file as well
            there = _read(source, [path])
        if isinstance(there, errors.KilnError):
            return there
        found[path] = there[path]
    return found


def _problem(source: Released) -> errors.KilnError | None:
    try:
        source.stamps()
    except errors.KilnError as error:
        return error
    return None


def _read(source: Released, paths: Iterable[str]) -> dict[str, bytes] | errors.KilnError:
    try:
        return source.read(paths)
    except errors.KilnError as error:
        return error
