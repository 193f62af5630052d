"""The catalog as it would be with other files: tried in a folder of its own, then written, all of it or nothing."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import catalog as catalogs
from kiln import files
from kiln.catalog import edit, edition_path, records
from kiln.patching import authoring
from kiln.patching.tree import Memory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kiln.catalog import Catalog

_SHARED = ("images", "recipes", "kiln.yaml")


@contextlib.contextmanager
def candidate(catalog: Catalog, changed: Mapping[Path, bytes]) -> Iterator[Catalog]:
    """Yield the catalog as it would be with these files, in a folder of its own; the caches are the real ones."""
    with tempfile.TemporaryDirectory(prefix="kiln-candidate-") as name:
        root = Path(name).resolve()
        shutil.copytree(catalog.root / "patches", root / "patches", ignore=shutil.ignore_patterns("__pycache__"))
        shared = [catalog.root / part for part in _SHARED]
        for path in (*shared, *catalog.root.glob("requirements*.lock")):
            if path.exists():
                (root / path.name).symlink_to(path)
        for path, content in changed.items():
            files.write(root / path, content)
        yield replace(catalogs.load(root), state=catalog.state)


def record(patch_id: str, data: bytes, before: Mapping[str, bytes]) -> records.Edition:
    """Return what patch.yaml says of an edition on these files; raises PatchingError where it does not fit."""
    made = authoring.edition(patch_id, data, Memory(before))
    hashes = {change.path: records.FileHashes(pre=change.pre, post=change.post) for change in made.files}
    return records.Edition(sha256=made.sha256, files=hashes)


def described(patch_id: str) -> Path:
    """Return where a patch's patch.yaml lies in the catalog."""
    return Path("patches") / patch_id / "patch.yaml"


def with_edition(
    catalog: Catalog, patch_id: str, release: str, *, data: bytes, edition: records.Edition
) -> dict[Path, bytes]:
    """Return the files that give a patch this edition: itself, and patch.yaml; raises BadInput."""
    where = described(patch_id)
    text = edit.with_edition((catalog.root / where).read_bytes().decode(), release, edition)
    return {edition_path(patch_id, release): data, where: text.encode()}


def write_all(root: Path, contents: Mapping[Path, bytes]) -> None:
    """Write every file whole, or, interrupted or refused by the system, leave all as they were."""
    before = {path: (root / path).read_bytes() if (root / path).exists() else None for path in contents}
    try:
        for path, data in contents.items():
            files.write(root / path, data)
    except BaseException:
        for path, old in before.items():
            if old is None:
                (root / path).unlink(missing_ok=True)
            else:
                files.write(root / path, old)
        raise
