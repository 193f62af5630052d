"""Says which patches are proven on which releases, on top of which other patches; pure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln import plan as planning

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kiln.catalog import Catalog, records


@dataclass(frozen=True, kw_only=True)
class Case:
    """A patch on a release: `before` are the patches under it; without an edition the release itself must pass."""

    patch: str
    release: str
    before: tuple[str, ...]
    edition: bool

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
    return tuple(
        case for patch in chosen for case in _cases(catalog, patch) if not releases or case.release in releases
    )


def distinct(catalog: Catalog, chosen: Sequence[Case]) -> tuple[Case, ...]:
    """Return the first and the last release of each run of releases on which a patch changes the same bytes."""
    runs = itertools.groupby(chosen, key=lambda case: (case.patch, case.edition, _changed(catalog, case)))
    ends = ((cases[0], cases[-1]) for cases in (tuple(run) for _, run in runs))
    return tuple(case for pair in ends for case in dict.fromkeys(pair))


def _changed(catalog: Catalog, case: Case) -> dict[str, records.FileHashes]:
    return catalog.patches[case.patch].editions[case.release].files if case.edition else {}


def _cases(catalog: Catalog, patch: records.Patch) -> Iterator[Case]:
    for release in patch.editions:
        yield Case(patch=patch.id, release=release, before=_before(catalog, patch, release), edition=True)
    if patch.probe and patch.upstream_since:
        for release in catalog.releases.releases if not patch.editions else {patch.upstream_since}:
            if release in catalog.releases.releases:
                yield Case(patch=patch.id, release=release, before=(), edition=False)


def _before(catalog: Catalog, patch: records.Patch, release: str) -> tuple[str, ...]:
    """Return the patches that come before it in the first series that holds it and leave a file that it changes."""
    paths = patch.editions[release].files.keys()
    for model, variant, arch, each in planning.possible(catalog):
        series = planning.needed(catalog, model=model, variant=variant, arch=arch, release=each)
        if each == release and patch in series:
            earlier = series[: series.index(patch)]
            return tuple(
                other.id for other in earlier if release in other.editions and paths & other.editions[release].files
            )
    return ()
