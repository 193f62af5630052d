"""Writes all files or none: new bytes beside the old, a journal first, renames, and the way back from every point.

Journal -> new files written beside -> originals linked beside -> renames, RECORD and ledger last -> links removed
-> journal removed. A run that finds a journal finishes it when every file is at post, else it rolls back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from kiln.patching import errors, journal
from kiln.patching.journal import Journal, Step
from kiln.patching.outcomes import FileReport, Outcome, digest, named
from kiln.patching.tree import Directory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kiln.patching.lock import Held
    from kiln.patching.plan import Write
    from kiln.patching.roots import Root

_FOLDER_MODE = 0o755
# an attribute of these is the file's own; others belong to the file system or the security module
_ATTRIBUTES = ("user.", "system.posix_acl_access")


def commit(root: Root, writes: Sequence[Write], held: Held, *, epoch: int | None, gone: tuple[str, ...] = ()) -> None:
    """Do all of `writes`, in order, or leave the tree as it was and raise; then remove the folders `gone`, if empty."""
    tree = Directory(root.path)
    steps = tuple(Step(write.path, digest(tree.read(write.path)), digest(write.data)) for write in writes)
    _refuse_occupied(root, steps)
    made = missing_folders(root, (step.path for step in steps))
    times = _times(root, (*(step.path for step in steps), *made, *gone), made, held)
    meant = Journal(steps=steps, made=made, gone=gone, times=times, epoch=epoch)
    try:
        journal.write(root.metadata, meant)
        _prepare(tree, meant, writes)
        _sync(root, meant)
        _swap(tree, meant)
        _sync(root, meant)
        _check(tree, meant)
    except BaseException:
        _roll_back(root, meant, held)
        raise
    try:
        _finish(root, meant, held)
    except BaseException:
        _finish(root, meant, held)
        raise


def recover(root: Root, held: Held) -> str:
    """End what a killed run began; say how in a sentence, "" when there was nothing to do."""
    (root.metadata / (journal.NAME + ".kiln-new")).unlink(missing_ok=True)
    meant = journal.read(root.metadata)
    if meant is None:
        return ""
    tree = Directory(root.path)
    found = {step.path: digest(tree.read(step.path)) for step in meant.steps}
    if all(found[step.path] == step.post for step in meant.steps):
        _finish(root, meant, held)
        return "a killed run had written everything; it was finished"
    lost = tuple(_lost(tree, meant.steps))
    if lost:
        raise errors.Interrupted(
            f"{root.metadata / journal.NAME}: a run was killed, and its files changed since",
            hint=f"remove {root.metadata / journal.NAME}, reinstall the package, then apply",
            files=lost,
        )
    _roll_back(root, meant, held)
    return "a killed run was rolled back first"


def _lost(tree: Directory, steps: Iterable[Step]) -> Iterable[FileReport]:
    """Name every file that cannot be brought back: it is neither pre nor post, or what it was is gone."""
    for step in steps:
        found = digest(tree.read(step.path))
        if found == step.pre:
            continue
        if found != step.post or (step.pre is not None and digest(tree.read(step.old)) != step.pre):
            yield FileReport(step.path, Outcome.HALF_APPLIED, named(step.pre), named(found))


def _refuse_occupied(root: Root, steps: Iterable[Step]) -> None:
    for step in steps:
        for path in (step.new, step.old):
            if os.path.lexists(root.path / path):
                raise errors.CannotWrite(f"{root.path / path}: in the way", hint="remove it, then run again")


def missing_folders(root: Root, files: Iterable[str]) -> tuple[str, ...]:
    """Return the folders that these files need and the tree does not have, outermost first."""
    above = {str(parent) for path in files for parent in Path(path).parents if str(parent) != "."}
    return tuple(sorted(path for path in above if not (root.path / path).exists()))


def _times(root: Root, touched: Iterable[str], made: Iterable[str], held: Held) -> tuple[tuple[str, int], ...]:
    """Return the mtimes of the existing folders that change; the one of the lock is from before the lock."""
    folders = {str(Path(path).parent) for path in touched} - set(made)
    times = {folder: (root.path / folder).stat().st_mtime_ns for folder in folders}
    times[root.dist_info] = held.mtime_ns
    return tuple(sorted(times.items()))


def _prepare(tree: Directory, meant: Journal, writes: Sequence[Write]) -> None:
    for folder in meant.made:
        (tree.root / folder).mkdir()
        (tree.root / folder).chmod(_FOLDER_MODE)
    for step, write in zip(meant.steps, writes, strict=True):
        if write.data is not None:
            _write_beside(tree.root / step.path, tree.root / step.new, write, meant.epoch)
    for step in meant.steps:
        if step.pre is not None:
            _keep(tree.root / step.path, tree.root / step.old)
            if digest(tree.read(step.old)) != step.pre:
                raise errors.CannotWrite(f"{tree.root / step.path}: changed while the series was applied")


def _write_beside(path: Path, beside: Path, write: Write, epoch: int | None) -> None:
    assert write.data is not None
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(write.data)
        file.flush()
        like = path.lstat() if os.path.lexists(path) else None
        if os.geteuid() == 0:
            owner = like or path.parent.stat()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.fchmod(file.fileno(), stat.S_IMODE(like.st_mode) if like else write.mode)
        for name, value in _attributes(path) if like else ():
            os.setxattr(file.fileno(), name, value)
        if epoch is not None:
            os.utime(file.fileno(), (epoch, epoch))
        os.fsync(file.fileno())


def _attributes(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the extended attributes that belong to the file itself; none where the file system has none."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return
    for name in names:
        if name.startswith(_ATTRIBUTES):
            yield name, os.getxattr(path, name, follow_symlinks=False)


def _keep(path: Path, beside: Path) -> None:
    """Keep the file itself, with its time and links, under a second name; a copy where links are not possible."""
    try:
        beside.hardlink_to(path)
    except OSError:
        import shutil

        shutil.copy2(path, beside)


def _swap(tree: Directory, meant: Journal) -> None:
    for step in meant.steps:
        if step.post is None:
            (tree.root / step.path).unlink()
        else:
            (tree.root / step.new).replace(tree.root / step.path)


def _check(tree: Directory, meant: Journal) -> None:
    for step in meant.steps:
        if digest(tree.read(step.path)) != step.post:
            raise errors.CannotWrite(f"{tree.root / step.path}: does not hold what was written to it")


def _roll_back(root: Root, meant: Journal, held: Held) -> None:
    tree = Directory(root.path)
    for step in reversed(meant.steps):
        path, old = root.path / step.path, root.path / step.old
        if digest(tree.read(step.path)) != step.pre:
            if step.pre is None:
                path.unlink()
            else:
                old.replace(path)
        old.unlink(missing_ok=True)
        (root.path / step.new).unlink(missing_ok=True)
    for folder in reversed(meant.made):
        with contextlib.suppress(FileNotFoundError):
            (root.path / folder).rmdir()
    _close(root, meant, held, epoch=None)


def _finish(root: Root, meant: Journal, held: Held) -> None:
    for step in meant.steps:
        (root.path / step.old).unlink(missing_ok=True)
    for folder in reversed(meant.gone):
        _remove_if_empty(root.path / folder)
    if meant.epoch is not None:
        for folder in meant.made:
            os.utime(root.path / folder, (meant.epoch, meant.epoch))
    _close(root, meant, held, epoch=meant.epoch)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
            raise


def _close(root: Root, meant: Journal, held: Held, *, epoch: int | None) -> None:
    """Give every touched folder its time back, then forget the transaction."""
    for folder, mtime_ns in meant.times:
        wanted = mtime_ns if epoch is None else epoch * 10**9
        with contextlib.suppress(FileNotFoundError):  # a folder that is gone
            os.utime(root.path / folder, ns=(wanted, wanted))
        if folder == root.dist_info:
            held.mtime_ns = wanted
    _sync(root, meant)
    (root.metadata / journal.NAME).unlink(missing_ok=True)
    journal.sync(root.metadata)


def _sync(root: Root, meant: Journal) -> None:
    for folder in (*(folder for folder, _ in meant.times), *meant.made):
        with contextlib.suppress(FileNotFoundError):  # one that was not made yet, or is gone
            journal.sync(root.path / folder)
