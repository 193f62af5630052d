"""Verdicts of drift, on toy files: each word of the vocabulary from the sources that deserve it, and the replay."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from conftest import TOY_AFTER, TOY_BEFORE, TOY_EDITION, TOY_PATH, sha256
from kiln import catalog as catalogs
from kiln import errors, git, plan
from kiln.drift import fit, judge, retire
from kiln.drift.judge import Judge, Subject
from kiln.drift.memory import Memory
from kiln.drift.records import Cell, Column, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
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


def cell(
    root: Path,
    there: Subject,
    patch: str = "toy",
    *,
    made_for: Mapping[str, bytes] | None = None,
    others: Sequence[Subject] = (),
) -> Cell:
    """Return what drift says of a patch on one column; its edition is for 0.31.0."""
    loaded = catalogs.load(root)
    releases = {MADE_FOR: subject(MADE_FOR, made_for or {TOY_PATH: TOY_BEFORE})}
    releases |= {each.column.name: each for each in (*others, there)}
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


UPSTREAM = TOY_BEFORE.replace(b"WORD = 'before'", b"THE_WORD_IT_IS = 'before'\nAND_ONE_MORE_LINE = True")


@pytest.fixture
def since(toy_catalog: Path, edit: Edit) -> Path:
    """Return a catalog that says: vLLM has the toy's change since 0.32.0."""
    edit(YAML, "probe:", "upstream_since: 0.32.0\nprobe:")
    return toy_catalog


@pytest.mark.parametrize(
    ("files", "verdict", "known"),
    [
        ({TOY_PATH: UPSTREAM}, Verdict.MERGED, True),
        ({TOY_PATH: b"# above\n" + UPSTREAM}, Verdict.MERGED, True),
        ({TOY_PATH: OTHER}, Verdict.MERGED_DIFFERENT, False),
        ({TOY_PATH: b"# nothing\n"}, Verdict.MERGED_DIFFERENT, False),
        ({}, Verdict.CONFLICT, False),
        ({"vllm/a/toy.py": UPSTREAM}, Verdict.MOVED, False),
    ],
)
def test_merged_is_what_upstream_changed_and_is_still_there(
    since: Path, files: dict[str, bytes], verdict: Verdict, *, known: bool
) -> None:
    first = subject(NEXT, {TOY_PATH: UPSTREAM})
    found = cell(since, subject("0.33.0", files), others=(first,))
    assert (found.verdict, found.known) == (verdict, known)


def test_merged_is_not_believed_where_there_is_nothing_to_compare_with(since: Path) -> None:
    there = subject("0.33.0", {TOY_PATH: UPSTREAM})
    unread = subject(NEXT, {}, problem="no answer")
    assert (cell(since, there, others=(unread,)).verdict, cell(since, there, others=(unread,)).known) == (
        Verdict.UNKNOWN,
        False,
    )
    own = subject(MADE_FOR, {}, problem="no answer")
    back = cell(since, subject("0.33.0", {TOY_PATH: TOY_BEFORE}), others=(own,))
    assert (back.verdict, back.known) == (Verdict.UNKNOWN, False)


def test_a_release_that_is_said_to_have_what_it_has_an_edition_for(toy_catalog: Path, edit: Edit) -> None:
    edit(YAML, "probe:", "upstream_since: 0.31.0\nprobe:")
    found = cell(toy_catalog, subject(MADE_FOR, {TOY_PATH: TOY_BEFORE}))
    assert (found.verdict, found.known) == (Verdict.WITHDRAWN, False)


def test_an_edition_that_a_series_uses_is_judged_whatever_upstream_took_back(everywhere: Path, edit: Edit) -> None:
    edit(YAML, "probe:", "upstream_since: 0.29.0\nwithdrawn_in: 0.30.0\nprobe:")
    assert cell(everywhere, subject(MADE_FOR, {TOY_PATH: TOY_BEFORE})).verdict is Verdict.CLEAN
    broken = cell(everywhere, subject(MADE_FOR, {TOY_PATH: OTHER}))
    assert (broken.verdict, broken.known) == (Verdict.CONFLICT, False)


@pytest.mark.parametrize("data", [TOY_EDITION.replace(b"five", b"fife"), TOY_EDITION + TOY_EDITION, b"garbage\n"])
def test_an_edition_that_is_not_the_recorded_one(toy_catalog: Path, data: bytes) -> None:
    (toy_catalog / "patches/toy/0.31.0.patch").write_bytes(data)
    found = cell(toy_catalog, subject(MADE_FOR, {TOY_PATH: TOY_BEFORE}))
    assert (found.verdict, found.known) == (Verdict.CONFLICT, False)
    assert "not the one that patch.yaml records" in found.says


@pytest.mark.parametrize(("old", "new"), [(TOY_BEFORE, OTHER), (TOY_AFTER, OTHER)])
def test_both_recorded_hashes_count(toy_catalog: Path, edit: Edit, old: bytes, new: bytes) -> None:
    edit(YAML, sha256(old), sha256(new))
    assert cell(toy_catalog, subject(MADE_FOR, {TOY_PATH: TOY_BEFORE})).verdict is Verdict.CONFLICT


def test_what_fails_while_one_cell_is_judged_is_unknown_there(everywhere: Path) -> None:
    def fails() -> Mapping[str, bytes]:
        raise errors.Missing("the index is gone", hint="look at it")

    broken = replace(subject(NEXT, {TOY_PATH: OTHER}), find=fails)
    found = cell(everywhere, broken)
    if found.verdict is not Verdict.UNKNOWN:  # nothing of this file needed all others
        found = cell(everywhere, replace(subject(NEXT, {}), find=fails))
    assert (found.verdict, found.known, found.next) == (Verdict.UNKNOWN, False, "look at it")
    assert "the index is gone" in found.says


def test_a_ref_that_is_newer_than_all_knows_what_is_unported_on_the_newest(everywhere: Path, edit: Edit) -> None:
    main = replace(
        subject("9999", {TOY_PATH: OTHER}), column=Column(name="git:main", kind="ref", identity="1", in_catalog=False)
    )
    assert not cell(everywhere, main).known
    edit(YAML, "probe:", "unported: [0.33.0]\nprobe:")
    assert cell(everywhere, main).known


def test_the_worst_of_all_series_counts(toy_catalog: Path) -> None:
    """On gfx942 another patch comes first and takes the line away; elsewhere the toy stands alone and fits."""
    folder = toy_catalog / "patches/zzz"
    shutil.copytree(toy_catalog / "patches/toy", folder)
    yaml = (folder / "patch.yaml").read_text(encoding="utf-8").replace("id: toy", "id: zzz")
    yaml = yaml.replace("applies: {", "applies: {arches: [gfx942], ")
    (folder / "patch.yaml").write_text(yaml, encoding="utf-8")
    (toy_catalog / "patches/series.yaml").write_text("order: [zzz, toy]\n", encoding="utf-8")
    there = subject(MADE_FOR, {TOY_PATH: TOY_BEFORE})
    assert cell(toy_catalog, there, "zzz").verdict is Verdict.CLEAN
    assert cell(toy_catalog, there, "toy").verdict is Verdict.CONFLICT


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
