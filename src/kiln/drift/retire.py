"""Proposes what patch.yaml says once a release has the change itself: since when, and that no later one needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet

from kiln import git
from kiln.catalog import edit

if TYPE_CHECKING:
    from kiln.catalog import Catalog


def proposal(catalog: Catalog, patch_id: str, release: str) -> bytes:
    """Return the diff of patch.yaml that sets upstream_since and closes the range of releases there.

    Raises BadInput where a person has written that file in a way that cannot be edited.
    """
    path = f"patches/{patch_id}/patch.yaml"
    before = (catalog.root / path).read_text(encoding="utf-8")
    releases = catalog.patches[patch_id].applies.releases
    kept = [str(part) for part in SpecifierSet(releases) if part.operator not in {"<", "<="}]
    after = edit.with_status(edit.with_upstream_since(before, release), "merged")
    after = edit.with_releases(after, ",".join([*sorted(kept), f"<{release}"]))
    return git.diff({path: before.encode()}, {path: after.encode()})
