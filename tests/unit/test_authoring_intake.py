"""Somebody's diff becomes a patch only where all of it fits exactly; what is left out and what is wrong is named."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import pytest
from authoring_support import BEFORE, BOTH, FIRST, PATH, QUIET, RELEASE, SECOND, SOURCES, add, hold, load, snapshot

from kiln import catalog, errors, files, git, process
from kiln.authoring import drafts, gate, intake, judge, sections, worktree
from kiln.catalog import lint
from kiln.patching.outcomes import Outcome
from kiln.patching.paths import LARGEST
from kiln.tasks import show_authoring
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from kiln.catalog import Catalog, records

OTHER = "vllm/sub/other.py"
LINES = SOURCES[OTHER]
CHANGED = LINES.replace(b"# line 15\n", b"# fifteen\n")
DIFF = git.diff({OTHER: LINES}, {OTHER: CHANGED})
ABC, ABBC = b"a\nb\nc\n", b"a\nB\nc\n"
BESIDE = git.diff({}, {"tests/v1/test_x.py": b"x = 1\n", "docs/x.md": b"x\n", ".github/x.yml": b"x\n"}) + git.diff(
    {"csrc/vllm/x.cu": ABC, "setup.py": ABC}, {"csrc/vllm/x.cu": ABBC, "setup.py": ABBC}
)
BINARY = (
    b"diff --git a/PATH b/PATH\nindex 123..456 100644\nGIT binary patch\nliteral 1\nIcmZPo000310RR91\n\n"
    b"literal 0\nHcmV?d\n\n"
)
SYMLINK = (
    b"diff --git a/vllm/x.py b/vllm/x.py\nnew file mode 120000\nindex 0000000..123\n--- /dev/null\n"
    b"+++ b/vllm/x.py\n@@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n"
)
SIDES = b"--- a/vllm/sub/other.py\n+++ b/vllm/sub/other.py\n"
MAIL = b"""From 1234567890123456789012345678901234567890 Mon Sep 17 00:00:00 2001
From: Somebody <somebody@example.invalid>
Date: Mon, 1 Jan 2024 00:00:00 +0000
Subject: [PATCH v2 1/2] =?UTF-8?q?F=C3=BCnfzehn?=: say
 fifteen (#123)

- a list in the message
--- not a file
@@ not a hunk

Signed-off-by: Somebody <somebody@example.invalid>
---
 vllm/sub/other.py | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)

"""
END = b"-- \n2.39.5\n\n"
NARROW = b"""\
--- a/vllm/twins.py
+++ b/vllm/twins.py
@@ -9,3 +9,3 @@
     total = 0
-    for n in range(3):
+    for n in range(4):
         total += n
"""


@pytest.fixture
def toy(toy_catalog: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """The toy's catalog; every release but 0.31.0 has one more line at the top of each file."""

    def read(pin: records.WheelPin, paths: Iterable[str], *, cache: Path) -> Mapping[str, bytes]:
        del cache
        above = b"" if pin.version.startswith(RELEASE) else b"# above\n"
        return {path: above + SOURCES[path] for path in paths if path in SOURCES}

    loaded = load(toy_catalog)
    monkeypatch.setattr(wheel, "read", read)
    return loaded


def taken(
    loaded: Catalog, data: bytes, release: str = RELEASE, *, patch_id: str = "new-one", dry_run: bool = False
) -> intake.New:
    file = loaded.root / "somebodys.diff"
    file.write_bytes(data)
    return intake.new(loaded, patch_id, file, release, reporter=QUIET, dry_run=dry_run)


def outcomes(told: intake.New) -> list[list[str]]:
    return [[hunk.outcome.value for hunk in file.hunks] for file in told.intake.files]


# what is made


def test_a_mail_with_more_than_the_package_becomes_a_patch_and_what_is_left_out_is_named(toy: Catalog) -> None:
    order = (toy.root / "patches/series.yaml").read_bytes()
    told = taken(toy, MAIL + BESIDE + DIFF + BINARY.replace(b"PATH", b"docs/x.png") + END)
    assert (told.intake.outcome, outcomes(told)) == (Outcome.APPLIED, [["APPLIED"]])
    assert [path for path, _ in told.intake.left_out] == [
        ".github/x.yml",
        "docs/x.md",
        "tests/v1/test_x.py",
        "csrc/vllm/x.cu",
        "setup.py",
        "docs/x.png",
    ]
    assert told.intake.left_out[2][1] == "lies in tests/, which is no part of the installed package"
    loaded = catalog.load(toy.root)
    made = loaded.patches["new-one"]
    assert (toy.root / "patches/new-one/0.31.0.patch").read_bytes() == DIFF
    assert made.editions == {RELEASE: drafts.record("new-one", DIFF, {OTHER: LINES})}
    assert (made.title, made.applies.releases) == ("Fünfzehn: say fifteen (#123)", "==0.31.0")
    assert loaded.order == ("toy", "new-one")
    assert (toy.root / "patches/series.yaml").read_bytes() == order.replace(b"[toy]", b"[toy, new-one]")
    assert set(told.made) == {*(set(snapshot(toy.root)) - set(snapshot_of_toy())), "patches/series.yaml"}


def snapshot_of_toy() -> set[str]:
    return {f"patches/{name}" for name in ("conftest.py", "series.yaml", *TOY_FILES)}


TOY_FILES = ("toy/0.31.0.patch", "toy/patch.yaml", "toy/probe.py")


def test_what_is_left_to_write_is_found_by_lint_and_stops_the_gate(toy: Catalog) -> None:
    told = taken(toy, DIFF)
    loaded = catalog.load(toy.root)
    findings = [found for found in lint.patches(loaded) if "new-one" in found.where]
    keys = [found.where.removeprefix("patches/new-one/patch.yaml: ") for found in findings]
    assert keys == ["title", "reason", "lost_without", "drop_when", "probe.shows", "patches/new-one/probe.py"]
    assert told.todo == tuple(findings)
    said = process.run(process.python(str(toy.root / "patches/new-one/probe.py"), str(toy.root)))
    assert (said.code, said.stdout) == (1, "red: this probe is not written yet\n")
    test = (toy.root / "patches/new-one/tests/test_new_one.py").read_text()
    assert "@pytest.mark.rule(" in test
    assert "pytest.fail(" in test
    other = git.diff({OTHER: LINES}, {OTHER: LINES.replace(b"# line 16\n", b"# x\n")})
    stopped = gate.accept(loaded, "new-one", RELEASE, other, reporter=QUIET, prove=lambda *_: ())
    assert stopped[0].problem == "is still the skeleton, so nothing can be proven"


@pytest.mark.parametrize(
    "title", ["Plain words", "a: b # c", "'\"\\", "null", "- x", "été 🙂", "TODO", "{x}", "x" * 500]
)
def test_a_title_says_exactly_what_was_given(toy: Catalog, title: str) -> None:
    file = toy.root / "x.diff"
    file.write_bytes(MAIL + DIFF)
    intake.new(toy, "new-one", file, RELEASE, reporter=QUIET, title=title)
    assert catalog.load(toy.root).patches["new-one"].title == title


def test_a_dry_run_says_the_same_and_writes_nothing(toy: Catalog) -> None:
    before = snapshot(toy.root)
    told = taken(toy, MAIL + DIFF, dry_run=True)
    assert (told.intake.outcome, told.made) == (Outcome.APPLIED, ())
    assert snapshot(toy.root) == before
    assert told.intake.as_data() == {
        "release": "0.31.0",
        "outcome": "APPLIED",
        "files": [
            {
                "path": OTHER,
                "outcome": "APPLIED",
                "hunks": [
                    {"number": 1, "outcome": "APPLIED", "expected": "line 12", "found": "line 12", "hint": ""},
                ],
            }
        ],
        "left_out": [],
        "fits": [],
        "problem": "",
        "advice": "",
    }


def test_several_commits_of_a_mailbox_are_one_edition(toy: Catalog) -> None:
    both = CHANGED.replace(b"# line 17\n", b"# seventeen\n").replace(b"# line 2\n", b"# two\n")
    first = git.diff({OTHER: LINES}, {OTHER: CHANGED})
    second = git.diff({OTHER: CHANGED}, {OTHER: both})
    told = taken(toy, MAIL + first + END + MAIL + second + END)
    assert (told.intake.outcome, outcomes(told)) == (Outcome.APPLIED, [["APPLIED"] * 3])
    assert [hunk.number for hunk in told.intake.files[0].hunks] == [1, 2, 3]
    assert (toy.root / "patches/new-one/0.31.0.patch").read_bytes() == git.diff({OTHER: LINES}, {OTHER: both})
    undone = taken(toy, first + git.diff({OTHER: CHANGED}, {OTHER: LINES}), patch_id="nothing")
    assert (undone.intake.outcome, undone.made) == (Outcome.MERGED, ())


def test_created_deleted_and_empty_files(toy: Catalog) -> None:
    wanted = {"vllm/new/__init__.py": b"", "vllm/new/x.py": b"x = 1\n", PATH: BEFORE}
    told = taken(toy, git.diff({PATH: BEFORE, OTHER: LINES}, wanted))
    assert [(file.path, file.outcome.value) for file in told.intake.files] == [
        ("vllm/new/__init__.py", "APPLIED"),
        ("vllm/new/x.py", "APPLIED"),
        (OTHER, "APPLIED"),
    ]
    files = catalog.load(toy.root).patches["new-one"].editions[RELEASE].files
    assert {path: (bool(row.pre), bool(row.post)) for path, row in files.items()} == {
        "vllm/new/__init__.py": (False, True),
        "vllm/new/x.py": (False, True),
        OTHER: (True, False),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (OTHER, OTHER),
        (f"dist-packages/{OTHER}", f"dist-packages/{OTHER}"),
        (f"a/dist-packages/{OTHER}", f"b/dist-packages/{OTHER}"),
        *[(f"/usr/local/lib/python3.12/dist-packages/{OTHER}{end}",) * 2 for end in ("", "\t2024-01-01 00:00:00")],
        (f"/opt/venv/lib/site-packages/{OTHER}.orig", f"/opt/venv/lib/site-packages/{OTHER}"),
        (f"vllm-0.31.0/{OTHER}", f"vllm-mine/{OTHER}"),
        (f"./{OTHER}", f"./{OTHER}"),
        (f"i/{OTHER}", f"w/{OTHER}"),
    ],
)
def test_a_name_that_can_only_mean_one_file_is_understood(toy: Catalog, old: str, new: str) -> None:
    hunks = DIFF[DIFF.index(b"@@") :]
    told = taken(toy, f"--- {old}\n+++ {new}\n".encode() + hunks)
    assert [(file.path, file.outcome.value) for file in told.intake.files] == [(OTHER, "APPLIED")]
    assert (toy.root / "patches/new-one/0.31.0.patch").read_bytes() == DIFF


# judgement


@pytest.mark.parametrize(
    ("before", "after", "path", "outcome", "found"),
    [
        (b"# one more\n" + LINES, b"# one more\n" + CHANGED, OTHER, "OFFSET", "line 12"),
        (LINES.replace(b"# line 15\n", b"# other\n"), CHANGED, OTHER, "CONFLICT", "line 15: # line 15"),
        (LINES.replace(b"# line 15\n", b"# 15\n"), LINES, OTHER, "MERGED", "the new text at line 12"),
        (LINES.replace(b"# line 15\n", b""), LINES, OTHER, "MERGED", "the new text at line 12"),
        (LINES.replace(b"# line 30\n", b""), LINES, OTHER, "MERGED", "the new text at line 27"),
        (LINES.replace(b"# line 1\n", b""), LINES, OTHER, "MERGED", "the new text at line 1"),
        (LINES, CHANGED, "vllm/elsewhere/other.py", "MOVED", "absent"),
        (LINES, CHANGED, "vllm/elsewhere/unheard_of.py", "CONFLICT", "absent"),
    ],
)
def test_each_way_not_to_fit_has_its_name(  # noqa: PLR0913 - a column each
    toy: Catalog, *, before: bytes, after: bytes, path: str, outcome: str, found: str
) -> None:
    kept = snapshot(toy.root)
    told = taken(toy, git.diff({path: before}, {path: after}))
    (file,) = told.intake.files
    assert (file.outcome.value, [hunk.outcome.value for hunk in file.hunks]) == (outcome, [outcome])
    assert file.hunks[0].found == found
    assert told.intake.outcome.value == outcome
    assert told.intake.problem
    assert snapshot(toy.root) == kept
    if outcome == "MOVED":
        assert file.candidates == (OTHER,)
        assert file.hunks[0].hint == f"files of the same name: {OTHER}"


def test_context_that_stands_twice_is_ambiguous_even_at_zero_offset(toy: Catalog) -> None:
    told = taken(toy, NARROW)
    (hunk,) = told.intake.files[0].hunks
    assert (hunk.outcome.value, hunk.expected, hunk.found) == ("AMBIGUOUS", "line 9", "lines 2, 9")
    assert told.made == ()


def test_every_hunk_has_its_own_outcome(toy: Catalog) -> None:
    before = [b"# line %d\n" % n for n in range(1, 31)]
    before[13] = b"# never there\n"
    after = list(before)
    for n in (1, 14, 27):
        after[n] = b"# new\n"
    told = taken(toy, git.diff({OTHER: b"".join(before)}, {OTHER: b"".join(after)}))
    assert outcomes(told) == [["APPLIED", "CONFLICT", "APPLIED"]]
    assert told.intake.outcome is Outcome.CONFLICT
    assert told.intake.problem == "1 of 3 hunks do not fit 0.31.0 exactly where the diff says"


def test_what_is_there_in_part_is_not_called_merged(toy: Catalog) -> None:
    before = LINES.replace(b"# line 3\n", b"# three\n")
    told = taken(toy, git.diff({OTHER: before}, {OTHER: CHANGED}))
    assert outcomes(told) == [["MERGED", "APPLIED"]]
    assert told.intake.outcome is Outcome.HALF_APPLIED


def test_a_created_file_that_is_there_is_merged_or_a_conflict(toy: Catalog) -> None:
    assert taken(toy, git.diff({}, {OTHER: LINES})).intake.outcome is Outcome.MERGED
    assert taken(toy, git.diff({}, {OTHER: CHANGED})).intake.outcome is Outcome.CONFLICT
    assert taken(toy, git.diff({OTHER: CHANGED}, {})).intake.outcome is Outcome.CONFLICT
    assert taken(toy, git.diff({"vllm/gone.py": LINES}, {})).intake.outcome is Outcome.MERGED


def test_a_result_that_does_not_compile_is_not_made(toy: Catalog) -> None:
    before = snapshot(toy.root)
    told = taken(toy, git.diff({OTHER: LINES}, {OTHER: LINES + b"def\n"}))
    assert told.intake.outcome is Outcome.CONFLICT
    assert "compiles" in told.intake.problem
    assert snapshot(toy.root) == before


def test_the_releases_that_take_it_are_named_and_the_port_is_offered(
    toy: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    shifted = git.diff({OTHER: b"# above\n" + LINES}, {OTHER: b"# above\n" + CHANGED})
    told = taken(toy, shifted)
    assert told.intake.fits == tuple(name for name in toy.releases.releases if name != RELEASE)
    with pytest.raises(errors.NotApplied) as caught:
        show_authoring.show_intake(told, "new-one", "x.diff", dry_run=False, json=False)
    assert caught.value.exit_code == 5
    assert caught.value.hint == (
        "./inv patch.new new-one --from x.diff --release 0.30.0; then write its probe.py and tests, and let "
        "applies.releases of patches/new-one/patch.yaml cover 0.31.0; then ./inv patch.port new-one --to 0.31.0"
    )
    assert "OFFSET   vllm/sub/other.py  1     line 13   line 12" in capsys.readouterr().out


def test_a_file_that_another_patch_changes_is_taken_on_top_of_it_where_that_fits(toy: Catalog) -> None:
    beside, on_top = (git.diff({PATH: before}, {PATH: after}) for before, after in ((BEFORE, FIRST), (SECOND, BOTH)))
    for patch_id, data in (("beside", beside), ("on-top", on_top)):
        told = taken(toy, data, patch_id=patch_id, dry_run=patch_id == "beside")
        assert told.intake.outcome is Outcome.APPLIED
        assert not any("before it on" in found.problem for found in told.todo)
    assert (toy.root / "patches/on-top/0.31.0.patch").read_bytes() == on_top


def test_a_diff_that_another_patch_stands_in_the_way_of_makes_nothing_and_says_what_it_must_stand_on(
    toy: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(toy.root)
    told = taken(toy, git.diff({PATH: BEFORE}, {PATH: SECOND.replace(b"total = 1", b"total = 2")}))
    assert (told.intake.outcome, told.made) == (Outcome.CONFLICT, ())
    assert "and toy, before it on bf16 on" in told.intake.problem
    with pytest.raises(errors.NotApplied) as caught:
        show_authoring.show_intake(told, "new-one", "x.diff", dry_run=False, json=True)
    folder = worktree.place(toy, "toy", RELEASE)
    assert caught.value.hint == (
        "make the diff on top of toy: ./inv patch.edit toy --release 0.31.0, make the change in that worktree, "
        f"then git -C {folder} diff HEAD > new.diff"
    )
    assert json.loads(capsys.readouterr().out)["problem"] == told.intake.problem
    assert snapshot(toy.root) == before
    hold(toy.root)
    opened = worktree.open(toy, "toy", RELEASE, reporter=QUIET)
    (opened / PATH).write_bytes(BOTH)
    assert taken(toy, process.ask(("git", "diff", "HEAD"), cwd=opened).encode() + b"\n").made, "the way out works"


def test_a_small_shift_on_top_of_another_patch_makes_nothing(toy: Catalog) -> None:
    loaded = add(toy.root, "above", git.diff({PATH: SECOND}, {PATH: b"# one\n" + SECOND}), SECOND)
    before = snapshot(toy.root)
    told = taken(loaded, git.diff({PATH: BEFORE}, {PATH: BEFORE + b"# more\n"}))
    assert (told.intake.outcome, told.made) == (Outcome.CONFLICT, ())
    assert told.intake.advice.startswith("make the diff on top of toy and above: ./inv patch.edit above ")
    assert snapshot(toy.root) == before


@pytest.mark.parametrize(
    ("data", "outcome", "advice"),
    [
        (git.diff({}, {OTHER: LINES}), "MERGED", "make nothing: 0.31.0 needs no such patch"),
        (SYMLINK + DIFF, "UNKNOWN", "make it with git diff --no-renames"),
        (NARROW, "AMBIGUOUS", "make the diff with more context, so that it says which place is meant: git diff -U10"),
    ],
)
def test_the_advice_is_for_what_is_wrong(
    toy: Catalog, capsys: pytest.CaptureFixture[str], *, data: bytes, outcome: str, advice: str
) -> None:
    told = taken(toy, data)
    assert told.intake.outcome.value == outcome
    with pytest.raises(errors.NotApplied) as caught:
        show_authoring.show_intake(told, "new-one", "x.diff", dry_run=False, json=True)
    assert caught.value.hint.startswith(advice)
    assert json.loads(capsys.readouterr().out)["problem"] == told.intake.problem != ""


# what is left out and what is refused


@pytest.mark.parametrize(
    ("section", "why"),
    [
        (BINARY.replace(b"PATH", b"vllm/x.so"), "binary"),
        (b"diff --git a/vllm/x.png b/vllm/x.png\nBinary files a/vllm/x.png and b/vllm/x.png differ\n", "binary"),
        (
            b"diff --git a/vllm/a.py b/vllm/b.py\nsimilarity index 100%\nrename from vllm/a.py\nrename to vllm/b.py\n",
            "renamed from vllm/a.py",
        ),
        (SYMLINK, "a symlink"),
        (b'--- "a/vllm/\\303\\251.py"\n+++ "b/vllm/\\303\\251.py"\n@@ -1 +1 @@\n-a\n+b\n', "its name is quoted"),
        (
            b"--- a/src/x/vllm/x.py\n+++ b/src/x/vllm/x.py\n@@ -1 +1 @@\n-a\n+b\n",
            "where the package begins is not clear",
        ),
    ],
)
def test_a_change_to_the_package_that_no_edition_can_hold_stops_it(toy: Catalog, section: bytes, why: str) -> None:
    before = snapshot(toy.root)
    told = taken(toy, section + DIFF)
    assert [found for _, found in told.intake.left_out] == [why]
    assert told.intake.outcome is Outcome.UNKNOWN
    assert told.intake.problem.startswith("part of the change is in a form that no edition can hold: ")
    assert snapshot(toy.root) == before


def test_a_mode_is_left_out_and_named(toy: Catalog) -> None:
    mode = b"diff --git a/vllm/twins.py b/vllm/twins.py\nold mode 100644\nnew mode 100755\n"
    told = taken(toy, mode + DIFF)
    assert told.intake.outcome is Outcome.APPLIED
    assert told.intake.left_out == ((PATH, "mode only"),)


HOSTILE = {
    "empty": (b"", "empty"),
    "blank": (b" \n\n", "empty"),
    "a page": (b"<!DOCTYPE html>\n<html>\n" + DIFF, "an HTML or XML page"),
    "large": (DIFF + b"x" * LARGEST, "larger than"),
    "no end": (DIFF[:-1], "cut off"),
    "cut in a hunk": (DIFF[: DIFF.index(b" # line 16")], "the diff ends within a hunk"),
    "cut in a hunk of a mail": (MAIL + DIFF[: DIFF.index(b" # line 16")] + END, "a hunk is shorter"),
    "lost space": (DIFF.replace(b" # line 16", b"# line 16"), "a hunk is shorter than its header says"),
    "lost blank": (DIFF.replace(b" # line 16\n", b"\n"), "has a context line lost its leading space"),
    "longer": (DIFF + b"+more\n", "a hunk is longer than its header says"),
    "CRLF": (DIFF.replace(b"\n", b"\r\n"), "CRLF line ends"),
    "ed": (b"15c\n# fifteen\n.\n", "an ed script"),
    "normal": (b"15c15\n< # line 15\n---\n> # fifteen\n", "an ed script or normal diff"),
    "context": (b"*** a/vllm/x.py\n--- b/vllm/x.py\n***************\n*** 1 ****\n! a\n--- 1 ----\n! b\n", "a context"),
    "combined": (b"diff --cc vllm/x.py\nindex 1,2..3\n" + SIDES + b"@@@ -1,1 -1,1 +1,1 @@@\n", "a combined diff"),
    "words": (b"please apply\n", "holds no unified diff"),
    "no name": (DIFF[DIFF.index(b"@@") :], "a hunk without the name of its file"),
    "up": (DIFF.replace(b"vllm/sub/", b"vllm/../"), "leaves the root"),
    "up beside": (DIFF + BESIDE.replace(b"docs/x.md", b"docs/../../x.md"), "leaves the root"),
    "absolute": (DIFF.replace(b"a/vllm/sub/", b"/etc/").replace(b"b/vllm/sub/", b"/etc/"), "an absolute path"),
    "metadata": (DIFF.replace(b"vllm/sub/other.py", b"vllm/x/__pycache__/o.pyc"), "bytecode"),
    "control": (DIFF.replace(b"sub/other", b"sub/o\x1b[2Jther"), "holds the character"),
    "not UTF-8": (DIFF.replace(b"sub/other", b"sub/\xff"), "holds the character"),
    "NUL": (DIFF.replace(b"fifteen", b"fif\0teen"), "not text"),
    "nothing of ours": (BESIDE, "changes no file of the installed package"),
    "marker": (DIFF.replace(b"+# fifteen", b"+<<<<<<< HEAD"), "adds a conflict marker"),
    "no context": (SIDES + b"@@ -15 +15 @@\n-# line 15\n+# x\n", "without context"),
    "numbers": (DIFF.replace(b"@@ -12,7 +12,7", b"@@ -12,7 +13,7"), "its line numbers do not follow"),
    "nothing": (SIDES, "vllm/sub/other.py"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_diff_is_refused_by_its_cause_and_nothing_is_written(toy: Catalog, name: str) -> None:
    data, cause = HOSTILE[name]
    before = snapshot(toy.root)
    with pytest.raises(errors.BadInput) as caught:
        taken(toy, data)
    assert cause in caught.value.message
    assert "\x1b" not in caught.value.message
    assert snapshot(toy.root) == before


def test_damage_anywhere_is_bad_input_or_judged_and_never_a_crash() -> None:
    whole = MAIL + BESIDE + DIFF + BINARY.replace(b"PATH", b"vllm/x.so") + END
    chance = random.Random(5)  # noqa: S311 - the same damage every time
    lines = whole.splitlines(keepends=True)
    broken = [b"".join(lines[:n]) for n in range(len(lines))]
    broken += [b"".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines))]
    for _ in range(300):
        at = chance.randrange(len(whole))
        broken.append(whole[:at] + chance.choice([b"", b"\n", b"@", b"-", b"\xff", b"/../"]) + whole[at + 1 :])
    for data in broken:
        try:
            split = sections.split(data, "x")
        except errors.BadInput as error:
            assert error.message.startswith("x: ")  # noqa: PT017
        else:
            judge.files(split.files, SOURCES.get, lambda: SOURCES)


def test_names_that_cannot_be_are_refused(toy: Catalog, tmp_path: Path) -> None:
    before = snapshot(toy.root)
    with pytest.raises(errors.BadInput, match="is there already") as caught:
        taken(toy, DIFF, patch_id="toy")
    assert "./inv patch.edit toy --release 0.31.0" in caught.value.hint
    with pytest.raises(errors.BadInput, match="--id is missing: the name of the new patch"):
        taken(toy, DIFF, patch_id="")
    for patch_id in ("../x", "A b", "-x", "x" * 65, ".", "conftest.py"):
        with pytest.raises(errors.BadInput):
            taken(toy, DIFF, patch_id=patch_id)
    with pytest.raises(errors.BadInput, match="unknown release"):
        taken(toy, DIFF, "0.31")
    for file, cause in (
        (tmp_path / "no.diff", "no such file"),
        (tmp_path, "no such file"),
        (tmp_path / "large.diff", "larger than"),
    ):
        (tmp_path / "large.diff").write_bytes(b"x" * (LARGEST + 1))
        with pytest.raises(errors.BadInput, match=cause):
            intake.new(toy, "new-one", file, RELEASE, reporter=QUIET)
    assert snapshot(toy.root) == before


@pytest.mark.parametrize("name", ["patch.yaml", "probe.py", "series.yaml"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupt_or_a_full_disk_leaves_nothing(
    toy: Catalog, monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException
) -> None:
    write, root = files.write, toy.root
    raised: list[Path] = []

    def interrupted(path: Path, data: bytes | str) -> Path:
        if path.name == name and path.is_relative_to(root) and not raised:
            raised.append(path)
            raise error
        return write(path, data)

    monkeypatch.setattr(files, "write", interrupted)
    before = snapshot(root)
    with pytest.raises(type(error)):
        taken(toy, DIFF)
    assert raised
    assert snapshot(root) == before
    assert not (root / "patches/new-one").exists()


def test_a_patch_that_comes_between_on_some_targets_makes_nothing(toy: Catalog) -> None:
    hold(toy.root)
    loaded = add(toy.root, "narrow", git.diff({PATH: SECOND}, {PATH: BOTH}), SECOND)
    described = toy.root / "patches/narrow/patch.yaml"
    described.write_text(
        described.read_text().replace('{releases: "==0.31.0"}', '{releases: "==0.31.0", variants: [nvfp4]}')
    )
    loaded = catalog.load(toy.root)
    told = taken(loaded, git.diff({PATH: SECOND}, {PATH: SECOND + b"# more\n"}))
    assert not told.made
    assert "narrow, before it on nvfp4" in told.intake.problem
    assert told.intake.advice.startswith("make the diff on top of toy and narrow: ")


def test_what_is_shown_to_a_person(toy: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    told = taken(toy, MAIL + BESIDE + DIFF)
    show_authoring.show_intake(told, "new-one", "x.diff", dry_run=False, json=False)
    said = capsys.readouterr().out
    assert "APPLIED  vllm/sub/other.py  1     line 12   line 12\n" in said
    assert "left out: setup.py: no file of the installed package\n" in said
    assert "wrote patches/new-one/probe.py\n" in said
    assert "to do: patches/new-one/probe.py: is still the skeleton\n" in said
    assert said.endswith("made patches/new-one; it is proven when this is: ./inv patch.prove new-one\n")
    show_authoring.show_intake(told, "new-one", "x.diff", dry_run=False, json=True)
    assert capsys.readouterr().out.startswith("{\n")
