from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest

from kiln import errors, git
from kiln.image import second_opinion
from kiln.patching import authoring
from kiln.patching import plan as patching
from kiln.patching.plan import Write
from kiln.patching.tree import Memory

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.patching.series import Series

BEFORE = {"vllm/a.py": b"".join(b"a%d = %d\n" % (n, n) for n in range(40)), "vllm/old.py": b"gone = 1\n"}
ONE = BEFORE | {"vllm/a.py": BEFORE["vllm/a.py"].replace(b"a5 = 5\n", b"a5 = 55\n")}
TWO = {"vllm/a.py": ONE["vllm/a.py"].replace(b"a9 = 9\n", b"a9 = 'nine'\n"), "vllm/new/b.py": b"b = 1\n"}


def made() -> Series:
    """Two patches on one file; the second also creates a file and deletes another."""
    editions = [("one", git.diff(BEFORE, ONE)), ("two", git.diff(ONE, TWO))]
    return authoring.series("vllm", "0.31.0", editions, Memory(BEFORE))


def writes(series: Series) -> tuple[Write, ...]:
    return patching.plan(series, Memory(BEFORE)).writes


def test_git_and_the_engine_agree_on_a_series() -> None:
    series = made()
    assert {write.path: write.data for write in writes(series)} == TWO | {"vllm/old.py": None}
    second_opinion.compare(series, BEFORE, writes(series))


def test_a_disagreement_names_the_file_and_both_hashes() -> None:
    series = made()
    ours = [Write(write.path, (write.data or b"") + b"#\n") for write in writes(series) if write.path == "vllm/a.py"]
    with pytest.raises(errors.NotApplied) as caught:
        second_opinion.compare(series, BEFORE, ours)
    first, *rest = caught.value.message.splitlines()
    assert first == "git apply gives other bytes than Kiln:"
    assert [line.split(":")[0] for line in rest] == ["  vllm/a.py", "  vllm/new/b.py", "  vllm/old.py"]
    assert rest[0].startswith("  vllm/a.py: ours ")
    assert ", git's " in rest[0]
    assert rest[1].startswith("  vllm/new/b.py: ours absent, git's ")
    assert rest[2].endswith(", git's absent")


def test_what_git_refuses_is_an_error_in_its_own_words() -> None:
    with pytest.raises(errors.NotApplied) as caught:
        second_opinion.compare(made(), {"vllm/a.py": b"other\n", "vllm/old.py": b"gone = 1\n"}, ())
    assert caught.value.message.startswith("the series applies, but git apply refuses it:\nerror: ")
    assert "/tmp" not in caught.value.message
    assert caught.value.exit_code == 5


def test_no_git_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    series = made_without_git()
    with pytest.raises(errors.Missing, match="git: no such program") as caught:
        second_opinion.compare(series, {"vllm/a.py": b"x = 1\n"}, ())
    assert (caught.value.exit_code, caught.value.hint) == (3, "install git: apt-get install git")


def made_without_git() -> Series:
    data = b"--- a/vllm/a.py\n+++ b/vllm/a.py\n@@ -1,2 +1,2 @@\n-x = 1\n+x = 2\n y = 1\n"
    return authoring.series("vllm", "0.31.0", [("x", data)], Memory({"vllm/a.py": b"x = 1\ny = 1\n"}))


def test_settings_of_the_machine_and_a_repository_around_change_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = git.diff(BEFORE, TWO)
    hostile = tmp_path / "config"
    hostile.write_text(
        "[core]\nautocrlf = true\nattributesFile = /nowhere\n[apply]\nwhitespace = fix\n"
        "[diff]\nnoprefix = true\ncontext = 9\nmnemonicPrefix = true\nexternal = /bin/false\n"
        "[color]\nui = always\n[extensions]\nx = y\n"
    )
    around = tmp_path / "around"
    around.mkdir()
    monkeypatch.setenv("TMPDIR", str(around))
    monkeypatch.setattr("tempfile.tempdir", None)
    git.ask(around, "init", "--quiet")
    (around / ".gitattributes").write_text("* binary\n")
    for name in ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM"):
        monkeypatch.setenv(name, str(hostile))
    monkeypatch.setenv("GIT_DIR", str(around / ".git"))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", "/bin/false")
    assert git.diff(BEFORE, TWO) == expected
    second_opinion.compare(made(), BEFORE, writes(made()))
    assert sorted(path.name for path in around.iterdir()) == [".git", ".gitattributes"]


def test_the_canonical_diff_is_what_git_writes() -> None:
    text = git.diff(BEFORE, TWO).decode()
    assert text.startswith("diff --git a/vllm/a.py b/vllm/a.py\nindex ")
    assert "diff --git a/vllm/new/b.py b/vllm/new/b.py\nnew file mode 100644\nindex " + "0" * 40 in text
    assert "diff --git a/vllm/old.py b/vllm/old.py\ndeleted file mode 100644\n" in text
    assert "\r" not in text
    assert git.diff({"a": b"1\r\n"}, {"a": b"2\r\n"}).endswith(b"-1\r\n+2\r\n")


def test_a_git_that_fails_is_shown_with_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stub = tmp_path / "git"
    stub.write_text(f"#!{shutil.which('sh')}\necho it broke >&2\nexit 9\n")
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(errors.CommandFailed, match="exit code 9\nit broke"):
        git.diff(BEFORE, TWO)
