"""The Python files of a release's wheel as a folder, read by range once, and copies of it with patches applied."""

from __future__ import annotations

import functools
import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, files
from kiln.image import rehearsal
from kiln.patching import errors as patching_errors
from kiln.patching import plan as patching
from kiln.patching.outcomes import Outcome
from kiln.patching.tree import Directory
from kiln.upstream.wheel import RemoteWheel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiln.catalog import Catalog
    from kiln.patching.tree import Tree

# the minimax_m3 tool parser of 0.27.0 and later calls this one from Python
_COMPILED = "_rust_tool_parser.abi3.so"


def released(catalog: Catalog, release: str) -> Path:
    """Return the folder that holds the release's vllm/ as its wheel has it; only bytecode is written there.

    It is read again where a file of it is not what was put there, as after a test that wrote into it.
    """
    pin = catalog.releases.releases[release].wheel
    target = catalog.state / "sources" / pin.sha256
    with files.locked(target):
        if not _intact(target):
            shutil.rmtree(target, ignore_errors=True)
            wheel = RemoteWheel(pin)
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
                tree = Path(scratch) / "tree"
                for name, data in wheel.read(filter(_needed, wheel.names())).items():
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    (tree / name).write_bytes(data)
                tree.rename(target)
            files.write(_sum_of(target), _digest(target))
            _intact.cache_clear()
    return target


@functools.cache  # once a process: a tree is asked for by every case
def _intact(tree: Path) -> bool:
    return _sum_of(tree).is_file() and tree.is_dir() and _sum_of(tree).read_text(encoding="utf-8") == _digest(tree)


def _sum_of(tree: Path) -> Path:
    return tree.with_name(f"{tree.name}.sum")


def _digest(tree: Path) -> str:
    """Return one hash of the names and contents of all files but bytecode."""
    total = hashlib.sha256()
    for path in sorted(path for path in tree.rglob("*") if path.is_file() and path.parent.name != "__pycache__"):
        total.update(f"{path.relative_to(tree)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def patched(catalog: Catalog, release: str, patches: Sequence[str], target: Path) -> Path:
    """Return a tree of the release's files with patches applied; raises NotApplied, the files named.

    Folders in which nothing changes are links to the release's own, and so is the bytecode made there.
    """
    source = released(catalog, release)
    if not patches:
        return source
    changed = {Path(path): data for path, data in applied(catalog, release, patches, Directory(source)).items()}
    opened = {Path(), *(folder for path in changed for folder in path.parents)}
    for folder in sorted(opened):
        (target / folder).mkdir(parents=True, exist_ok=True)
        for entry in (source / folder).iterdir() if (source / folder).is_dir() else ():
            name = folder / entry.name
            if name not in opened and name not in changed and entry.name != "__pycache__":
                (target / name).symlink_to(entry)
    for path, data in changed.items():
        if data is not None:
            (target / path).write_bytes(data)
    return target


def applied(catalog: Catalog, release: str, patches: Sequence[str], tree: Tree) -> dict[str, bytes | None]:
    """Return the files of a tree that patches change, None for deleted ones; raises NotApplied, the files named."""
    try:
        done = patching.plan(rehearsal.series_of(catalog, release, patches), tree)
    except patching_errors.PatchingError as error:
        raise errors.NotApplied(f"{', '.join(patches)} on {release}: {error.message}", hint=error.hint) from error
    if done.report.outcome is not Outcome.APPLIED:
        raise errors.NotApplied("\n".join(rehearsal.describe(done.report)), hint="./inv patch.lint")
    return {write.path: write.data for write in done.writes}


def _needed(name: str) -> bool:
    contained = not name.startswith("/") and ".." not in Path(name).parts
    return contained and (name.endswith((".py", ".json", _COMPILED)) or ".dist-info/" in name)
