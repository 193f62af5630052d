"""Every patch and recipe of the catalog: pinned, complete, and what it says it is."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, plan
from kiln.catalog import edition_path
from kiln.patching import diff

if TYPE_CHECKING:
    from kiln.catalog import records

ROOT = Path(__file__).resolve().parents[2]
CATALOG = catalog.load(ROOT)
PATCHES = sorted(path.parent.name for path in (ROOT / "patches").glob("*/patch.yaml"))
EDITIONS = [(patch.id, release) for patch in CATALOG.patches.values() for release in patch.editions]


def data(patch: str, release: str) -> bytes:
    return (ROOT / edition_path(patch, release)).read_bytes()


def edition(patch: str, release: str) -> records.Edition:
    return CATALOG.patches[patch].editions[release]


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_says_why_it_is_there_and_when_it_can_go(name: str) -> None:
    patch = CATALOG.patches[name]
    assert patch.id == name
    for text in (patch.title, patch.reason, patch.lost_without, patch.drop_when):
        assert text.strip()
    assert patch.editions or patch.upstream_since, "neither a change, nor one that vLLM has or had"
    assert patch.probe or not patch.editions


def test_the_two_ways_to_keep_mxfp8_experts_small_exclude_each_other() -> None:
    hybrid, block = "mxfp8-moe-gfx942", "blockfp8-moe-gfx942"
    assert CATALOG.patches[hybrid].conflicts == (block,)
    assert CATALOG.patches[block].conflicts == (hybrid,)


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_folder_holds_its_editions_its_probe_and_nothing_else(name: str) -> None:
    found = {path.name for path in (ROOT / "patches" / name).iterdir() if path.name != "__pycache__"}
    patch = CATALOG.patches[name]
    needed = {"patch.yaml", *(f"{release}.patch" for release in patch.editions)} | (
        {"probe.py", "tests"} if patch.probe else set()
    )
    assert found - {"EVIDENCE.md"} == needed


@pytest.mark.parametrize("name", [name for name in PATCHES if CATALOG.patches[name].probe])
def test_a_probe_parses_and_says_how_it_is_run(name: str) -> None:
    tree = ast.parse((ROOT / "patches" / name / "probe.py").read_bytes())
    assert "Usage: python3 probe.py ROOT" in (ast.get_docstring(tree) or "")


@pytest.mark.parametrize(("name", "release"), EDITIONS)
def test_an_edition_is_pinned(name: str, release: str) -> None:
    assert hashlib.sha256(data(name, release)).hexdigest() == edition(name, release).sha256


@pytest.mark.parametrize(("name", "release"), EDITIONS)
def test_an_edition_touches_the_files_it_names(name: str, release: str) -> None:
    touched = {
        file.path: (file.created, file.deleted) for file in diff.parse(data(name, release), f"{name}/{release}.patch")
    }
    assert touched == {
        path: (hashes.pre is None, hashes.post is None) for path, hashes in edition(name, release).files.items()
    }


@pytest.mark.parametrize(("name", "release"), EDITIONS)
def test_an_edition_is_a_plain_git_diff(name: str, release: str) -> None:
    lines = data(name, release).decode().splitlines()
    heads = [line for line in lines if line.startswith(("--- ", "+++ ", "diff --git "))]
    for line in heads:
        assert line == "--- /dev/null" or line.startswith(("--- a/", "+++ b/", "+++ /dev/null", "diff --git a/"))
    indexes = [line.split()[1] for line in lines if line.startswith("index ")]
    assert indexes
    assert all(len(part) == 40 for index in indexes for part in index.split("..")), "exported without --full-index"
    assert not any(line.startswith(("From ", "Subject: ", "-- ")) for line in lines)


@pytest.mark.parametrize("release", sorted(CATALOG.releases.releases))
def test_what_a_release_names_is_there(release: str) -> None:
    pins = CATALOG.releases.releases[release]
    assert f"-{release}-" in pins.wheel.file
    assert bool(pins.twin) != bool(pins.no_twin_because)
    if pins.twin:
        assert pins.twin.wheel.version == release
        lock = (ROOT / pins.twin.requirements).read_text(encoding="utf-8").splitlines()
        assert all("==" in line and "--hash=sha256:" in line for line in lock if not line.startswith("#"))
        assert (ROOT / pins.twin.requirements).with_suffix(".in").is_file()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*/*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_lies_where_its_model_says(path: Path) -> None:
    model = f"{path.parent.name}/{path.stem}"
    assert CATALOG.recipes[model].model.model_id == model


@pytest.mark.parametrize(
    ("model", "variant", "arch", "release"),
    [
        (model, variant, arch, release)
        for model, variant, arch, release in plan.possible(CATALOG)
        if not list(plan.refusals(CATALOG, model=model, variant=variant, arch=arch, release=release))
    ],
    ids=lambda part: part.rsplit("/", 1)[-1],
)
def test_every_target_resolves(model: str, variant: str, arch: str, release: str) -> None:
    made = plan.make(CATALOG, model=model, variant=variant, arch=arch, release=release)
    assert (made.target.model, made.target.variant, made.target.arch, made.target.release) == (
        model,
        variant,
        arch,
        release,
    )
    assert made.serve.argv[:3] == ("vllm", "serve", made.serve.model_id)
    assert {"--tool-call-parser", "--reasoning-parser"} <= {flag.name for flag in made.serve.flags}
