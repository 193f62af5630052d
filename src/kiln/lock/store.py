"""Changes images/lock.json one run at a time, so that what another run has written since stays."""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from kiln import files
from kiln.catalog import lock_records, locked
from kiln.catalog.load import read_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path


def update(root: Path, change: Callable[[lock_records.Lock], lock_records.Lock]) -> bool:
    """Change the lock as it is in its file now, and write it where that makes another; say whether it was written."""
    with _alone((root / locked.LOCK).parent):
        now = read_lock(root, may_be_missing=True)
        made = change(now)
        if made == now and (root / locked.LOCK).exists():
            return False
        files.write(root / locked.LOCK, locked.text(made))
        return True


def merged(
    now: lock_records.Lock,
    before: lock_records.Lock,
    entries: Mapping[str, lock_records.LockedImage],
    known: Collection[str],
) -> lock_records.Lock:
    """Return the lock of now with these entries, where they are not as they were before, and no image that is unknown.

    What another run had confirmed, or read out of the same image, is kept where this one did not.
    """
    broken = locked.damaged(now)
    held = {name: old for name, old in now.images.items() if name in known and name not in broken}
    for name, entry in entries.items():
        there = held.get(name)
        if there and (entry == before.images.get(name) or _is_better(there, entry)):
            continue
        is_same = there and there.manifest and entry.manifest and there.manifest.digest == entry.manifest.digest
        if there and is_same and not entry.base and there.base:
            held[name] = locked.sealed(entry.model_copy(update={"base": there.base}))
        else:
            held[name] = entry
    return now.model_copy(update={"images": dict(sorted(held.items()))})


def _is_better(there: lock_records.LockedImage, entry: lock_records.LockedImage) -> bool:
    """Say whether a registry has confirmed to another run what this one could not have confirmed."""
    is_confirmed = [bool(each.manifest and each.manifest.confirmed) for each in (there, entry)]
    return there.inputs_sha256 == entry.inputs_sha256 and is_confirmed == [True, False]


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of the folder itself, which leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
