from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from patching_support import A1, A2, B1, FILES, after_three, diff_of, series_of, three

from kiln.patching import authoring, errors, ledger, plan, series
from kiln.patching.outcomes import Outcome, digest
from kiln.patching.tree import Memory

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.patching.outcomes import FileReport, SeriesReport
    from kiln.patching.series import Series

TWINS = b"""\
class A:
    def f(self):
        x = 1
        return x


class B:
    def f(self):
        x = 1
        return x
"""


def planned(wanted: Series, files: dict[str, bytes], held: bytes | None = None) -> plan.Plan:
    found = plan.plan(wanted, Memory(files), ledger=held)
    assert bool(found.writes) == (found.report.outcome is Outcome.APPLIED)
    return found


def row(report: SeriesReport, patch_id: str, path: str) -> FileReport:
    (patch,) = (patch for patch in report.patches if patch.id == patch_id)
    (file,) = (file for file in patch.files if file.path == path)
    return file


def test_t15_a_pristine_tree_gets_every_file_of_every_patch() -> None:
    found = planned(three(), FILES)
    assert [patch.outcome for patch in found.report.patches] == [Outcome.APPLIED] * 3
    assert {write.path: write.data for write in found.writes} == {**A1, **A2, **B1}
    assert json.loads(found.ledger)["patches"][1]["files"][1] == {
        "path": "vllm/old.py",
        "pre": digest(FILES["vllm/old.py"]),
        "post": None,
    }


def test_t01_a_twin_elsewhere_is_no_place_to_patch() -> None:
    before = {"vllm/t.py": TWINS}
    wanted = series_of(("t", {"vllm/t.py": TWINS.replace(b"x = 1", b"x = 2", 1)}), files=before)
    gone = TWINS.split(b"\n\n\n")[1]
    assert row(planned(wanted, {"vllm/t.py": gone}).report, "t", "vllm/t.py").outcome is Outcome.CONFLICT
    context = b"    def f(self):\n        x = 1\n        return x\n"
    data = b"--- a/vllm/t.py\n+++ b/vllm/t.py\n@@ -2,3 +2,3 @@\n" + b"".join(
        b" " + line for line in context.splitlines(keepends=True)
    ).replace(b"         x = 1\n", b"-        x = 1\n+        x = 2\n")
    wanted = authoring.series("vllm", "0.31.0", [("t", data)], Memory(before))
    moved = row(planned(wanted, {"vllm/t.py": gone + b"pass\n"}).report, "t", "vllm/t.py")
    assert moved.outcome is Outcome.TARGET_MODIFIED
    moved = row(planned(wanted, {"vllm/t.py": b"# one line more\n" + gone}).report, "t", "vllm/t.py")
    assert (moved.outcome, moved.hunk, moved.expected, moved.found) == (Outcome.OFFSET, 1, "line 2", "line 3")
    moved = row(planned(wanted, {"vllm/t.py": b"# one line more\n" + TWINS}).report, "t", "vllm/t.py")
    assert (moved.outcome, moved.found) == (Outcome.AMBIGUOUS, "lines 3, 9")


def test_t04_a_conflict_names_hunk_line_and_both_texts() -> None:
    files = {**FILES, "vllm/b.py": FILES["vllm/b.py"].replace(b"b7 = 7", b"b7 = 70")}
    report = planned(three(), files).report
    found = row(report, "three", "vllm/b.py")
    assert (found.outcome, found.hunk) == (Outcome.CONFLICT, 1)
    assert (found.expected, found.found) == ("line 8: b7 = 7", "line 8: b7 = 70")
    assert report.outcome is Outcome.CONFLICT
    assert row(report, "one", "vllm/a.py").outcome is Outcome.UNKNOWN
    assert row(report, "three", "vllm/sub/new/d.py").outcome is Outcome.UNKNOWN


def test_a_change_far_from_every_hunk_still_makes_it_another_file() -> None:
    files = {**FILES, "vllm/a.py": FILES["vllm/a.py"] + b"more = 1\n"}
    report = planned(three(), files).report
    assert row(report, "one", "vllm/a.py").outcome is Outcome.TARGET_MODIFIED
    assert row(report, "two", "vllm/a.py").outcome is Outcome.TARGET_MODIFIED


def test_a_patch_on_a_file_that_the_patch_before_did_not_fit_is_not_tried() -> None:
    files = {**FILES, "vllm/a.py": FILES["vllm/a.py"].replace(b"a5 = 5", b"a5 = 6")}
    report = planned(three(), files).report
    assert row(report, "one", "vllm/a.py").outcome is Outcome.CONFLICT
    assert row(report, "two", "vllm/a.py").outcome is Outcome.UNKNOWN
    assert "earlier patch" in row(report, "two", "vllm/a.py").hint


def test_a_missing_file_is_a_conflict() -> None:
    report = planned(three(), {path: data for path, data in FILES.items() if path != "vllm/old.py"}).report
    assert row(report, "two", "vllm/old.py").outcome is Outcome.HALF_APPLIED
    report = planned(three(), {path: data for path, data in FILES.items() if path != "vllm/b.py"}).report
    assert (row(report, "three", "vllm/b.py").outcome, row(report, "three", "vllm/b.py").found) == (
        Outcome.CONFLICT,
        "absent",
    )


def test_t22_all_content_there_without_a_ledger_is_merged_not_applied() -> None:
    report = planned(three(), after_three()).report
    assert report.outcome is Outcome.MERGED
    assert {patch.outcome for patch in report.patches} == {Outcome.MERGED}


@pytest.mark.parametrize("done", [A1, B1, {"vllm/sub/new/d.py": b"d = 1\n"}])
def test_t33_half_applied_names_every_file(done: dict[str, bytes]) -> None:
    report = planned(three(), {**FILES, **done}).report
    assert {file.outcome for patch in report.patches for file in patch.files} == {Outcome.HALF_APPLIED}


def test_t36_a_file_to_create_is_there_with_other_content() -> None:
    report = planned(three(), {**FILES, "vllm/sub/new/d.py": b"mine\n"}).report
    found = row(report, "three", "vllm/sub/new/d.py")
    assert (found.outcome, found.expected) == (Outcome.CONFLICT, "absent")


def test_t02_applied_with_our_ledger_is_already_applied() -> None:
    held = planned(three(), FILES).ledger
    report = planned(three(), after_three(), held).report
    assert report.outcome is Outcome.ALREADY_APPLIED


def test_t92_edited_after_apply() -> None:
    held = planned(three(), FILES).ledger
    report = planned(three(), {**after_three(), "vllm/b.py": b"mine = 1\n"}, held).report
    assert report.outcome is Outcome.TARGET_MODIFIED
    assert row(report, "one", "vllm/a.py").outcome is Outcome.ALREADY_APPLIED
    assert "edited" in row(report, "three", "vllm/b.py").hint


def test_t90_a_patch_that_left_the_series_is_stale_residue() -> None:
    held = planned(three(), FILES).ledger
    report = planned(series_of(("one", A1), ("two", A2)), after_three(), held).report
    assert report.outcome is Outcome.STALE_RESIDUE
    assert {patch.id: patch.outcome for patch in report.patches} == {
        "one": Outcome.ALREADY_APPLIED,
        "two": Outcome.ALREADY_APPLIED,
        "three": Outcome.STALE_RESIDUE,
    }
    assert report.hint.endswith("kiln-patch.pyz revert && kiln-patch.pyz apply --series DIR")
    edited = planned(series_of(("one", A1)), {**after_three(), "vllm/b.py": b""}, held).report
    assert "reinstall vllm==0.31.0" in edited.hint


def test_t91_an_edition_that_changed_after_it_was_applied() -> None:
    held = planned(three(), FILES).ledger
    other = series_of(("one", A1), ("two", A2), ("three", {**B1, "vllm/b.py": b"b0 = 0\n" + FILES["vllm/b.py"]}))
    report = planned(other, after_three(), held).report
    assert report.outcome is Outcome.PATCH_CHANGED
    assert report.patches[2].outcome is Outcome.PATCH_CHANGED


def test_t91_an_edition_that_is_not_the_one_in_the_series() -> None:
    wanted = three()
    forged = replace(wanted.patches[0], data=wanted.patches[0].data.replace(b"+a5 = 55", b"+a5 = 56"))
    report = planned(replace(wanted, patches=(forged, *wanted.patches[1:])), FILES).report
    assert [patch.outcome for patch in report.patches] == [Outcome.PATCH_CHANGED, Outcome.UNKNOWN, Outcome.UNKNOWN]


def test_a_longer_or_reordered_series_is_not_the_one_in_the_tree() -> None:
    held = planned(series_of(("one", A1), ("three", B1)), FILES).ledger
    files = {**FILES, **A1, **B1}
    report = planned(three(), files, held).report
    assert report.outcome is Outcome.UNKNOWN
    assert report.patches[1].outcome is Outcome.UNKNOWN
    assert planned(series_of(("three", B1), ("one", A1)), files, held).report.outcome is Outcome.PATCH_CHANGED


@pytest.mark.parametrize("held", [b"", b"{}", b"[]", b'{"schema": 2}', b"\xff"])
def test_an_unreadable_ledger_says_nothing(held: bytes) -> None:
    assert planned(three(), after_three(), held).report.outcome is Outcome.UNKNOWN


def test_a_ledger_changed_by_hand_says_nothing() -> None:
    held = planned(three(), FILES).ledger
    assert ledger.parse(held, "x") == ledger.of(three())
    forged = held.replace(b'"three"', b'"thr33"')
    assert planned(three(), after_three(), forged).report.outcome is Outcome.UNKNOWN


def test_a_module_that_does_not_compile_is_a_conflict() -> None:
    wanted = series_of(("one", A1), ("bad", {"vllm/b.py": FILES["vllm/b.py"].replace(b"b9 = 9", b"b9 = (")}))
    report = planned(wanted, FILES).report
    found = row(report, "bad", "vllm/b.py")
    assert (found.outcome, found.expected) == (Outcome.CONFLICT, "a module that compiles")
    assert found.found.startswith("line 10:")


def test_the_series_says_other_bytes_than_the_edition_gives() -> None:
    wanted = series_of(("one", A1))
    change = replace(wanted.patches[0].files[0], post="0" * 64)
    wrong = replace(wanted, patches=(replace(wanted.patches[0], files=(change,)),))
    assert planned(wrong, FILES).report.outcome is Outcome.CONFLICT


def test_an_empty_series_writes_a_ledger_with_no_entries() -> None:
    found = plan.plan(series_of(), Memory(FILES))
    assert (found.report.outcome, found.writes) == (Outcome.APPLIED, ())
    assert json.loads(found.ledger)["patches"] == []
    again = plan.plan(series_of(), Memory(FILES), ledger=found.ledger)
    assert again.report.outcome is Outcome.ALREADY_APPLIED


def test_a_series_directory_reads_back_equal(tmp_path: Path) -> None:
    wanted = three()
    series.write_series(tmp_path, wanted)
    assert series.read_series(tmp_path) == wanted
    first = (tmp_path / "series.json").read_bytes()
    series.write_series(tmp_path, wanted)
    assert (tmp_path / "series.json").read_bytes() == first


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ('"schema": 1', '"schema": 2', "schema 2"),
        ('"schema": 1', '"schema": true', "schema"),
        ('"schema": 1', '"schema": 1, "schema": 1', "twice"),
        ('"schema": 1', '"schema": 1, "extra": NaN', "NaN"),
        ('"schema": 1', '"schema": 1, "extra": 1', "extra"),
        ('"release": "0.31.0"', '"release": "0.31.0+cpu"', "release"),
        ('"release": "0.31.0"', '"release": 31', "int"),
        ('"edition": "one.patch"', '"edition": "../one.patch"', "one.patch"),
        ('"id": "one"', '"id": "three"', "three.patch"),
        ("vllm/sub/new/d.py", "vllm/../../d.py", "leaves the root"),
        ("vllm/sub/new/d.py", "vllm/B.py", "sorted"),
        ("vllm/old.py", "vllm/zzz.py", "one.patch"),
    ],
)
def test_t97_series_json_is_read_strictly(tmp_path: Path, old: str, new: str, cause: str) -> None:
    series.write_series(tmp_path, three())
    index = tmp_path / "series.json"
    text = index.read_text()
    assert old in text
    index.write_text(text.replace(old, new))
    with pytest.raises(errors.BadInput, match=None if cause == "one.patch" else cause):
        plan.plan(series.read_series(tmp_path), Memory(FILES))


def test_t97_files_of_the_directory_are_exactly_those_named(tmp_path: Path) -> None:
    series.write_series(tmp_path, three())
    (tmp_path / "four.patch").write_bytes(b"")
    with pytest.raises(errors.BadSeries, match=r"four\.patch"):
        series.read_series(tmp_path)
    (tmp_path / "four.patch").rename(tmp_path / "one.patch")
    (tmp_path / "one.patch").unlink()
    with pytest.raises(errors.BadSeries, match=r"one\.patch"):
        series.read_series(tmp_path)
    (tmp_path / "one.patch").symlink_to(tmp_path / "two.patch")
    with pytest.raises(errors.BadSeries, match="regular file"):
        series.read_series(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(errors.BadSeries, match=r"notes\.txt"):
        series.write_series(tmp_path, three())


def test_a_series_must_hold_together() -> None:
    one, _, three_ = three().patches
    with pytest.raises(errors.BadSeries, match="twice"):
        series.Series("vllm", "0.31.0", (one, one))
    skipping = replace(three_.files[0], path="vllm/a.py")
    with pytest.raises(errors.BadSeries, match="the next expects"):
        series.Series("vllm", "0.31.0", (one, replace(three_, files=(skipping,))))


def test_authoring_refuses_an_edition_that_does_not_fit() -> None:
    data = diff_of(FILES, {"vllm/a.py": A1["vllm/a.py"], "vllm/b.py": B1["vllm/b.py"]})
    with pytest.raises(errors.DoesNotApply, match=r"vllm/a\.py") as caught:
        authoring.edition("x", data, Memory({**FILES, "vllm/a.py": b"other\n"}))
    assert caught.value.report.outcome is Outcome.CONFLICT


def test_a_series_that_puts_a_file_back_still_says_whether_it_is_applied() -> None:
    wanted = series_of(("there", A1), ("back", {"vllm/a.py": FILES["vllm/a.py"]}), ("three", B1))
    found = planned(wanted, FILES)
    assert {write.path for write in found.writes} == set(B1)
    assert planned(wanted, {**FILES, **B1}, found.ledger).report.outcome is Outcome.ALREADY_APPLIED


@pytest.mark.parametrize("line", [b"b9 = '\x00'", b"b9 = " + b"-" * 50_000 + b"1"])
def test_a_module_that_the_compiler_chokes_on_is_a_conflict(line: bytes) -> None:
    wanted = series_of(("odd", {"vllm/b.py": FILES["vllm/b.py"].replace(b"b9 = 9", line)}))
    found = row(planned(wanted, FILES).report, "odd", "vllm/b.py")
    assert (found.outcome, found.expected) == (Outcome.CONFLICT, "a module that compiles")
    assert found.found


def test_records_of_a_series_that_cannot_be() -> None:
    one = three().patches[0]
    change = one.files[0]
    for wrong in (
        lambda: replace(change, pre="ABC"),
        lambda: replace(change, post=change.pre),
        lambda: replace(one, id="One"),
        lambda: replace(one, sha256="0"),
        lambda: replace(one, files=()),
        lambda: series.Series("vllm ", "0.31.0", (one,)),
        lambda: series.Series("vllm", "0.31", (one, replace(one, id="other"))),
    ):
        with pytest.raises(errors.BadSeries):
            wrong()


def test_an_edition_does_what_the_index_says() -> None:
    _, two, last = three().patches
    with pytest.raises(errors.BadSeries, match=r"does not touch vllm/zzz\.py"):
        replace(two, files=(*two.files, replace(two.files[0], path="vllm/zzz.py"))).diffs()
    with pytest.raises(errors.BadSeries, match="created or deleted"):
        replace(last, files=(last.files[0], replace(last.files[1], pre="0" * 64))).diffs()
    with pytest.raises(errors.BadSeries, match=r"touches vllm/old\.py, which"):
        replace(two, files=two.files[:1]).diffs()


@pytest.mark.parametrize(("name", "size"), [("series.json", 3_000_000), ("one.patch", 9_000_000)])
def test_t51_a_file_past_the_limit_is_refused(tmp_path: Path, name: str, size: int) -> None:
    series.write_series(tmp_path, three())
    (tmp_path / name).write_bytes(b" " * size)
    with pytest.raises(errors.BadSeries, match="limit"):
        series.read_series(tmp_path)


def test_t97_a_patch_or_its_content_stands_in_a_series_once() -> None:
    one, two, last = three().patches
    with pytest.raises(errors.BadSeries, match="patch id 'one' stands there twice"):
        series.Series("vllm", "0.31.0", (one, two, replace(last, id="one")))
    with pytest.raises(errors.BadSeries, match=f"edition content '{one.sha256}' stands there twice"):
        series.Series("vllm", "0.31.0", (one, replace(one, id="again")))
