"""Verdicts of drift, on toy files: each word of the vocabulary from the sources that deserve it, and the replay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from conftest import TOY_AFTER, TOY_BEFORE, TOY_EDITION, TOY_PATH, sha256
from kiln import catalog as catalogs
from kiln import git, plan
from kiln.drift import fit, judge, retire
from kiln.drift.judge import Judge, Subject
from kiln.drift.memory import Memory
from kiln.drift.records import Cell, Column, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    Edit = Callable[[str, str, str], None]

YAML = "patches/toy/patch.yaml"
MADE_FOR, NEXT, UNSEEN = "0.31.0", "0.32.0", "0.99.0"
SHIFTED = b"# zero\n" + TOY_BEFORE
ELSEWHERE = TOY_BEFORE + b"# eight\n# nine\n# ten\n# eleven\n"
TWICE = b"# zero\n" + TOY_BEFORE + TOY_BEFORE
OTHER = TOY_BEFORE.replace(b"'before'", b"'something else'")


def subject(release: str, files: Mapping[str, bytes], *, problem: str = "", known: bool = True) -> Subject:
    column = Column(name=release, kind="release", identity=release, in_catalog=known, problem=problem)
    return Subject(column=column, version=release, files=files, names=frozenset(files), find=lambda: files)


def cell(root: Path, there: Subject, patch: str = "toy", made_for: Mapping[str, bytes] | None = None) -> Cell:
    """Return what drift says of a patch on one column; its edition is for 0.31.0."""
    loaded = catalogs.load(root)
    releases = {MADE_FOR: subject(MADE_FOR, made_for or {TOY_PATH: TOY_BEFORE})}
    releases.setdefault(there.column.name, there)
    if there.column.name == MADE_FOR:
        releases[MADE_FOR] = there
    memory = Memory(folder=root / "memory")
    first, again = (Judge(loaded, releases, memory.attempt).cell(patch, there) for _ in range(2))
    assert first == again, "what is remembered is not what was found"
    return first


@pytest.fixture
def everywhere(toy_catalog: Path, edit: Edit) -> Path:
    """Return a catalog whose toy patch is needed on every release from 0.31.0 on."""
    edit(YAML, '"==0.31.0"', '">=0.31.0"')
    return toy_catalog


def test_the_release_that_an_edition_is_made_for(toy_catalog: Path) -> None:
    found = cell(toy_catalog, subject(MADE_FOR, {TOY_PATH: TOY_BEFORE}))
    assert (found.verdict, found.known, found.edition) == (Verdict.CLEAN, True, MADE_FOR)
    assert found.diff == TOY_EDITION.decode()
    assert found.files[0].found == sha256(TOY_AFTER)


@pytest.mark.parametrize("data", [ELSEWHERE, SHIFTED, OTHER, TOY_AFTER])
def test_a_release_that_is_not_what_it_was_is_drift(toy_catalog: Path, data: bytes) -> None:
    found = cell(toy_catalog, subject(MADE_FOR, {TOY_PATH: data}))
    assert not found.known
    assert found.verdict not in {Verdict.CLEAN, Verdict.MERGED}


@pytest.mark.parametrize(
    ("data", "verdict", "port"),
    [
        (ELSEWHERE, Verdict.OFFSET, "clean"),
        (SHIFTED, Verdict.OFFSET, "clean"),
        (TWICE, Verdict.AMBIGUOUS, "conflict"),
        (OTHER, Verdict.CONFLICT, "conflict"),
        (b"# nothing of it\n", Verdict.CONFLICT, "conflict"),
    ],
)
def test_a_release_without_an_edition(everywhere: Path, data: bytes, verdict: Verdict, port: str) -> None:
    found = cell(everywhere, subject(NEXT, {TOY_PATH: data}))
    assert (found.verdict, found.port, found.known, found.edition) == (verdict, port, False, MADE_FOR)
    assert found.next == "./inv patch.port toy --to 0.32.0"
    assert ("+WORD = 'after'" in found.diff) == (port == "clean")


def test_the_same_bytes_on_a_release_of_the_catalog_still_lack_an_edition(everywhere: Path) -> None:
    found = cell(everywhere, subject(NEXT, {TOY_PATH: TOY_BEFORE}))
    assert (found.verdict, found.known, found.edition) == (Verdict.CLEAN, False, MADE_FOR)


def test_the_same_bytes_on_a_release_that_nobody_has_added_are_no_drift(everywhere: Path) -> None:
    found = cell(everywhere, subject(UNSEEN, {TOY_PATH: TOY_BEFORE}, known=False))
    assert (found.verdict, found.known) == (Verdict.CLEAN, True)


def test_what_is_listed_as_unported_is_known(everywhere: Path, edit: Edit) -> None:
    edit(YAML, "probe:", "unported: [0.32.0]\nprobe:")
    assert cell(everywhere, subject(NEXT, {TOY_PATH: OTHER})).known
    assert not cell(everywhere, subject("0.33.0", {TOY_PATH: OTHER})).known


def test_a_file_that_is_gone_names_where_it_may_be(everywhere: Path) -> None:
    found = cell(everywhere, subject(NEXT, {"vllm/a/toy.py": OTHER, "vllm/b/toy.py": OTHER}))
    assert found.verdict is Verdict.MOVED
    assert found.files[0].candidates == ("vllm/a/toy.py", "vllm/b/toy.py")
    assert cell(everywhere, subject(NEXT, {})).verdict is Verdict.CONFLICT


def test_a_file_that_moved_is_followed(everywhere: Path) -> None:
    found = cell(everywhere, subject(NEXT, {"vllm/a/toy.py": TOY_BEFORE}))
    assert (found.verdict, found.port) == (Verdict.MOVED, "clean")
    assert "+++ b/vllm/a/toy.py" in found.diff


def test_what_a_release_has_itself_is_merged_and_proposes_its_own_end(everywhere: Path) -> None:
    found = cell(everywhere, subject(NEXT, {TOY_PATH: TOY_AFTER}))
    assert (found.verdict, found.known, found.first) == (Verdict.MERGED, False, NEXT)
    diff = retire.proposal(catalogs.load(everywhere), "toy", NEXT).decode()
    assert "+upstream_since: 0.32.0\n" in diff
    assert "<0.32.0" in diff


def test_what_a_release_has_in_other_words_is_for_a_person(everywhere: Path) -> None:
    """Upstream wrote the patch's line and changed what stands beside it: no merge, and the edition is not wanted."""
    lines = [b"word_of_the_patch_number_%d = %d\n" % (n, n) for n in range(4)]
    before, after = b"start = 0\n" * 3 + b"stop = 1\n" * 3, b"start = 0\n" * 3 + b"".join(lines) + b"stop = 1\n" * 3
    theirs = after.replace(lines[3], b"another = 3\n").replace(b"start = 0\n", b"begin = 0\n")
    found, total = fit.already({TOY_PATH: before}, {TOY_PATH: after}, {TOY_PATH: theirs})
    assert (found, total) == (3, 4)
    edition = git.diff({TOY_PATH: before}, {TOY_PATH: after})
    replaced(everywhere, {TOY_EDITION: edition, TOY_BEFORE: before, TOY_AFTER: after})
    there = cell(everywhere, subject(NEXT, {TOY_PATH: theirs}), made_for={TOY_PATH: before})
    assert (there.verdict, there.known, there.port) == (Verdict.MERGED_DIFFERENT, False, "conflict")
    assert "3 of the 4 lines" in there.says


def replaced(root: Path, instead: Mapping[bytes, bytes]) -> None:
    """Give the toy patch another edition; `instead` maps edition, file before and file after to new ones."""
    (root / "patches/toy/0.31.0.patch").write_bytes(instead[TOY_EDITION])
    yaml = (root / YAML).read_text(encoding="utf-8")
    for old, new in instead.items():
        yaml = yaml.replace(sha256(old), sha256(new))
    (root / YAML).write_text(yaml, encoding="utf-8")


def test_what_the_catalog_calls_merged_is_compared(toy_catalog: Path, edit: Edit) -> None:
    edit(YAML, "probe:", "upstream_since: 0.32.0\nprobe:")
    merged = cell(toy_catalog, subject(NEXT, {TOY_PATH: TOY_AFTER}))
    assert (merged.verdict, merged.known, merged.first) == (Verdict.MERGED, True, NEXT)
    assert "line by line" in merged.says
    other = cell(toy_catalog, subject(NEXT, {TOY_PATH: OTHER}))
    assert (other.verdict, other.known) == (Verdict.MERGED, True)
    assert "in its own words" in other.says


@pytest.mark.parametrize("back", [TOY_BEFORE, SHIFTED])
def test_what_upstream_took_back_is_seen_in_the_lines(toy_catalog: Path, edit: Edit, back: bytes) -> None:
    edit(YAML, "probe:", "upstream_since: 0.32.0\nprobe:")
    found = cell(toy_catalog, subject("0.33.0", {TOY_PATH: back}))
    assert (found.verdict, found.known) == (Verdict.WITHDRAWN, False)
    assert "withdrawn_in: 0.33.0" in found.next


def test_what_the_catalog_calls_withdrawn(toy_catalog: Path, edit: Edit) -> None:
    edit(YAML, "probe:", "upstream_since: 0.32.0\nwithdrawn_in: 0.33.0\nprobe:")
    found = cell(toy_catalog, subject("0.33.0", {TOY_PATH: OTHER}))
    assert (found.verdict, found.known, found.first) == (Verdict.WITHDRAWN, True, "0.33.0")


def test_outside_its_releases_a_patch_is_not_needed(toy_catalog: Path) -> None:
    found = cell(toy_catalog, subject(NEXT, {TOY_PATH: OTHER}))
    assert (found.verdict, found.known) == (Verdict.NOT_NEEDED, True)


def test_what_cannot_be_read_is_unknown_and_never_fine(toy_catalog: Path) -> None:
    found = cell(toy_catalog, subject(NEXT, {}, problem="no answer"))
    assert (found.verdict, found.known) == (Verdict.UNKNOWN, False)
    assert "no answer" in found.says


def second_patch(root: Path) -> None:
    """Add a patch on top of what the toy leaves; its edition fits nothing else."""
    before, after = TOY_AFTER, TOY_AFTER.replace(b"after", b"last")
    text = TOY_EDITION.replace(b"after", b"last").replace(b"before", b"after")
    folder = root / "patches/second"
    folder.mkdir()
    (folder / "0.31.0.patch").write_bytes(text)
    yaml = (root / YAML).read_text(encoding="utf-8").replace("id: toy", "id: second")
    for old, new in ((TOY_EDITION, text), (TOY_AFTER, after), (TOY_BEFORE, before)):
        yaml = yaml.replace(sha256(old), sha256(new) + "\0")  # marked, so that it is not replaced again
    (folder / "patch.yaml").write_text(yaml.replace("\0", ""), encoding="utf-8")
    (root / "patches/series.yaml").write_text("order: [toy, second]\n", encoding="utf-8")


def test_the_series_is_replayed_in_order(everywhere: Path) -> None:
    """Looked at alone, the second patch fits no release at all."""
    second_patch(everywhere)
    assert cell(everywhere, subject(MADE_FOR, {TOY_PATH: TOY_BEFORE}), "second").verdict is Verdict.CLEAN
    shifted = cell(everywhere, subject(NEXT, {TOY_PATH: SHIFTED}), "second")
    assert (shifted.verdict, shifted.port) == (Verdict.OFFSET, "clean")
    assert "-WORD = 'after'\n+WORD = 'last'" in shifted.diff
    broken = cell(everywhere, subject(NEXT, {TOY_PATH: OTHER}), "second")
    assert (broken.verdict, broken.port) == (Verdict.CONFLICT, "conflict")


def test_lines_hold_every_series_once(catalog_copy: Path) -> None:
    loaded = catalogs.load(catalog_copy)
    found = judge.lines(loaded)
    assert len(found) == len(set(found))
    assert {patch for line in found for patch in line} == set(loaded.order)
    for line in found:
        assert list(line) == sorted(line, key=loaded.order.index)


def test_the_nearest_edition_is_the_newest_that_is_not_newer(catalog_copy: Path) -> None:
    patch = catalogs.load(catalog_copy).patches["nvfp4-marlin-swiglu"]
    asked = ("0.23.0", "0.24.0", "0.26.1", "0.27.1", "0.100.0")
    assert [plan.nearest(patch, version) for version in asked] == ["0.24.0", "0.24.0", "0.26.0", "0.27.1", "0.27.1"]


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"merged": false, "clean": true, "before": {}, "after": {"x": "?"}}'])
def test_a_damaged_memory_is_made_again(everywhere: Path, damage: bytes) -> None:
    there = subject(NEXT, {TOY_PATH: SHIFTED})
    found = cell(everywhere, there)
    kept: list[Any] = list((everywhere / "memory").iterdir())
    for file in kept:
        file.write_bytes(damage)
    assert len(kept) == 1
    assert cell(everywhere, there) == found
