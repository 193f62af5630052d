"""A second opinion on every edition of the catalog: git, alone with the real files, must give the same bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, plan, process
from kiln.image import rehearsal
from kiln.patching import engine, roots
from kiln.patching import plan as patching
from kiln.patching.outcomes import Outcome, digest
from kiln.patching.tree import Memory
from kiln.upstream import wheel

if TYPE_CHECKING:
    from kiln.patching.series import Series

ROOT = Path(__file__).resolve().parents[2]
CATALOG = catalog.load(ROOT)
EDITIONS = sorted((patch.id, release) for patch in CATALOG.patches.values() for release in patch.editions)


def series_with(name: str, release: str) -> Series:
    """Return the series of some target in which the edition has its place, also where the target itself is refused."""
    for model, variant, arch, of in plan.possible(CATALOG):
        if of == release:
            needed = plan.needed(CATALOG, model=model, variant=variant, arch=arch, release=release)
            ids = [patch.id for patch in needed if release in patch.editions]
            if name in ids:
                return rehearsal.series_of(CATALOG, release, ids)
    raise AssertionError(f"no target has {name} for {release}")


def pristine(release: str, made: Series) -> dict[str, bytes]:
    """Return the files that the series touches, with the metadata of the wheel they come from."""
    pin = CATALOG.releases.releases[release].wheel
    info = f"vllm-{release}.dist-info"
    paths = [*made.chains(), f"{info}/RECORD", f"{info}/METADATA"]
    return wheel.read(pin, paths, cache=CATALOG.state / "wheels")


def laid(where: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(data)
    return where


def package(where: Path) -> dict[str, bytes]:
    found = (path for path in where.rglob("*") if path.is_file() and ".dist-info" not in str(path.relative_to(where)))
    return {path.relative_to(where).as_posix(): path.read_bytes() for path in found}


def git_applied(made: Series, where: Path) -> dict[str, bytes]:
    """Apply the editions with git: no settings, no repository above, none of our environment."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(where.parent),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CEILING_DIRECTORIES": str(where.parent),
    }
    for patch in made.patches:
        edition = where.parent / patch.edition
        edition.write_bytes(patch.data)
        process.ask(("git", "apply", "--check", str(edition)), cwd=where, env=env)
        process.ask(("git", "apply", "--whitespace=nowarn", str(edition)), cwd=where, env=env)
        listed = process.ask(("git", "apply", "--numstat", "-z", str(edition)), cwd=where, env=env)
        theirs = {row.split("\t")[2] for row in listed.split("\0") if row}
        assert theirs == {change.path for change in patch.files}, "two parsers see different files"
    return package(where)


@pytest.mark.parametrize(("name", "release"), EDITIONS)
def test_t55_git_gives_the_same_bytes_as_the_engine(name: str, release: str, tmp_path: Path) -> None:
    made = series_with(name, release)
    files = pristine(release, made)
    root = roots.find("vllm", root=laid(tmp_path / "ours", files), release=release)
    before = {path: path.read_bytes() for path in root.path.rglob("*") if path.is_file()}
    assert engine.apply(made, root).outcome is Outcome.APPLIED
    ours = package(root.path)
    assert git_applied(made, laid(tmp_path / "theirs", files)) == ours
    found = patching.plan(made, Memory(files))
    assert {write.path: write.data for write in found.writes}.items() <= ours.items()
    assert {path: digest(ours.get(path)) for path in made.chains()} == {
        path: chain[-1].post for path, chain in made.chains().items()
    }
    held = {path: path.read_bytes() for path in root.path.rglob("*") if path.is_file()}
    assert engine.apply(made, root).outcome is Outcome.ALREADY_APPLIED
    assert engine.verify(root, made).outcome is Outcome.ALREADY_APPLIED
    assert {path: path.read_bytes() for path in root.path.rglob("*") if path.is_file()} == held
    assert engine.revert(root).outcome is Outcome.REVERTED
    assert {path: path.read_bytes() for path in root.path.rglob("*") if path.is_file()} == before


def test_there_is_something_to_have_an_opinion_on() -> None:
    assert len(EDITIONS) > 2
