"""Gives everything that a step of a build made or changed one time, so that the same inputs make the same layer."""

from __future__ import annotations

import os
import stat
import tempfile

EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))


def mark() -> int:
    """Return the time that the file system has now, in nanoseconds."""
    with tempfile.TemporaryFile() as probe:
        return os.fstat(probe.fileno()).st_ctime_ns


def settle(since: int, top: str = "/") -> None:
    """Set the time of every file, link and folder of this file system that has changed since then."""
    device = os.lstat(top).st_dev
    pending = [top]
    while pending:
        folder = pending.pop()
        for entry in _entries(folder):
            found = entry.stat(follow_symlinks=False)
            if found.st_dev != device:
                continue
            if stat.S_ISDIR(found.st_mode):
                pending.append(entry.path)
            if found.st_ctime_ns >= since:
                os.utime(entry.path, (EPOCH, EPOCH), follow_symlinks=False)
    if os.lstat(top).st_ctime_ns >= since:
        os.utime(top, (EPOCH, EPOCH))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)
