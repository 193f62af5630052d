"""The real files that a port works on: a patch's files before and after it on one release, and those of another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln import plan as planning
from kiln.authoring import base
from kiln.proof import trees

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog, records


@dataclass(frozen=True, kw_only=True)
class Images:
    """An edition's paths: `pre` and `post` on its own release, `theirs` on the new one, earlier patches included."""

    pre: Mapping[str, bytes | None]
    post: Mapping[str, bytes | None]
    theirs: Mapping[str, bytes | None]


class Tree(Mapping[str, bytes]):
    """The Python files of a release as earlier patches leave them, each read when it is asked for."""

    def __init__(self, root: Path, changed: Mapping[str, bytes]) -> None:
        self._root = root
        self._changed = {path: data for path, data in changed.items() if path.endswith(".py")}
        found = {path.relative_to(root).as_posix() for path in root.rglob("*.py") if path.is_file()}
        self._names = dict.fromkeys(sorted(found | self._changed.keys()))

    def __getitem__(self, path: str) -> bytes:
        if path not in self._names:
            raise KeyError(path)
        return self._changed[path] if path in self._changed else (self._root / path).read_bytes()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def origin(patch: records.Patch, to: str, asked: str = "") -> str:
    """Return the release whose edition is ported: the nearest one below, else the nearest above; or the asked one.

    Raises BadInput where there is none.
    """
    if asked and asked not in patch.editions:
        known = ", ".join(patch.editions) or "none"
        raise errors.BadInput(f"{patch.id} has no edition for {asked}; editions: {known}")
    if not patch.editions:
        hint = f"./inv patch.new {patch.id} --from DIFF --release {to}"
        raise errors.BadInput(f"{patch.id} has no edition that could be ported", hint=hint)
    return asked or planning.nearest(patch, to)


def unready(catalog: Catalog, patch: records.Patch, to: str, paths: set[str]) -> str:
    """Return the first earlier patch of the series that changes one of these files and has no edition for `to`."""
    for model, variant, arch, release in planning.possible(catalog):
        at = {"model": model, "variant": variant, "arch": arch, "release": release}
        if release == to and patch in (needed := planning.needed(catalog, **at)):
            for other in needed[: needed.index(patch)]:
                if to not in other.editions and other.editions:
                    edition = other.editions[origin(other, to)]
                    if paths & edition.files.keys():
                        return other.id
            return ""
    return ""


def images(catalog: Catalog, patch: records.Patch, release: str, to: str) -> Images:
    """Read what a port of the edition for `release` to another one merges; raises Missing and NotApplied."""
    paths = sorted(patch.editions[release].files)
    pre = base.left_by(catalog, release, base.earlier(catalog, patch.id, release), paths)
    post = base.after(catalog, release, (patch.id,), {path: pre[path] for path in paths if path in pre})
    theirs = base.left_by(catalog, to, base.earlier(catalog, patch.id, to), paths)
    return Images(
        **{
            name: {path: state.get(path) for path in paths}
            for name, state in (("pre", pre), ("post", post), ("theirs", theirs))
        }
    )


def tree(catalog: Catalog, patch_id: str, release: str) -> Tree:
    """Return all Python files of a release as the patches before this one leave them."""
    changed = base.left_by(catalog, release, base.earlier(catalog, patch_id, release))
    return Tree(trees.released(catalog, release), changed)
