"""The catalog against the real wheels: every pin, every pristine file, every edition, every source probe."""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

from kiln import catalog, plan, process
from kiln.catalog import edition_path
from kiln.image import rehearsal
from kiln.patching import plan as patching
from kiln.patching.outcomes import Outcome
from kiln.patching.tree import Memory
from kiln.upstream import wheel

ROOT = Path(__file__).resolve().parents[2]
CATALOG = catalog.load(ROOT)
RELEASES = sorted(CATALOG.releases.releases)
EDITIONS = [(patch.id, release) for patch in CATALOG.patches.values() for release in patch.editions]
# one target for every series there is
SERIES = {
    (made.target.release, tuple(use.id for use in made.series)): made
    for made in (
        plan.make(CATALOG, model=model, variant=variant, arch=arch, release=release)
        for model, variant, arch, release in plan.possible(CATALOG)
        if not list(plan.refusals(CATALOG, model=model, variant=variant, arch=arch, release=release))
    )
    if made.series
}
MOST_BYTES = 5_000_000


@dataclass(frozen=True, kw_only=True)
class Pristine:
    files: dict[str, bytes]
    fetched_bytes: int


@cache
def pristine(release: str) -> Pristine:
    """Read what the editions of a release touch, straight from the index, without a cache."""
    paths = {path for name, of in EDITIONS if of == release for path in CATALOG.patches[name].editions[release].files}
    opened = wheel.RemoteWheel(CATALOG.releases.releases[release].wheel)
    files = opened.read(sorted(paths))
    return Pristine(files=files, fetched_bytes=opened.fetched_bytes)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def written(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return root


def patched(made: plan.Plan) -> dict[str, bytes]:
    """Return the files of a target's series as the engine leaves them."""
    files = pristine(made.target.release).files
    found = patching.plan(rehearsal.compile_series(made, CATALOG), Memory(files))
    assert found.report.outcome is Outcome.APPLIED, list(rehearsal.describe(found.report))
    assert all(write.data is not None for write in found.writes)
    return files | {write.path: write.data for write in found.writes if write.data is not None}


@pytest.mark.parametrize("release", RELEASES)
def test_the_index_lists_the_pinned_wheel_and_few_bytes_are_needed(release: str) -> None:
    found = pristine(release)
    assert found.files
    assert 0 < found.fetched_bytes < MOST_BYTES


@pytest.mark.parametrize("release", [name for name in RELEASES if CATALOG.releases.releases[name].twin])
def test_the_wheel_of_a_twin_holds_the_same_targets(release: str) -> None:
    twin = CATALOG.releases.releases[release].twin
    assert twin is not None
    assert wheel.RemoteWheel(twin.wheel).read(pristine(release).files) == pristine(release).files


@pytest.mark.parametrize(("release", "series"), SERIES, ids=str)
def test_a_series_starts_at_the_files_of_the_release_and_ends_at_post(release: str, series: tuple[str, ...]) -> None:
    made = SERIES[release, series]
    first: dict[str, str | None] = {}
    last: dict[str, str | None] = {}
    for use in made.series:
        for path, pre, post in use.files:
            first.setdefault(path, pre)
            last[path] = post
    files = pristine(release).files
    assert {path: sha256(files[path]) if path in files else None for path in first} == first
    after = patched(made)
    assert {path: sha256(after[path]) if path in after else None for path in last} == last


@pytest.mark.parametrize(("release", "series"), SERIES, ids=str)
def test_git_gives_the_same_bytes(release: str, series: tuple[str, ...], tmp_path: Path) -> None:
    """In a folder that is in no repository, with no settings of this machine."""
    made = SERIES[release, series]
    root = written(tmp_path / "tree", pristine(release).files)
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    env["GIT_CEILING_DIRECTORIES"] = str(tmp_path)
    for use in made.series:
        process.ask(("git", "apply", "--verbose", str(ROOT / edition_path(use.id, use.edition))), cwd=root, env=env)
    found = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert found == patched(made)


@pytest.mark.parametrize(("release", "series"), SERIES, ids=str)
def test_patches_that_share_no_file_give_the_same_bytes_in_any_order(release: str, series: tuple[str, ...]) -> None:
    made = SERIES[release, series]
    expected = patched(made)
    for first, second in itertools.combinations(made.series, 2):
        if {path for path, _, _ in first.files} & {path for path, _, _ in second.files}:
            continue
        swapped = [second if use is first else first if use is second else use for use in made.series]
        if any(later_needs(use, swapped) for use in swapped):
            continue
        assert patched(replace(made, series=tuple(swapped))) == expected


def later_needs(use: plan.PatchUse, order: list[plan.PatchUse]) -> bool:
    """Say whether a patch that comes after `use` in this order leaves the bytes that `use` begins with."""
    posts = {(path, post) for other in order[order.index(use) + 1 :] for path, _, post in other.files}
    return any((path, pre) in posts for path, pre, _ in use.files)
