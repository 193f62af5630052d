"""A port from the catalog's edition to a written one, or to a worktree; nothing unproven is ever written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from authoring_support import (
    BEFORE,
    BOTH,
    FIRST,
    PATH,
    PROBE,
    QUIET,
    SECOND,
    SOURCES,
    TWIN,
    add,
    give,
    hold,
    load,
    probed,
    snapshot,
)
from git import Repo

from kiln import catalog, errors, git
from kiln.authoring import export
from kiln.port import run
from kiln.port.run import Ported, Wanted
from kiln.tasks.show_port import show_port

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog

TO = "0.32.0"
LATER = b"START = True\n\n\n" + BEFORE
ONLY_FIRST = LATER[: LATER.index(b"def second")].replace(b"def first():", b"def first(x=0):") + b"END = True\n"


@pytest.fixture
def toy(toy_catalog: Path) -> Catalog:
    """The toy's patch, needed on 0.31.0, which it has an edition for, and later."""
    described = toy_catalog / "patches/toy/patch.yaml"
    described.write_text(described.read_text().replace("==0.31.0", ">=0.31.0"))
    loaded = load(toy_catalog)
    hold(toy_catalog, SOURCES | {PATH: LATER}, TO)
    return loaded


def port(loaded: Catalog, patch: str = "toy", **wanted: object) -> Ported:
    return run.port(loaded, Wanted(**{"patch": patch, "to": TO, **wanted}), QUIET, prove=probed)  # type: ignore[arg-type]


def released(loaded: Catalog, data: bytes) -> None:
    """Make the new release's file this one."""
    hold(loaded.root, SOURCES | {PATH: data}, TO)


def test_what_merges_and_is_proven_is_written(toy: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(toy.root)
    tried = port(toy, dry_run=True)
    assert (tried.state, tried.worktree, snapshot(toy.root)) == ("fits", None, before)
    made = port(toy)
    assert (made.state, made.origin, made.files) == ("written", "0.31.0", (PATH,))
    after = LATER.replace(b"second():\n    total = 0", b"second():\n    total = 1")
    assert (toy.root / f"patches/toy/{TO}.patch").read_bytes() == git.diff({PATH: LATER}, {PATH: after})
    assert catalog.load(toy.root).patches["toy"].editions.keys() == {"0.31.0", TO}
    show_port(made, json=False)
    assert f"written to patches/toy/{TO}.patch" in capsys.readouterr().out
    with pytest.raises(errors.BadInput, match=f"has an edition for {TO} already") as caught:
        port(catalog.load(toy.root))
    assert caught.value.hint.endswith(f"./inv patch.edit toy --release {TO}")


def test_a_twin_is_not_written_to(toy: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    """Git merges this without a conflict, into the function that is left."""
    released(toy, ONLY_FIRST)
    before = snapshot(toy.root)
    assert port(toy, dry_run=True).worktree is None
    made = port(toy)
    assert (made.state, snapshot(toy.root)) == ("conflict", before)
    assert made.worktree
    assert b"total = " in (made.worktree / PATH).read_bytes()
    with pytest.raises(errors.NotApplied) as caught:
        show_port(made, json=False)
    assert caught.value.hint == f"edit the files under {made.worktree}, then: ./inv patch.export toy --release {TO}"
    out = capsys.readouterr().out
    assert "second is no longer in this file" in out
    assert "    -def second():" in out


def refused(loaded: Catalog, folder: Path) -> str:
    """Return why export takes none of what a port left in a worktree."""
    before = snapshot(loaded.root)
    with pytest.raises(errors.BadInput) as caught:
        export.export(loaded, "toy", TO, reporter=QUIET, prove=probed)
    assert folder.is_dir()
    assert snapshot(loaded.root) == before
    return caught.value.message


def test_what_may_be_misplaced_stands_between_markers_until_a_person_has_decided(toy: Catalog) -> None:
    """The function that the change is for is gone, and git takes the other one."""
    more = b"return total + 1\n\n\nEND"
    give(toy.root, "toy", git.diff({PATH: BEFORE}, {PATH: BEFORE.replace(b"return total\n\n\nEND", more)}), BEFORE)
    toy = catalog.load(toy.root)
    released(toy, ONLY_FIRST)
    folder = port(toy).worktree
    assert folder
    lines = (folder / PATH).read_text().splitlines()
    at = lines.index("def first(x=0):") + 4
    assert lines[at : at + 4] == ["<<<<<<< 0.32.0", "    return total", "=======", "    return total + 1"]
    assert lines[at + 4].startswith(
        ">>>>>>> 0.31.0, with the patch: second is no longer in this file; the change would"
    )
    assert lines[at + 4].endswith("it was made for second; is this right?")
    assert lines[at + 5 :] == ["", "", "END = True"]
    assert "a conflict marker" in refused(toy, folder)
    (toy.root / "patches/toy/probe.py").write_text(PROBE.replace('at["second"]()', 'at.get("second", int)()'))
    (folder / PATH).write_bytes(ONLY_FIRST + TWIN.replace(b"NAME", b"second").replace(b"= 0", b"= 1"))
    told = export.export(toy, "toy", TO, reporter=QUIET, prove=probed)
    assert (told.written, told.findings) == (True, ())


@pytest.mark.parametrize("missing", [False, True])
def test_half_of_a_patch_stands_between_markers_too(toy: Catalog, *, missing: bool) -> None:
    """A file that the release has the change of, or has no more, has nothing to mark: the others have."""
    other = "vllm/sub/other.py"
    old, new = SOURCES[other], SOURCES[other].replace(b"# line 15\n", b"# fifteen\n")
    both = git.diff({PATH: BEFORE, other: old}, {PATH: SECOND, other: new})
    give(toy.root, "toy", both, of={PATH: BEFORE, other: old})
    tree = SOURCES | {PATH: LATER, other: new}
    hold(toy.root, tree, TO)
    if missing:
        (toy.state / "sources" / toy.releases.releases[TO].wheel.sha256 / other).unlink()
        hold(toy.root, {path: data for path, data in tree.items() if path != other}, TO)
    made = port(catalog.load(toy.root))
    assert (made.state, bool(made.problems)) == ("conflict", True)
    assert made.worktree
    assert "a conflict marker: <<<<<<< 0.32.0" in refused(catalog.load(toy.root), made.worktree)
    assert (made.worktree / PATH).read_bytes().count(b"<<<<<<< ") == 1


def test_a_conflict_is_left_in_a_worktree_with_what_upstream_did(
    toy: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = LATER.replace(b"second():\n    total = 0", b"second():\n    total = 7")
    released(toy, theirs)
    with Repo.init(tmp_path / "upstream") as repo:
        (tmp_path / "upstream/vllm").mkdir()
        for subject, data, tag in (("Old", BEFORE, "v0.31.0"), ("Seven is better", theirs, "v0.32.0")):
            (tmp_path / "upstream" / PATH).write_bytes(data)
            repo.index.add([PATH])
            repo.index.commit(subject)
            repo.create_tag(tag)
    made = port(toy, git=str(tmp_path / "upstream"))
    assert made.worktree
    text = (made.worktree / PATH).read_bytes()
    assert b"<<<<<<< 0.32.0\n    total = 7\n||||||| 0.31.0, before the patch\n    total = 0\n" in text
    with pytest.raises(errors.NotApplied, match="1 problem; no edition was written"):
        show_port(made, json=True)
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["path"], problem["outcome"], problem["hunk"]) == (PATH, "CONFLICT", 1)
    assert "+    total = 7" in problem["upstream"]["diff"].splitlines()
    assert [commit["subject"] for commit in problem["upstream"]["commits"]] == ["Seven is better"]


def test_what_merges_and_fails_its_probe_is_not_written(toy: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    released(toy, BEFORE.replace(b"    return total\n", b"    return total * 2\n"))
    before = snapshot(toy.root)
    made = port(toy)
    assert (made.state, snapshot(toy.root)) == ("refused", before)
    assert "probe" in made.findings[0].problem
    with pytest.raises(errors.Findings, match="no edition was written"):
        show_port(made, json=False)
    assert made.findings[0].problem in capsys.readouterr().out


def test_what_the_release_has_is_merged_and_nothing_is_written(
    toy: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    released(toy, LATER.replace(b"second():\n    total = 0", b"second():\n    total = 1"))
    before = snapshot(toy.root)
    made = port(toy)
    assert (made.state, made.worktree, snapshot(toy.root)) == ("merged", None, before)
    show_port(made, json=False)
    assert "MERGED, the release has every line" in capsys.readouterr().out


def test_a_moved_file_is_ported_where_it_is_now(toy: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    moved = "vllm/sub/twins.py"
    (toy.root / "patches/toy/probe.py").write_text(
        PROBE.replace(
            'sys.argv[1] + "/vllm/twins.py"', "str(next(__import__('pathlib').Path(sys.argv[1]).rglob('twins.py')))"
        )
    )
    hold(toy.root, {path: data for path, data in SOURCES.items() if path != PATH} | {moved: LATER}, TO)
    (toy.state / "sources" / toy.releases.releases[TO].wheel.sha256 / PATH).unlink()
    hold(toy.root, {moved: LATER}, TO)
    made = port(toy)
    assert (made.state, dict(made.moved), made.files) == ("written", {PATH: moved}, (moved,))
    assert catalog.load(toy.root).patches["toy"].editions[TO].files.keys() == {moved}
    show_port(made, json=False)
    assert f"moved from {PATH}" in capsys.readouterr().out


def test_an_earlier_patch_comes_first(toy: Catalog) -> None:
    loaded = add(toy.root, "later", git.diff({PATH: SECOND}, {PATH: BOTH}), SECOND)
    with pytest.raises(errors.NotApplied, match=f"comes after toy, which .* has no edition for {TO}") as caught:
        port(loaded, "later", dry_run=True)
    assert caught.value.hint == f"port that one first: ./inv patch.port toy --to {TO}"
    assert port(loaded).state == "written"
    probe = toy.root / "patches/later/probe.py"
    probe.write_text(PROBE.replace("second", "first"))
    assert port(catalog.load(toy.root), "later").state == "written"
    edition = (toy.root / f"patches/later/{TO}.patch").read_text()
    assert " def second():\n     total = 1\n" in edition or "total = 1\n" in edition


def test_the_edition_is_the_nearest_below_or_the_one_that_is_named(toy: Catalog) -> None:
    from kiln.port import sources

    patch = toy.patches["toy"]
    edition = patch.editions["0.31.0"]
    patch = patch.model_copy(update={"editions": dict.fromkeys(["0.9.0", "0.31.0", "0.30.0"], edition)})
    assert sources.origin(patch, "0.32.0") == "0.31.0"
    assert sources.origin(patch, "0.30.1") == "0.30.0"
    assert sources.origin(patch, "0.8.0") == "0.9.0"
    assert sources.origin(patch, "0.32.0", "0.9.0") == "0.9.0"


def test_what_is_still_to_be_written_is_said_before_anything_is_done(toy: Catalog) -> None:
    probe = toy.root / "patches/toy/probe.py"
    probe.write_text('print("red: this probe is not written yet")\n')
    with pytest.raises(errors.BadInput, match=r"patches/toy/probe\.py: is still the skeleton") as caught:
        port(toy)
    assert caught.value.hint == (
        "make it red without the patch and green with it: patches/toy/probe.py; then the same command again"
    )
    assert not (toy.state / "work").exists()
    described = toy.root / "patches/toy/patch.yaml"
    described.write_text(described.read_text().replace('">=0.31.0"', '"==0.31.0"'))
    with pytest.raises(errors.BadInput, match=r"not needed on 0\.32\.0") as caught:
        port(catalog.load(toy.root))
    assert "let applies.releases of patches/toy/patch.yaml cover 0.32.0" in caught.value.hint


def test_what_cannot_be_asked_for_is_bad_input(toy: Catalog) -> None:
    with pytest.raises(errors.BadInput, match="unknown patch 'tyo'"):
        port(toy, "tyo")
    with pytest.raises(errors.BadInput, match=r"unknown release '9\.9\.9'"):
        port(toy, to="9.9.9")
    with pytest.raises(errors.BadInput, match="--id is missing; known: toy\n--to is missing; known: "):
        port(toy, "", to="")
    with pytest.raises(errors.BadInput, match=r"not needed on 0\.24\.0"):
        port(toy, to="0.24.0")
    with pytest.raises(errors.BadInput, match=r"no edition for 0\.30\.0; editions: 0\.31\.0"):
        port(toy, origin="0.30.0")
    with pytest.raises(errors.BadInput, match="neither the URL nor the folder"):
        port(toy, git="nowhere")
    assert FIRST != SECOND
