"""Says what was read out of a base when it was locked, and where that is not what the editions were made for."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln import plan as planning
from kiln.catalog import installed, installs
from kiln.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kiln.catalog import Catalog, lock_records
    from kiln.catalog.locked import Pinned
    from kiln.plan import PatchUse, Plan


def touched(catalog: Catalog, releases: Collection[str]) -> tuple[str, ...]:
    """Return every file that an edition of these releases touches."""
    editions = (
        patch.editions[each] for patch in catalog.patches.values() for each in releases if each in patch.editions
    )
    return tuple(sorted({path for edition in editions for path in edition.files}))


def recorded(catalog: Catalog, plan: Plan) -> lock_records.Base:
    """Return what was read out of a plan's base; raises BadInput where that, or a file of its series, is not known."""
    reference = f"{plan.image.repository}:{plan.image.tag}"
    entry = catalog.lock.images.get(reference)
    hint = f"./inv lock --bases --release {plan.target.release}"
    if entry is None or entry.base is None:
        raise errors.BadInput(f"{reference}: what its layers hold is not known: it was never read", hint=hint)
    if lacking := sorted(pristine(plan.series).keys() - entry.base.files.keys()):
        names = ", ".join(lacking)
        raise errors.BadInput(f"{reference}: its layers were read before a patch touched {names}", hint=hint)
    return entry.base


def pristine(series: Sequence[PatchUse]) -> dict[str, str | None]:
    """Return the sha256 that each file of a series must have before the first patch; None for one it creates."""
    first: dict[str, str | None] = {}
    for use in series:
        for path, pre, _ in use.files:
            first.setdefault(path, pre)
    return first


def differences(catalog: Catalog, reference: str, pinned: Pinned, base: lock_records.Base) -> Iterator[Finding]:
    """Yield the files of a base that are not what the editions were made for."""
    wanted: dict[str, set[str | None]] = {}
    for plan in _plans(catalog, pinned):
        for path, pre in pristine(plan.series).items():
            wanted.setdefault(path, set()).add(pre)
    for path in sorted(wanted.keys() & base.files.keys()):
        found, pres = base.files[path], wanted[path]
        if others := sorted(_shown(pre) for pre in pres if pre != found):
            yield Finding(
                where=f"{reference}: {base.root}/{path}",
                problem=f"holds {_shown(found)}, and the edition was made for {', '.join(others)}",
                hint="the image is not the release's wheel: no patch of this file applies to it",
            )


def other_versions(catalog: Catalog, reference: str, pinned: Pinned, base: lock_records.Base) -> Iterator[Finding]:
    """Yield the distributions of a base that are not the versions that its stack pins."""
    for release, kind in pinned.uses:
        if kind == "twin":
            continue
        pins = catalog.releases.releases[release]
        stack = pins.rocm if kind == "rocm" else pins.cuda
        for finding in installed.differences(kind, release, installs.pins(stack), base.versions):
            yield replace(finding, where=f"{reference}: {finding.where}")


def _plans(catalog: Catalog, pinned: Pinned) -> Iterator[Plan]:
    """Yield every target that can be made of an image."""
    for model, variant, arch, release in planning.possible(catalog):
        kind = "rocm" if catalog.releases.arches[arch].vendor == "amd" else "cuda"
        at = {"model": model, "variant": variant, "arch": arch, "release": release}
        if (release, kind) in pinned.uses and not any(planning.refusals(catalog, **at)):
            yield planning.make(catalog, **at)


def _shown(sha256: str | None) -> str:
    return f"sha256 {sha256}" if sha256 else "no such file"
