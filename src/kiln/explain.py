"""Says of one patch why it exists, where it is needed, what upstream says and what evidence carries it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors, plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.catalog import Catalog, records


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One evidence file that names the patch; `current` says whether it is about the edition as it is now."""

    path: str
    passed: bool
    current: bool
    image_digest: str


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """`missing` holds the releases that need the patch and have no edition of it.

    `targets` are those that use it, `refused` those that would and cannot be made.
    """

    patch: records.Patch
    missing: tuple[str, ...]
    targets: tuple[str, ...]
    refused: tuple[str, ...]
    evidence: tuple[Evidence, ...]

    def as_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return self.patch.model_dump(mode="json") | {
            "missing_editions": list(self.missing),
            "targets": list(self.targets),
            "refused": list(self.refused),
            "evidence": [vars(item) for item in self.evidence],
        }


def make(catalog: Catalog, patch_id: str) -> Explanation:
    """Explain one patch; raises BadInput for an id that is not in the catalog."""
    if not patch_id:
        raise errors.BadInput(f"--id is missing; known: {', '.join(catalog.order)}")
    if patch_id not in catalog.patches:
        raise errors.BadInput(errors.unknown("patch", patch_id, catalog.patches))
    patch = catalog.patches[patch_id]
    releases = (release for release in catalog.releases.releases if plan.covers(patch.applies, release))
    targets = tuple(_targets(catalog, patch))
    return Explanation(
        patch=patch,
        missing=tuple(release for release in releases if release not in patch.editions),
        targets=tuple(slug for slug, refused in targets if not refused),
        refused=tuple(slug for slug, refused in targets if refused),
        evidence=tuple(_evidence(catalog, patch)),
    )


def _targets(catalog: Catalog, patch: records.Patch) -> Iterator[tuple[str, bool]]:
    """Yield each target that needs the patch, and whether it is refused."""
    for model, variant, arch, release in plan.possible(catalog):
        at = {"model": model, "variant": variant, "arch": arch, "release": release}
        if patch in plan.needed(catalog, **at):
            yield plan.Target(**at, product="").slug, any(plan.refusals(catalog, **at))


def _evidence(catalog: Catalog, patch: records.Patch) -> Iterator[Evidence]:
    """Yield the evidence under build/ that carries the patch; raises BadInput for a file that cannot be read."""
    editions = {edition.sha256 for edition in patch.editions.values()}
    for path in sorted(catalog.output("").glob("*/*-evidence.json")):
        for row in _series(path):
            if row[0] == patch.id:
                yield Evidence(
                    path=path.relative_to(catalog.root).as_posix(),
                    passed=row[2],
                    current=row[1] in editions,
                    image_digest=row[3],
                )


def _series(path: Path) -> Iterator[tuple[str, str, bool, str]]:
    """Yield (patch id, edition, passed, image) of every patch that an evidence file names."""
    try:
        data = json.loads(path.read_bytes())
        for use in data["series"]:
            yield str(use["id"]), str(use["edition_sha256"]), data["passed"] is True, str(data["image_digest"])
    except (ValueError, KeyError, TypeError) as error:
        message = f"{path}: not an evidence file: {type(error).__name__}: {error}"
        raise errors.BadInput(message, hint=f"remove it, and make it again: ./inv smoke; rm {path}") from error
