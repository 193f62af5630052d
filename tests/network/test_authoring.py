"""Worktrees, export, the gate and intake on real releases' files; caches are this checkout's, the rest is a copy."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, git, process
from kiln.authoring import export, gate, intake, worktree
from kiln.patching.outcomes import Outcome
from kiln.proof import kernels
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kiln.catalog import Catalog

MARKER, STREAM, PIN = "m3-reasoning-prompt-marker", "m3-stream-first-delta", "gfx942-index-topk-pin"
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"
RELEASE = "0.31.0"
MAIL = b"""From 1234567890123456789012345678901234567890 Mon Sep 17 00:00:00 2001
From: A <a@example.invalid>
Subject: [PATCH] One tile

Why.
---
 tests/x.py | 1 +

"""


@pytest.fixture
def loaded(catalog_copy: Path) -> Catalog:
    """A copy of the catalog that may be written to, with the caches of this checkout and worktrees of its own."""
    root = catalog.find_root()
    shutil.copy(root / kernels.LOCK, catalog_copy)
    state = catalog_copy / ".kiln"
    state.mkdir()
    for name in ("sources", "wheels", "kernels", "torch"):
        (catalog.state_of(root) / name).mkdir(parents=True, exist_ok=True)
        (state / name).symlink_to(catalog.state_of(root) / name)
    return replace(catalog.load(catalog_copy), state=state)


def again(loaded: Catalog) -> Catalog:
    return replace(catalog.load(loaded.root), state=loaded.state)


def forbidden(*_: object) -> tuple[()]:
    raise AssertionError("nothing changed, so nothing is proven")


@pytest.mark.parametrize(
    ("patch_id", "release", "earlier"),
    [
        (MARKER, RELEASE, [PIN, STREAM]),
        (STREAM, RELEASE, [PIN]),
        (MARKER, "0.24.0", [PIN]),
        ("mxfp8-moe-gfx942", "0.31.0", []),
        ("nvfp4-modelopt-mixed", "0.24.0", []),
    ],
)
def test_export_of_an_untouched_worktree_is_byte_identical(
    loaded: Catalog, patch_id: str, release: str, earlier: list[str]
) -> None:
    folder = worktree.open(loaded, patch_id, release, reporter=Reporter())
    told = export.export(loaded, patch_id, release, reporter=Reporter(), prove=forbidden)
    assert (told.changed, told.findings) == (False, ())
    assert told.diff.encode() == (loaded.root / "patches" / patch_id / f"{release}.patch").read_bytes()
    subjects = process.ask(("git", "log", "--reverse", "--format=%s"), cwd=folder).splitlines()
    titles = [" ".join(loaded.patches[each].title.split()) for each in (*earlier, patch_id)]
    assert subjects == [f"vLLM {release}", *titles]
    base = process.ask(("git", "rev-list", "--count", worktree.BASE), cwd=folder)
    assert int(base) == 1 + len(earlier)


def test_an_edit_is_proven_and_written_and_one_that_undoes_the_patch_is_not(loaded: Catalog) -> None:
    folder = worktree.open(loaded, MARKER, RELEASE, reporter=Reporter())
    edition = loaded.root / "patches" / MARKER / f"{RELEASE}.patch"
    before, described = edition.read_bytes(), (edition.with_name("patch.yaml")).read_text()
    good = (folder / PARSER).read_bytes()
    stock = process.ask(("git", "show", f"{worktree.BASE}:{PARSER}"), cwd=folder).encode()
    (folder / PARSER).write_bytes(stock + b"\n# no effect\n")
    told = export.export(loaded, MARKER, RELEASE, reporter=Reporter())
    assert any("its probe is not green" in finding.problem for finding in told.findings)
    assert (edition.read_bytes(), edition.with_name("patch.yaml").read_text()) == (before, described)
    (folder / PARSER).write_bytes(good + b"\n# no effect\n")
    told = export.export(loaded, MARKER, RELEASE, reporter=Reporter())
    assert (told.written, told.findings) == (True, ())
    old, new = (each.patches[MARKER].editions[RELEASE] for each in (loaded, again(loaded)))
    assert new.sha256 != old.sha256
    assert new.files[PARSER].pre == old.files[PARSER].pre
    assert new.files[PARSER].post != old.files[PARSER].post


def test_an_edit_of_the_first_of_two_makes_the_second_again(loaded: Catalog) -> None:
    folder = worktree.open(loaded, STREAM, RELEASE, reporter=Reporter())
    (folder / PARSER).write_bytes((folder / PARSER).read_bytes() + b"# more\n")
    told = export.export(loaded, STREAM, RELEASE, reporter=Reporter())
    assert (told.written, told.findings) == (True, ())
    first, second = (again(loaded).patches[each].editions[RELEASE] for each in (STREAM, MARKER))
    assert second.files[PARSER].pre == first.files[PARSER].post
    assert list(export.check(again(loaded), {STREAM, MARKER}, {RELEASE})) == []


def test_a_package_that_is_removed_and_an_import_that_breaks_are_found(loaded: Catalog) -> None:
    """The patch's own probe and tests see neither."""
    folder = worktree.open(loaded, PIN, RELEASE, reporter=Reporter())
    shutil.rmtree(folder / "vllm/assets")
    indexer = folder / "vllm/models/minimax_m3/common/indexer.py"
    indexer.write_bytes(b"import no_such_module_at_all\n" + indexer.read_bytes())
    told = export.export(loaded, PIN, RELEASE, reporter=Reporter(), prove=forbidden)
    assert "deletes vllm/assets/__init__.py, which the edition for 0.31.0 does not" in told.findings[0].problem
    told = export.export(loaded, PIN, RELEASE, reporter=Reporter(), files=True)
    assert "cannot be imported when all patches are applied" in told.findings[0].problem
    assert not told.written


def test_check_makes_every_edition_again_and_finds_one_that_is_not_canonical(
    loaded: Catalog, edit: Callable[[str, str, str], None]
) -> None:
    assert list(export.check(loaded)) == []
    edit(f"patches/{PIN}/0.31.0.patch", "index ", "index 0")
    found = list(export.check(again(loaded), {PIN, STREAM}, {RELEASE}))
    assert [finding.where for finding in found] == [f"patches/{PIN}/0.31.0.patch"]


def test_somebodys_mail_becomes_the_edition_that_is_in_the_catalog(loaded: Catalog, tmp_path: Path) -> None:
    edition = (loaded.root / "patches" / PIN / f"{RELEASE}.patch").read_bytes()
    shutil.rmtree(loaded.root / "patches" / PIN)
    order = loaded.root / "patches/series.yaml"
    order.write_text(order.read_text().replace(f"  - {PIN}\n", ""))
    file = tmp_path / "1234.patch"
    file.write_bytes(MAIL + git.diff({}, {"tests/x.py": b"x = 1\n"}) + edition + b"-- \n2.39.5\n\n")
    catalog_now = again(loaded)

    def told(release: str, *, dry_run: bool = True) -> intake.New:
        return intake.new(catalog_now, "one-tile", file, release, reporter=Reporter(), dry_run=dry_run)

    judged = {name: told(name).intake for name in ("0.24.0", "0.29.0", "0.30.0", "0.33.0")}
    assert {name: each.outcome for name, each in judged.items()} == {
        "0.24.0": Outcome.MOVED,
        "0.29.0": Outcome.OFFSET,
        "0.30.0": Outcome.APPLIED,
        "0.33.0": Outcome.OFFSET,
    }
    assert judged["0.24.0"].files[0].candidates == ("vllm/models/minimax_m3/common/ops/index_topk.py",)
    assert judged["0.33.0"].fits == ("0.30.0", RELEASE)
    assert not (loaded.root / "patches/one-tile").exists()
    made = told(RELEASE, dry_run=False)
    assert made.intake.outcome is Outcome.APPLIED
    assert made.intake.left_out == (("tests/x.py", "lies in tests/, which is no part of the installed package"),)
    assert (loaded.root / f"patches/one-tile/{RELEASE}.patch").read_bytes() == edition
    assert again(loaded).patches["one-tile"].title == "One tile"
    stopped = gate.accept(again(loaded), "one-tile", RELEASE, edition, reporter=Reporter(), prove=forbidden)
    assert stopped[0].problem == "is still the skeleton, so nothing can be proven"
