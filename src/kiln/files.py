"""Writes files whole or not at all, and lets one run at a time into a folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def write(path: Path, data: bytes | str) -> Path:
    """Write `data` beside `path` and rename it there, making the folders above; return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        Path(beside).chmod(0o644)
        return Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink()
        raise


def write_summed(path: Path, text: str) -> Path:
    """Write a cache file whose first line is the sha256 of the rest."""
    return write(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_summed(path: Path) -> str:
    """Return what `write_summed` wrote; raises OSError, and ValueError where it is not what was written."""
    sha256, _, text = path.read_bytes().decode().partition("\n")
    if sha256 != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError(f"{path}: damaged")
    return text


@contextlib.contextmanager
def locked(folder: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock beside `folder`, so that one run at a time makes it; sweep what interrupted runs left.

    `waiting` is called once where another run has it, and before this one waits for its end.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.parent.glob(f".{folder.name}.*"):
            if left.is_dir():
                shutil.rmtree(left)
        yield
