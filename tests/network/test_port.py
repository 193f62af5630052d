"""Ports between real releases: what merges is what was recorded by hand, and what does not says so."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from kiln import catalog
from kiln.authoring import base
from kiln.port import run, sources, symbols
from kiln.port.attempt import Attempt, Between, attempt
from kiln.port.run import Wanted
from kiln.proof import kernels, trees
from kiln.report import Reporter

CATALOG = catalog.load(Path(__file__).resolve().parents[2])
PAIRS = [
    (patch.id, old, new)
    for patch in CATALOG.patches.values()
    for old, new in itertools.pairwise(sorted(patch.editions, key=Version))
]
FOLLOWED = (
    "max_memory_usage_bytes",
    "is_kv_cache_spec_uniform",
    "unify_kv_cache_spec_page_size",
    "_ensure_min_page_size",
)
P1, X9 = "mxfp8-moe-gfx942", "gfx942-index-topk-pin"


def ported(patch_id: str, old: str, new: str) -> Attempt:
    made = sources.images(CATALOG, CATALOG.patches[patch_id], old, new)
    between = Between(edition=old, release=new, before=lambda: sources.tree(CATALOG, patch_id, old))
    find = sources.tree(CATALOG, patch_id, new)
    return attempt(made.pre, made.post, made.theirs, lambda: find, between=between)


def recorded(patch_id: str, release: str) -> dict[str, bytes | None]:
    """Return the files of an edition as it leaves them."""
    paths = CATALOG.patches[patch_id].editions[release].files
    before = base.left_by(CATALOG, release, base.earlier(CATALOG, patch_id, release), paths)
    after = base.after(CATALOG, release, (patch_id,), before)
    return {path: after.get(path) for path in paths}


@pytest.mark.parametrize(("patch_id", "old", "new"), PAIRS)
def test_a_port_to_the_next_release_is_the_recorded_edition_or_says_why_not(patch_id: str, old: str, new: str) -> None:
    made = ported(patch_id, old, new)
    if made.clean:
        assert dict(made.files) == recorded(patch_id, new)
    for problem in made.problems:
        assert problem.expected
        assert problem.found
        assert problem.hint


def test_most_neighbours_need_no_person() -> None:
    assert len(PAIRS) > 40
    assert sum(ported(*pair).clean for pair in PAIRS if pair[0] == X9) >= 9


def test_the_file_that_0_25_0_copied_for_rocm_is_named() -> None:
    (problem,) = ported(X9, "0.24.0", "0.25.0").problems
    assert problem.candidates == tuple(f"vllm/models/minimax_m3/{who}/ops/index_topk.py" for who in ("common", "amd"))


def test_the_kernel_that_0_30_0_no_longer_has_for_rocm_is_named() -> None:
    (problem,) = ported(X9, "0.29.0", "0.30.0").problems
    assert "_topk_index_partial_kernel is no longer in this file" in problem.found
    twin = "vllm/models/minimax_m3/common/ops/index_topk.py"
    assert problem.candidates == (twin,)
    assert f"not followed: _topk_index_partial_kernel was in {twin}, too" in problem.found


def test_functions_that_0_33_0_moved_to_another_file_are_followed() -> None:
    """No patch changes these; one that would add a line to each is carried over."""
    old, new = (sources.Tree(trees.released(CATALOG, release), {}) for release in ("0.32.0", "0.33.0"))
    path, into = (f"vllm/v1/core/{name}.py" for name in ("kv_cache_utils", "kv_cache_planning"))
    between = Between(edition="0.32.0", release="0.33.0", before=lambda: old)
    lines, mark = symbols.module(old[path]).lines, b"    marked = True\n"
    for name in FOLLOWED:
        last = symbols.module(old[path]).definitions[name][0].last
        post = b"".join((*lines[: last - 1], mark, *lines[last - 1 :]))
        made = attempt({path: old[path]}, {path: post}, {path: new[path]}, lambda: new, between=between)
        assert (made.problems, dict(made.definitions)) == ((), {path: (name,)})
        data = made.files[into] or b""
        assert data.replace(mark, b"") == new[into]
        assert mark in symbols.module(data).text(name)


def test_p1_stops_at_0_33_0_and_what_it_merges_is_as_recorded() -> None:
    made, wanted = ported(P1, "0.31.0", "0.33.0"), recorded(P1, "0.33.0")
    stopped = {problem.path for problem in made.problems}
    assert stopped == {
        "vllm/model_executor/layers/fused_moe/layer.py",
        "vllm/model_executor/layers/fused_moe/oracle/mxfp8.py",
    }
    assert {path: data for path, data in made.files.items() if path not in stopped}.items() <= wanted.items()


def test_an_edition_that_is_taken_away_comes_back_byte_for_byte(catalog_copy: Path) -> None:
    """Through the gate: its probe and tests run without it and with it."""
    described, edition = (catalog_copy / "patches" / X9 / name for name in ("patch.yaml", "0.32.0.patch"))
    data = yaml.safe_load(described.read_text())
    del data["editions"]["0.32.0"]
    described.write_text(yaml.safe_dump(data, sort_keys=False))
    edition.unlink()
    shutil.copy(CATALOG.root / kernels.LOCK, catalog_copy)
    loaded = replace(catalog.load(catalog_copy), state=CATALOG.state)
    made = run.port(loaded, Wanted(patch=X9, to="0.32.0"), Reporter())
    assert (made.state, made.origin) == ("written", "0.31.0")
    assert edition.read_bytes() == (CATALOG.root / "patches" / X9 / "0.32.0.patch").read_bytes()
    assert catalog.load(catalog_copy).patches[X9].editions == CATALOG.patches[X9].editions
