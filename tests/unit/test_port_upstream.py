"""The upstream change beside a problem: from two files, and from a real git repository, local or by URL."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from git import Actor, Repo

from kiln import errors
from kiln.patching.outcomes import Outcome
from kiln.port import upstream_change
from kiln.port.records import Problem

if TYPE_CHECKING:
    from pathlib import Path

PATH = "vllm/a.py"
OLD = "".join(f"line {n}\n" for n in range(100))
NEW = OLD.replace("line 10\n", "line ten\n").replace("line 80\n", "line eighty\n")
WHO = Actor("Kiln Test", "test@example.invalid")


def problem(first: int, last: int, path: str = PATH) -> Problem:
    return Problem(path=path, outcome=Outcome.CONFLICT, expected="x", found="y", hint="z", hunk=1, lines=(first, last))


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """Return a repository in which two commits changed the file between v0.1.0 and v0.2.0, and others did not."""
    repo = Repo.init(tmp_path / "upstream", initial_branch="main")
    root = tmp_path / "upstream"
    (root / "vllm").mkdir()
    steps = (
        ("first", PATH, OLD, "v0.1.0"),
        ("Write ten out\x1b[31m", PATH, OLD.replace("line 10\n", "line ten\n"), ""),
        ("Another file", "vllm/b.py", "b\n", ""),
        ("Write eighty out", PATH, NEW, "v0.2.0"),
        ("After the release", PATH, NEW.replace("line 10", "line X"), ""),
    )
    for subject, path, text, tag in steps:
        (root / path).write_text(text)
        repo.index.add([path])
        repo.index.commit(
            subject,
            author=WHO,
            committer=WHO,
            author_date="2026-01-02T00:00:00 +0000",
            commit_date="2026-01-02T00:00:00 +0000",
        )
        if tag:
            repo.create_tag(tag)
    repo.config_writer().set_value("uploadpack", "allowFilter", "true").release()
    repo.close()
    return root


def test_the_diff_shows_the_hunk_that_a_problem_lies_in_and_no_other() -> None:
    change = upstream_change.explain(problem(10, 11), OLD.encode(), NEW.encode())
    assert change.diff.splitlines() == [
        "@@ line 8 of the edition's file, line 8 of the release's @@",
        " line 7",
        " line 8",
        " line 9",
        "-line 10",
        "+line ten",
        " line 11",
        " line 12",
        " line 13",
    ]
    assert change.commits == ()


def test_a_problem_beside_every_change_gets_the_nearest_one() -> None:
    change = upstream_change.explain(problem(60, 61), OLD.encode(), NEW.encode())
    assert "+line eighty" in change.diff
    assert "+line ten" not in change.diff


def test_a_long_change_is_cut() -> None:
    rewritten = "".join(f"other {n}\n" for n in range(100))
    rows = upstream_change.explain(problem(5, 6), OLD.encode(), rewritten.encode()).diff.splitlines()
    assert len(rows) == 62
    assert rows[-1] == "... 140 more lines"


def test_what_a_terminal_would_obey_is_shown_as_text() -> None:
    change = upstream_change.explain(problem(10, 11), OLD.encode(), NEW.replace("ten", "\x1b[2J").encode())
    assert "\x1b" not in change.diff
    assert "+line \\x1b[2J" in change.diff


def test_git_names_the_commit_that_changed_the_lines(upstream: Path, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (upstream / ".git").rglob("*"))
    past = upstream_change.history(str(upstream), "0.1.0", "0.2.0", state=tmp_path / "cache")
    change = upstream_change.explain(problem(10, 11), OLD.encode(), NEW.encode(), past)
    assert [(commit.date, commit.subject) for commit in change.commits] == [("2026-01-02", "Write ten out\\x1b[31m")]
    assert change.exact
    assert len(change.commits[0].id) == 40
    assert sorted((path, path.stat().st_mtime_ns) for path in (upstream / ".git").rglob("*")) == before
    assert not (tmp_path / "cache").exists()


def test_lines_that_no_commit_names_get_every_commit_of_the_file(upstream: Path, tmp_path: Path) -> None:
    past = upstream_change.history(str(upstream), "0.1.0", "0.2.0", state=tmp_path / "cache")
    change = upstream_change.explain(problem(10, 11), None, None, past)
    assert [commit.subject for commit in change.commits] == ["Write eighty out", "Write ten out\\x1b[31m"]
    assert not change.exact


def test_a_url_is_fetched_once_into_a_cache_without_the_files(upstream: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for _ in range(2):
        past = upstream_change.history(f"file://{upstream}", "0.1.0", "0.2.0", state=cache)
        change = upstream_change.explain(problem(80, 81), OLD.encode(), NEW.encode(), past)
        assert [commit.subject for commit in change.commits] == ["Write eighty out"]
    (clone,) = (path for path in (cache / "git").iterdir() if path.is_dir())
    with Repo(clone) as repo:
        assert repo.bare
        assert sorted(tag.name for tag in repo.tags) == ["v0.1.0", "v0.2.0"]


@pytest.mark.parametrize("where", ["nowhere", "ext::sh -c touch% /tmp/kiln-port-ran", "--upload-pack=x", ""])
def test_what_is_neither_a_folder_nor_a_url_is_refused(where: str, tmp_path: Path) -> None:
    with pytest.raises(errors.BadInput, match="neither the URL nor the folder"):
        upstream_change.history(where or "file://", "0.1.0", "0.2.0", state=tmp_path / "cache")


def test_a_missing_tag_and_a_folder_without_git_are_named(upstream: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.BadInput, match=r"has no refs/tags/v0\.9\.0"):
        upstream_change.history(str(upstream), "0.1.0", "0.9.0", state=tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.BadInput, match="neither the URL nor the folder"):
        upstream_change.history(str(tmp_path / "empty"), "0.1.0", "0.2.0", state=tmp_path / "cache")
    with pytest.raises(errors.Missing, match="cannot be fetched"):
        upstream_change.history(f"file://{upstream}", "0.1.0", "0.9.0", state=tmp_path / "cache")
