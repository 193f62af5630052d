"""Says which patches are proven on which releases, each on top of others and all of a target together; pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kiln import errors
from kiln import plan as planning

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kiln.catalog import Catalog, records


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is proven on one release, by its probe and tests, or by importing what changed.

    edition: `patch`, applied on top of `before`, against `before` alone.
    upstream: that the release itself has what `patch` does.
    unported: that the release needs `patch`, which has no edition for it.
    series: that the modules which `before` change can be imported when all of them are applied; `patch` names a target.
    """

    patch: str
    release: str
    before: tuple[str, ...] = ()
    kind: Literal["edition", "upstream", "unported", "series"] = "edition"

    @property
    def name(self) -> str:
        return f"{self.patch} {self.release}"


def plan(catalog: Catalog, *, ids: Collection[str] = (), releases: Collection[str] = ()) -> tuple[Case, ...]:
    """Return every case of the chosen patches and releases (none chosen: all); raises BadInput for unknown names."""
    known = catalog.releases.releases
    problems = [errors.unknown("patch", name, catalog.patches) for name in ids if name not in catalog.patches]
    problems += [errors.unknown("release", name, known) for name in releases if name not in known]
    if problems:
        raise errors.BadInput("\n".join(problems))
    chosen = [catalog.patches[patch_id] for patch_id in catalog.order if not ids or patch_id in ids]
    cases = [case for patch in chosen for case in _cases(catalog, patch)]
    together = sorted((case for release in known for case in _together(catalog, release)), key=lambda case: case.patch)
    cases += [case for case in together if not ids or set(ids) & set(case.before)]
    found = tuple(case for case in cases if not releases or case.release in releases)
    if not found:
        what = f"{', '.join(ids) or 'any patch'} on {', '.join(releases) or 'any release'}"
        raise errors.BadInput(f"nothing to prove of {what}", hint="see what there is: ./inv patch.explain ID")
    return found


def distinct(catalog: Catalog, chosen: Sequence[Case]) -> tuple[Case, ...]:
    """Return the default release, and the first and last of each run of releases on which the same bytes change."""
    runs = itertools.groupby(chosen, key=lambda case: (case.patch, case.kind, case.before, _changed(catalog, case)))
    default = catalog.releases.default_release
    return tuple(
        case
        for run in (tuple(run) for _, run in runs)
        for case in run
        if case in {run[0], run[-1]} or case.release == default
    )


def _changed(catalog: Catalog, case: Case) -> dict[str, records.FileHashes]:
    return catalog.patches[case.patch].editions[case.release].files if case.kind == "edition" else {}


def _cases(catalog: Catalog, patch: records.Patch) -> Iterator[Case]:
    for release in patch.editions:
        yield Case(patch=patch.id, release=release, before=_before(catalog, patch, release))
    if patch.probe:
        yield from (Case(patch=patch.id, release=release, kind="unported") for release in patch.unported)
    if patch.probe and patch.upstream_since:
        for release in catalog.releases.releases if not patch.editions else {patch.upstream_since}:
            if release in catalog.releases.releases:
                yield Case(patch=patch.id, release=release, kind="upstream")


def _before(catalog: Catalog, patch: records.Patch, release: str) -> tuple[str, ...]:
    """Return the patches that come before it in the first series that holds it and leave a file that it changes."""
    paths = patch.editions[release].files.keys()
    for series in _series(catalog, release).values():
        if patch in series:
            earlier = series[: series.index(patch)]
            return tuple(other.id for other in earlier if paths & other.editions[release].files)
    return ()


def _together(catalog: Catalog, release: str) -> Iterator[Case]:
    """Yield each series of a release that is no part of another, once, where it is more than one patch."""
    found: dict[tuple[str, ...], str] = {}
    for target, series in _series(catalog, release).items():
        found.setdefault(tuple(patch.id for patch in series), target)
    for ids, target in found.items():
        if len(ids) > 1 and not any(set(ids) < set(other) for other in found):
            yield Case(patch=f"all of {target}", release=release, before=ids, kind="series")


def _series(catalog: Catalog, release: str) -> dict[str, tuple[records.Patch, ...]]:
    """Return the patches with an edition of every target of a release, in order, by variant and arch."""
    return {
        f"{variant} {arch}": tuple(
            patch
            for patch in planning.needed(catalog, model=model, variant=variant, arch=arch, release=release)
            if release in patch.editions
        )
        for model, variant, arch, each in planning.possible(catalog)
        if each == release
    }
