"""A git worktree at a release's real files, one commit for each patch of the series, to edit an edition in."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, files, git
from kiln.authoring import base, repository
from kiln.catalog import edition_path
from kiln.proof import trees

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kiln.catalog import Catalog, records
    from kiln.report import Reporter

_BASE, _OPENED = "refs/worktree/kiln-base", "refs/worktree/kiln-opened"
BASE = _BASE.removeprefix("refs/")  # what a person types
_SOURCES = (".py", ".json")


def place(catalog: Catalog, patch_id: str, release: str) -> Path:
    """Return where the worktree of a patch on a release lies, or would lie."""
    return catalog.state / "work" / f"{patch_id}-{release}"


def open(  # noqa: A001, PLR0913 - worktree.open reads well; what, and how
    catalog: Catalog,
    patch_id: str,
    release: str,
    files_on_top: Mapping[str, bytes | None] | None = None,
    *,
    reporter: Reporter,
    discard: bool = False,
) -> Path:
    """Make the worktree: release, earlier patches (up to `worktree/kiln-base`), then the edition, where there is one.

    `files_on_top` are written uncommitted on the earlier patches instead, conflict markers and all; None takes a file
    away. Raises BadInput where edits that were not exported would be lost, unless they are to be discarded.
    """
    patch = base.known(catalog, patch_id, release)
    folder = place(catalog, patch_id, release)
    home = folder.with_name("store.git")
    with files.locked(home):
        if folder.exists() and not discard:
            _refuse_to_lose(catalog, patch_id, release)
        with reporter.step(f"the files of {release}, and the patches before {patch_id}"):
            store = repository.store(home)
            _remove(store, folder)
            start = _earlier(catalog, store, patch_id, release)
        own = {} if files_on_top is not None else _own(catalog, patch, release, reporter)
        opened = repository.commit(store, start, [_commit(patch, release, files_on_top or own)])[-1]
        try:
            head = opened if own else start
            branch = f"{patch_id}-{release}"
            git.ask(store, "worktree", "add", "--quiet", "-B", branch, str(folder), head)
            _write(folder, files_on_top or {})
            git.ask(folder, "update-ref", _BASE, start)
            git.ask(folder, "update-ref", _OPENED, opened)
        except BaseException:
            _remove(store, folder)
            raise
    return folder


def changes(folder: Path, ref: str = _BASE) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the files that differ from a commit, as they are there and as they are in the worktree now.

    Commits, staged and unstaged edits and untracked files are all the same; bytecode is left out. Raises BadInput
    where the worktree cannot be read.
    """
    if not (folder / ".git").is_file() or not repository.find(folder, ref):
        patch_id, _, release = folder.name.rpartition("-")
        told = f"./inv patch.edit {patch_id} --release {release} --discard"
        hint = f"make it anew; what is in it is lost: {told}"
        raise errors.BadInput(f"{folder}: no worktree that was finished", hint=hint)
    then = repository.blobs(folder, ref)
    now = {path.relative_to(folder).as_posix(): path.read_bytes() for path in _walk(folder)}
    altered = {path for path in {*then, *now} if path not in now or then.get(path) != _blob_id(now[path])}
    before = repository.contents(folder, (then[path] for path in altered if path in then))
    return (
        {path: before[then[path]] for path in sorted(altered) if path in then},
        {path: now[path] for path in sorted(altered) if path in now},
    )


def executable(folder: Path) -> tuple[str, ...]:
    """Return the files whose mode is not that of a release's file; raises BadInput for a link."""
    found = (path for path in _walk(folder) if path.stat().st_mode & stat.S_IXUSR)
    return tuple(path.relative_to(folder).as_posix() for path in found)


def _refuse_to_lose(catalog: Catalog, patch_id: str, release: str) -> None:
    """Raise BadInput where a worktree holds what neither was there when it was opened nor is the stored edition."""
    folder = place(catalog, patch_id, release)
    told = f"./inv patch.edit {patch_id} --release {release} --discard"
    try:
        touched = any(changes(folder, _OPENED))
        before, after = changes(folder) if touched else ({}, {})
    except errors.BadInput as error:
        raise errors.BadInput(error.message, hint=f"make it anew; what is in it is lost: {told}") from error
    if touched:
        stored = catalog.root / edition_path(patch_id, release)
        if stored.is_file() and git.diff(before, after) == stored.read_bytes():
            return
        raise errors.BadInput(
            f"{folder}: holds edits that were not exported",
            hint=f"./inv patch.export {patch_id} --release {release}; or throw them away: {told}",
        )


def _earlier(catalog: Catalog, store: Path, patch_id: str, release: str) -> str:
    """Return the commit of the last earlier patch, all before it made."""
    start = _released(catalog, store, release)
    ids = base.earlier(catalog, patch_id, release)
    state = base.left_by(catalog, release, (), _touched(catalog, ids, release))
    commits = []
    for each in ids:
        made = base.after(catalog, release, (each,), state)
        commits.append(_commit(catalog.patches[each], release, _changed(state, made)))
        state = made
    return repository.commit(store, start, commits)[-1] if commits else start


def _released(catalog: Catalog, store: Path, release: str) -> str:
    """Return the commit that holds a release's own files, made once."""
    pin = catalog.releases.releases[release].wheel
    ref = f"refs/kiln/releases/{pin.sha256}"
    if found := repository.find(store, ref):
        return found
    tree = trees.released(catalog, release)
    paths = (path for path in sorted((tree / "vllm").rglob("*")) if path.is_file() and path.suffix in _SOURCES)
    contents = {path.relative_to(tree).as_posix(): path.read_bytes() for path in paths}
    message = f"vLLM {release}\n\nThe Python files of {pin.file}.\n\nKiln-Release: {release}\n"
    made = repository.commit(store, "", [repository.Commit(message=message, files=contents)])[0]
    git.ask(store, "update-ref", ref, made)
    return made


def _own(catalog: Catalog, patch: records.Patch, release: str, reporter: Reporter) -> dict[str, bytes | None]:
    """Return what the patch's own edition changes; nothing where it has none, or none that still fits."""
    if release not in patch.editions:
        return {}
    before = base.left_by(catalog, release, base.earlier(catalog, patch.id, release), patch.editions[release].files)
    try:
        return _changed(before, base.after(catalog, release, (patch.id,), before))
    except errors.NotApplied as error:
        edition = edition_path(patch.id, release)
        reporter.note(f"{edition} no longer fits, and is left out; make its change again:\n{error.message}")
        return {}


def _commit(patch: records.Patch, release: str, changed: Mapping[str, bytes | None]) -> repository.Commit:
    reason = "\n\n".join(textwrap.fill(part, 80) for part in patch.reason.strip().split("\n"))
    trailers = f"Kiln-Patch: {patch.id}\nKiln-Release: {release}\n"
    return repository.Commit(message=f"{patch.title.strip()}\n\n{reason}\n\n{trailers}", files=changed)


def _touched(catalog: Catalog, ids: tuple[str, ...], release: str) -> set[str]:
    return {path for each in ids for path in catalog.patches[each].editions[release].files}


def _changed(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> dict[str, bytes | None]:
    return {path: after.get(path) for path in sorted({*before, *after}) if before.get(path) != after.get(path)}


def _write(folder: Path, contents: Mapping[str, bytes | None]) -> None:
    git.write(folder, {path: data for path, data in contents.items() if data is not None})
    for path in (path for path, data in contents.items() if data is None):
        (folder / path).unlink(missing_ok=True)


def _remove(store: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    git.ask(store, "worktree", "prune")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield every file of a worktree but git's own and bytecode; raises BadInput for a link."""
    for above, names, found in os.walk(folder):
        names[:] = sorted(name for name in names if name != "__pycache__")
        for path in (Path(above, name) for name in (*names, *sorted(found))):
            if path.is_symlink():
                raise errors.BadInput(f"{path}: a symlink; an edition holds plain files only", hint=f"rm {path}")
            if path.is_file() and path != folder / ".git" and path.suffix not in {".pyc", ".pyo"}:
                yield path


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0%b" % (len(data), data), usedforsecurity=False).hexdigest()
