"""What an edition is written on: a release's files as the earlier patches of its series leave them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln import errors
from kiln import plan as planning
from kiln.patching.tree import Directory, Memory
from kiln.proof import trees
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kiln.catalog import Catalog, records

_IN_TREE = (".py", ".json")  # of the rest of a wheel, a release's tree has nothing that is read here


def known(catalog: Catalog, patch_id: str, release: str, *, flag: str = "--release") -> records.Patch:
    """Return the patch; raises BadInput where it or the release, which `flag` names, is unknown or missing."""
    names = (("patch", "--id", patch_id, catalog.patches), ("release", flag, release, catalog.releases.releases))
    problems = [
        errors.unknown(kind, name, every) if name else f"{told} is missing; known: {', '.join(every)}"
        for kind, told, name, every in names
        if name not in every
    ]
    if problems:
        raise errors.BadInput("\n".join(problems), hint="see what there is: ./inv plan --list, ./inv patch.explain ID")
    return catalog.patches[patch_id]


def series(catalog: Catalog, patch_id: str, release: str) -> Iterator[tuple[str, tuple[records.Patch, ...]]]:
    """Yield (target, patches) of each series of a release that holds a patch: it, and those with an edition."""
    for model, variant, arch, each in planning.possible(catalog):
        if each == release:
            needed = planning.needed(catalog, model=model, variant=variant, arch=arch, release=release)
            if any(patch.id == patch_id for patch in needed):
                held = (patch for patch in needed if patch.id == patch_id or release in patch.editions)
                yield f"{variant} on {arch}", tuple(held)


def earlier(catalog: Catalog, patch_id: str, release: str) -> tuple[str, ...]:
    """Return the ids of the patches before this one in the first series that holds it; none where none does."""
    for _, patches in series(catalog, patch_id, release):
        ids = [patch.id for patch in patches]
        return tuple(ids[: ids.index(patch_id)])
    return ()


def pristine(catalog: Catalog, release: str, paths: Iterable[str]) -> dict[str, bytes]:
    """Return the release's own bytes of each path that it has; raises Missing where they cannot be read."""
    source = Directory(trees.released(catalog, release))
    found = {path: data for path in sorted(set(paths)) if (data := source.read(path)) is not None}
    rest = [path for path in sorted(set(paths) - found.keys()) if not path.endswith(_IN_TREE)]
    pin = catalog.releases.releases[release].wheel
    return found | (wheel.read(pin, rest, cache=catalog.state / "wheels") if rest else {})


def left_by(catalog: Catalog, release: str, ids: tuple[str, ...], paths: Iterable[str] = ()) -> dict[str, bytes]:
    """Return the files that these patches change, and `paths`, as the patches leave them.

    Raises NotApplied, the files named, where they do not fit.
    """
    touched = {path for patch_id in ids for path in catalog.patches[patch_id].editions[release].files}
    state = pristine(catalog, release, touched | set(paths))
    return after(catalog, release, ids, state) if ids else state


def after(catalog: Catalog, release: str, ids: tuple[str, ...], state: dict[str, bytes]) -> dict[str, bytes]:
    """Return files with patches applied to them; raises NotApplied, the files named."""
    changed = trees.applied(catalog, release, ids, Memory(state))
    left = {path: data for path, data in state.items() if path not in changed}
    return left | {path: data for path, data in changed.items() if data is not None}
