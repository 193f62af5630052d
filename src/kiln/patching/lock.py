"""Keeps two runs on one tree apart, and leaves the folder of the lock as if it had never been there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching import errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "kiln.lock"
_PAUSE_S = 0.05


@dataclass
class Held:
    """`mtime_ns` is what the folder gets back at the end; a transaction may decide otherwise."""

    mtime_ns: int


@contextlib.contextmanager
def held(folder: Path, *, wait_s: float) -> Iterator[Held]:
    """Hold the lock in `folder`; raise Locked after `wait_s` seconds."""
    path = folder / NAME
    until = time.monotonic() + wait_s
    while True:
        mtime_ns = folder.stat().st_mtime_ns
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        if _taken(descriptor, path):
            break
        os.close(descriptor)
        if time.monotonic() > until:
            raise errors.Locked(f"{path}: another run holds this tree", hint="wait until it ends, then run again")
        time.sleep(_PAUSE_S)
    lock = Held(mtime_ns=mtime_ns)
    try:
        yield lock
    finally:
        try:
            _release(path, lock)
        except BaseException:
            _release(path, lock)  # an interrupt must not leave the file behind
            raise
        finally:
            os.close(descriptor)


def _release(path: Path, lock: Held) -> None:
    path.unlink(missing_ok=True)
    os.utime(path.parent, ns=(path.parent.stat().st_atime_ns, lock.mtime_ns))


def _taken(descriptor: int, path: Path) -> bool:
    """Lock it, unless another run has it or has just removed the file that we opened."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(descriptor).st_ino == path.stat().st_ino
    except (BlockingIOError, FileNotFoundError):
        return False
