from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patching_support import diff_of

from kiln import process
from kiln.patching import diff, errors, hunks
from kiln.patching.outcomes import Outcome

if TYPE_CHECKING:
    from pathlib import Path

P = "vllm/a.py"
GOOD = b"""\
diff --git a/vllm/a.py b/vllm/a.py
index 1111111..2222222 100644
--- a/vllm/a.py
+++ b/vllm/a.py
@@ -1,3 +1,3 @@ def f():
 one
-two
+2
 three
"""


def refused(data: bytes) -> str:
    with pytest.raises(errors.BadInput) as caught:
        diff.parse(data, "x.patch")
    return str(caught.value)


def fitted(before: bytes, data: bytes) -> bytes | hunks.Misfit | None:
    (file,) = diff.parse(data, "x.patch")
    return hunks.fit(file, before)


def test_a_git_diff_and_a_plain_unified_diff_read_the_same() -> None:
    plain = GOOD[GOOD.index(b"---") :].replace(b"a.py\n", b"a.py\t2026-01-01 00:00:00\n")
    assert diff.parse(GOOD, "x") == diff.parse(plain, "x")
    assert fitted(b"one\ntwo\nthree\nfour\n", GOOD) == b"one\n2\nthree\nfour\n"


def test_t06_a_hunk_without_context() -> None:
    assert "context" in refused(b"--- a/x.py\n+++ b/x.py\n@@ -3,0 +4 @@\n+new\n")


@pytest.mark.parametrize("data", [b"", b"\n", b"  \n\n"])
def test_t09_an_empty_patch(data: bytes) -> None:
    assert "empty" in refused(data)


def test_t10_an_html_page() -> None:
    assert "HTML" in refused(b"<!DOCTYPE html>\n<html><body>404</body></html>\n")
    assert "not a line of a unified diff" in refused(b"404: Not Found")


def test_t11_a_truncated_or_overlong_hunk() -> None:
    assert "shorter" in refused(GOOD.removesuffix(b" three\n"))
    assert "longer" in refused(GOOD + b" four\n")
    assert "longer" in refused(GOOD + b"+four\n")
    assert "out of place" in refused(GOOD + b"--- four\n")


def test_t12_the_last_newline_of_the_patch_is_missing() -> None:
    assert "cut off" in refused(GOOD.removesuffix(b"\n"))


def test_t13_a_target_without_final_newline_is_exact() -> None:
    before, after = b"1\n2\n3", b"1\n2\n3\n4"
    data = diff_of({P: before}, {P: after})
    assert data.count(b"\\ No newline") == 2
    assert fitted(before, data) == after
    misfit = fitted(before + b"\n", data)
    assert isinstance(misfit, hunks.Misfit)
    assert misfit.outcome is Outcome.CONFLICT
    assert (misfit.expected, misfit.found) == ("line 3: 3\\ No newline at end of file", "line 3: 3")


def test_t13_a_hunk_that_takes_the_final_newline_away_fits_at_the_end_only() -> None:
    data = diff_of({P: b"1\n2\n3\n"}, {P: b"1\n2\n3"})
    assert fitted(b"1\n2\n3\n", data) == b"1\n2\n3"
    misfit = fitted(b"1\n2\n3\n4\n", data)
    assert isinstance(misfit, hunks.Misfit)
    assert (misfit.expected, misfit.found) == ("end of file", "line 4: 4")


def test_t17_the_same_file_twice() -> None:
    assert "twice" in refused(GOOD + GOOD)
    assert "letter case" in refused(GOOD + GOOD.replace(b"vllm/a.py", b"vllm/A.py"))


@pytest.mark.parametrize(
    "data",
    [
        GOOD.replace(b"--- a/vllm/a.py", b"--- a/vllm/b.py"),
        GOOD.replace(b"+++ b/vllm/a.py", b"+++ b/vllm/b.py"),
        GOOD.replace(b"diff --git a/vllm/a.py b/vllm/a.py", b"diff --git a/vllm/c.py b/vllm/c.py"),
        GOOD.replace(b"diff --git a/vllm/a.py", b"diff --git a/vllm/b.py"),
        GOOD[GOOD.index(b"---") :].replace(b"+++ b/vllm/a.py", b"+++ b/vllm/b.py"),
    ],
)
def test_t19_names_of_one_file_differ(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("prefix", [b"", b"c/", b"x/y/"])
def test_t18_only_one_strip_level(prefix: bytes) -> None:
    refused(GOOD.replace(b" a/", b" " + prefix).replace(b" b/", b" " + prefix))


@pytest.mark.parametrize(
    "name",
    [
        b"../x.py",
        b"/etc/x.py",
        b"vllm/../../x.py",
        b"vllm//x.py",
        b"vllm/./x.py",
        b"vllm\\x.py",
        b"..",
        b"vllm/x.py/",
        b"C:x.py",
        b"vllm-0.31.0.dist-info/RECORD",
        b"vllm/__pycache__/a.cpython-312.pyc",
    ],
)
def test_t40_unsafe_paths(name: bytes) -> None:
    refused(GOOD.replace(b"vllm/a.py", name))


@pytest.mark.parametrize(
    "name",
    [
        b"vllm/\x00.py",
        b"vllm/\r.py",
        b"vllm/\x1b.py",
        b"vllm/\xff.py",
        "vllm/\u202egnp.py".encode(),
        "vllm/e\u0301.py".encode(),
        b"vllm/" + b"n" * 250 + b".py",
        b'"vllm/a\\303\\244.py"',
    ],
)
def test_t49_odd_names(name: bytes) -> None:
    refused(GOOD.replace(b"vllm/a.py", name))


@pytest.mark.parametrize("name", ["vllm/two words.py", "vllm/ä ö.py"])
def test_t49_spaces_and_utf8_are_names(name: str) -> None:
    data = GOOD.replace(b"vllm/a.py", name.encode()).replace(b".py\n@@", b".py\t\n@@")
    assert diff.parse(data, "x")[0].path == name


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"3c\nx\n.\nw\n", "ed script"),
        (b"*** a/x.py\n--- b/x.py\n***************\n", "context diff"),
        (b"diff --git a/x b/y\nsimilarity index 90%\nrename from x\nrename to y\n", "renames"),
        (b"diff --git a/x b/x\nold mode 100644\nnew mode 100755\n", "modes"),
        (b"diff --git a/x b/x\nnew file mode 120000\nindex 0000000..1111111\n", "modes and links"),
        (b"diff --git a/x b/x\nindex 0000000..1111111\nGIT binary patch\n", "binary"),
        (b"diff --git a/x b/x\nindex 0000000..1111111\nBinary files a/x and b/x differ\n", "binary"),
        (GOOD.replace(b"\n", b"\r\n"), "CRLF"),
        (GOOD.replace(b" one\n", b"\n"), "leading space"),
        (b"From: someone\n" + GOOD, "not a line of a unified diff"),
        (GOOD + b"-- \n2.39.5\n", "not a line of a unified diff"),
        (GOOD.replace(b"-1,3", b"-1,9999999999999"), "hunk header"),
        (GOOD.replace(b"+1,3", b"+7,3"), "line numbers"),
        (GOOD.replace(b"-two\n+2\n", b" two\n"), "changes nothing"),
        (GOOD.replace(b" one\n", b" one\n\\ No newline at end of file\n"), "end of the file"),
        (GOOD.split(b"@@")[0], "out of place"),
    ],
)
def test_t48_what_is_not_a_plain_unified_diff(data: bytes, cause: str) -> None:
    assert cause in refused(data)


def test_t51_too_large_is_refused_at_once() -> None:
    assert "bytes; the limit" in refused(GOOD + b" " * 50_000_000)
    assert "lines; the limit" in refused(GOOD + b" \n" * 100_000)


def test_t60_line_ends_must_be_equal() -> None:
    misfit = fitted(b"one\r\ntwo\r\nthree\r\n", GOOD)
    assert isinstance(misfit, hunks.Misfit)
    assert misfit.hint.startswith("EOL_MISMATCH")
    assert (misfit.expected, misfit.found) == ("line 1: one", "line 1: one\\r")


def test_an_empty_file_is_created_and_deleted() -> None:
    made = b"diff --git a/vllm/e.py b/vllm/e.py\nnew file mode 100644\nindex 0000000..e69de29\n"
    gone = b"diff --git a/vllm/e.py b/vllm/e.py\ndeleted file mode 100644\nindex e69de29..0000000\n"
    first, second = (diff.parse(data, "x")[0] for data in (made + GOOD.replace(b"a.py", b"f.py"), gone))
    assert hunks.fit(first, None) == b""
    assert hunks.fit(second, b"") is None
    assert isinstance(hunks.fit(second, b"x"), hunks.Misfit)


def test_t35_a_deleted_file_must_hold_nothing_else() -> None:
    data = diff_of({P: b"1\n2\n"}, {P: None})
    misfit = fitted(b"1\n2\n3\n", data)
    assert isinstance(misfit, hunks.Misfit)
    assert (misfit.expected, misfit.found) == ("end of file", "line 3: 3")


_LINE = st.binary(max_size=6).map(lambda text: text.replace(b"\n", b"\r") + b"\n")
_TEXT = st.tuples(st.lists(st.sampled_from([b"x\n", b"y\n", b"\x0c\r\n"]) | _LINE, max_size=12), st.booleans())


def _text(lines: list[bytes], *, ends: bool) -> bytes:
    """Return lines between two that never change, so that each hunk has context."""
    body = b"first\n" + b"".join(lines) + b"last\n"
    return body if ends else body + b"x"


@settings(max_examples=150, deadline=None)
@given(before=_TEXT, after=_TEXT)
def test_t62_a_diff_made_by_difflib_gives_exactly_the_text_after(
    before: tuple[list[bytes], bool], after: tuple[list[bytes], bool]
) -> None:
    old, new = (_text(lines, ends=ends) for lines, ends in (before, after))
    if old != new:
        assert fitted(old, diff_of({P: old}, {P: new})) == new


@settings(max_examples=3, deadline=None)
@given(pairs=st.lists(st.tuples(_TEXT, _TEXT), min_size=20, max_size=40))
def test_t62_git_apply_has_the_same_opinion(
    tmp_path_factory: pytest.TempPathFactory,
    pairs: list[tuple[tuple[list[bytes], bool], tuple[list[bytes], bool]]],
) -> None:
    texts = {f"d/{n}.py": tuple(_text(lines, ends=ends) for lines, ends in pair) for n, pair in enumerate(pairs)}
    before = {path: old for path, (old, new) in texts.items() if old != new}
    if before:
        data = diff_of(before, {path: texts[path][1] for path in before})
        ours = {file.path: hunks.fit(file, before[file.path]) for file in diff.parse(data, "x")}
        assert git_applied(tmp_path_factory.mktemp("git"), before, data) == ours


def git_applied(where: Path, before: dict[str, bytes], data: bytes) -> dict[str, bytes]:
    (where / "d").mkdir()
    for path, old in before.items():
        (where / path).write_bytes(old)
    (where / "x.patch").write_bytes(data)
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(where),
        "GIT_CEILING_DIRECTORIES": str(where.parent),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    process.ask(("git", "apply", "--whitespace=nowarn", "x.patch"), cwd=where, env=env)
    return {path: (where / path).read_bytes() for path in before}


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*io.BytesIO(GOOD).readlines(), b"@@ -0,0 +1 @@\n", b"--- /dev/null\n", b"-\n"])))
def test_t51_any_mix_of_diff_lines_is_read_or_refused(lines: list[bytes]) -> None:
    try:
        files = diff.parse(b"".join(lines), "x")
    except errors.BadInput:
        return
    assert files
    assert all(file.hunks for file in files)


LAST = b"--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n\\ No newline at end of file\n"
MADE = b"--- /dev/null\n+++ b/x\n"
GONE = b"--- a/x\n+++ /dev/null\n"


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (GOOD.replace(b"index", b"new file mode 100644\nindex"), "disagree"),
        (LAST + b"@@ -5,2 +5,2 @@\n a\n-b\n+c\n", "follows the end"),
        (MADE + b"@@ -1 +1 @@\n-a\n+b\n", "creates the file, yet"),
        (GONE + b"@@ -1 +1 @@\n-a\n+b\n", "deletes the file, yet"),
        (MADE + b"@@ -0,0 +1 @@\n+a\n@@ -0,0 +2 @@\n+b\n", "one hunk"),
        (MADE + b"@@ -3,0 +4 @@\n+a\n", "one hunk"),
        (b"--- vllm/a.py\n" + LAST[LAST.index(b"+++") :], "starts with a/"),
        (b"--- a/x\n+++ b/x\n@@ -0,2 +1,2 @@\n a\n-b\n+c\n", "no line 0"),
        (b"--- a/x\n+++ b/x\n@@ -1,2 +0,2 @@\n a\n-b\n+c\n", "no line 0"),
        (LAST + b"\\ No newline at end of file\n", "out of place"),
        (b"--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n\\ No newline at end of file\n a\n-b\n+c\n", "end-of-file marker"),
        (b"--- a/x\n+++ b/x\n@@ -1,0 +1,0 @@\n", "changes nothing"),
        (GOOD.replace(b"vllm/a.py", b"vllm/" + b"d/" * 50 + b"a.py"), "too long"),
        (GOOD + GOOD.replace(b"vllm/a.py", b"vllm/a.py/b.py"), "lies below vllm/a.py"),
    ],
)
def test_t48_what_does_not_hold_together(data: bytes, cause: str) -> None:
    assert cause in refused(data)


def test_a_diff_taken_back_is_the_diff_the_other_way() -> None:
    before = b"1\n2\n3\n4\n5\n6\n7\n8\n9\n10"
    after = b"0\n1\n2\n3\n4\n5\n6\n7\n8\nnine\nten\n"
    (there,) = diff.parse(diff_of({P: before}, {P: after}), "x")
    assert hunks.fit(there, before) == after
    assert hunks.fit(there.back(), after) == before
    assert there.back().back() == there
    (made,) = diff.parse(diff_of({}, {P: b"1\n"}), "x")
    assert (made.back().deleted, hunks.fit(made.back(), b"1\n")) == (True, None)
