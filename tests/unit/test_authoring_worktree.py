"""Worktrees at a release's files, and what export makes of them: the same bytes, or a reason."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from authoring_support import (
    BEFORE,
    BOTH,
    FIRST,
    PATH,
    QUIET,
    RELEASE,
    SECOND,
    SOURCES,
    add,
    found,
    load,
    probed,
    snapshot,
)

from kiln import catalog, errors, git, process
from kiln.authoring import drafts, export, gate, repository, worktree
from kiln.report import Reporter
from kiln.tasks import show_authoring

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog

OTHER = SECOND.replace(b"second():\n    total = 1", b"second():\n    total = 0 + 1")
DISCARD = "./inv patch.edit toy --release 0.31.0 --discard"


@pytest.fixture
def toy(toy_catalog: Path) -> Catalog:
    return load(toy_catalog)


def opened(loaded: Catalog, patch_id: str = "toy", *, discard: bool = False) -> Path:
    return worktree.open(loaded, patch_id, RELEASE, reporter=QUIET, discard=discard)


def exported(loaded: Catalog, patch_id: str = "toy", *, prove: gate.Prover = probed) -> export.Export:
    return export.export(loaded, patch_id, RELEASE, reporter=QUIET, prove=prove)


def git_says(folder: Path, *words: str) -> str:
    return process.ask(("git", *words), cwd=folder)


# worktree


def test_the_history_is_the_release_then_each_patch_and_always_the_same(toy: Catalog) -> None:
    loaded = add(toy.root, "later", git.diff({PATH: SECOND}, {PATH: BOTH}), SECOND)
    folder = opened(loaded, "later")
    assert folder == loaded.state / "work/later-0.31.0"
    assert git_says(folder, "log", "--format=%s", "--reverse").splitlines() == ["vLLM 0.31.0", "One word", "One word"]
    assert git_says(folder, "log", "-1", "--format=%an <%ae> %B") == (
        "Kiln <kiln@localhost> One word\n\nto be applied\n\nKiln-Patch: later\nKiln-Release: 0.31.0\n\n"
    )
    assert git_says(folder, "show", f"worktree/kiln-base:{PATH}").encode() == SECOND
    assert (folder / PATH).read_bytes() == BOTH
    assert git_says(folder, "status", "--porcelain") == ""
    assert set(git_says(folder, "ls-files").splitlines()) == set(SOURCES)
    first = git_says(folder, "rev-parse", "HEAD")
    assert git_says(opened(loaded, "later"), "rev-parse", "HEAD") == first
    (loaded.state / "work").rename(loaded.root / "aside")
    assert git_says(opened(loaded, "later"), "rev-parse", "HEAD") == first


def test_the_settings_of_a_person_change_nothing(toy: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = git_says(opened(toy), "rev-parse", "HEAD")
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "post-commit", "reference-transaction"):
        (hooks / name).write_text("#!/bin/sh\nexit 1\n")
        (hooks / name).chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f"[core]\nautocrlf = true\nhooksPath = {hooks}\n[user]\nname = Mallory\n[commit]\ngpgSign = true\n"
    )
    for name, value in {
        "GIT_CONFIG_GLOBAL": str(settings),
        "GIT_DIR": str(tmp_path / "elsewhere"),
        "GIT_INDEX_FILE": str(tmp_path / "index"),
        "GIT_AUTHOR_DATE": "2001-01-01",
        "GIT_WORK_TREE": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    folder = opened(toy)
    assert repository.find(folder, "HEAD") == before.strip()
    assert (folder / PATH).read_bytes() == SECOND


def test_edits_that_were_not_exported_are_never_overwritten(toy: Catalog) -> None:
    folder = opened(toy)
    (folder / PATH).write_bytes(OTHER)
    with pytest.raises(errors.BadInput) as caught:
        opened(toy)
    assert caught.value.message == f"{folder}: holds edits that were not exported"
    assert caught.value.hint == f"./inv patch.export toy --release 0.31.0; or throw them away: {DISCARD}"
    git_says(folder, "commit", "-qam", "mine")
    with pytest.raises(errors.BadInput, match="not exported"):
        opened(toy)
    assert (folder / PATH).read_bytes() == OTHER
    assert (opened(toy, discard=True) / PATH).read_bytes() == SECOND


def test_a_new_file_and_a_removed_one_are_edits_too_and_bytecode_is_not(toy: Catalog) -> None:
    folder = opened(toy)
    (folder / "vllm/__pycache__").mkdir()
    (folder / "vllm/__pycache__/twins.cpython-311.pyc").write_bytes(b"x")
    opened(toy)
    (folder / "vllm/new.py").touch()
    with pytest.raises(errors.BadInput, match="not exported"):
        opened(toy)
    (folder / "vllm/new.py").unlink()
    (folder / "vllm/config.json").unlink()
    with pytest.raises(errors.BadInput, match="not exported"):
        opened(toy)


def test_what_was_exported_is_made_anew(toy: Catalog) -> None:
    folder = opened(toy)
    (folder / PATH).write_bytes(OTHER)
    assert exported(toy).written
    assert (opened(catalog.load(toy.root)) / PATH).read_bytes() == OTHER


def test_files_on_top_lie_uncommitted_on_the_earlier_patches(toy: Catalog) -> None:
    conflict = BEFORE.replace(b"END = True\n", b"<<<<<<< ours\nEND = 1\n=======\nEND = 2\n>>>>>>> theirs\n")
    on_top = {PATH: conflict, "vllm/config.json": None, "vllm/new/x.py": b"x = 1\n"}
    folder = worktree.open(toy, "toy", RELEASE, on_top, reporter=QUIET)
    assert (folder / PATH).read_bytes() == conflict
    status = git_says(folder, "status", "--porcelain", "-uall").splitlines()
    assert sorted(status) == [" D vllm/config.json", f" M {PATH}", "?? vllm/new/x.py"]
    worktree.open(toy, "toy", RELEASE, on_top, reporter=QUIET)  # nobody has touched it
    with pytest.raises(errors.BadInput, match=r"vllm/twins\.py:15: a conflict marker: <<<<<<< ours"):
        exported(toy)
    (folder / PATH).write_bytes(SECOND)
    assert sorted(worktree.changes(folder)[1]) == ["vllm/new/x.py", PATH]
    with pytest.raises(errors.BadInput, match="not exported"):
        opened(toy)


def test_an_edition_that_no_longer_fits_is_left_out_so_that_it_can_be_made_again(
    toy: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = add(toy.root, "later", git.diff({PATH: BEFORE}, {PATH: FIRST}), BEFORE)
    folder = worktree.open(loaded, "later", RELEASE, reporter=Reporter())
    assert (folder / PATH).read_bytes() == SECOND
    assert "patches/later/0.31.0.patch no longer fits, and is left out" in capsys.readouterr().err


def test_a_folder_that_is_no_finished_worktree_is_left_alone(toy: Catalog) -> None:
    folder = worktree.place(toy, "toy", RELEASE)
    (folder / "vllm").mkdir(parents=True)
    (folder / "vllm/mine.py").touch()
    for call in (opened, exported):
        with pytest.raises(errors.BadInput, match="no worktree that was finished"):
            call(toy)
    assert (folder / "vllm/mine.py").exists()
    assert not (opened(toy, discard=True) / "vllm/mine.py").exists()


def test_an_interrupt_while_it_is_made_leaves_no_worktree(toy: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = git.ask

    def interrupted(folder: Path, *words: str, stdin: Path | None = None) -> bytes:
        if words[:1] == ("update-ref",) and words[1].endswith("opened"):
            raise KeyboardInterrupt
        return ask(folder, *words, stdin=stdin)

    monkeypatch.setattr(git, "ask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        opened(toy)
    assert not worktree.place(toy, "toy", RELEASE).exists()
    monkeypatch.undo()
    opened(toy)


def test_without_git_it_says_what_is_missing(toy: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.Missing, match="git: no such program"):
        opened(toy)


# export


def test_export_of_an_untouched_worktree_is_the_stored_edition(toy: Catalog) -> None:
    loaded = add(toy.root, "later", git.diff({PATH: SECOND}, {PATH: BOTH}), SECOND)
    before = snapshot(loaded.root)
    for patch_id in ("toy", "later"):
        opened(loaded, patch_id)
        told = exported(loaded, patch_id, prove=found("must not be asked"))
        assert (told.changed, told.written, told.findings) == (False, False, ())
        assert told.diff.encode() == (loaded.root / told.edition).read_bytes()
    assert snapshot(loaded.root) == before


@pytest.mark.parametrize("how", ["uncommitted", "staged", "committed"])
def test_an_edit_becomes_the_edition_however_it_lies_there(toy: Catalog, how: str) -> None:
    folder = opened(toy)
    (folder / PATH).write_bytes(OTHER)
    if how != "uncommitted":
        git_says(folder, "add", PATH)
    if how == "committed":
        git_says(folder, "commit", "-qm", "mine")
    told = exported(toy)
    assert (told.changed, told.written, told.findings) == (True, True, ())
    made = catalog.load(toy.root).patches["toy"].editions[RELEASE]
    assert made == drafts.record("toy", git.diff({PATH: BEFORE}, {PATH: OTHER}), {PATH: BEFORE})
    again = exported(catalog.load(toy.root))
    assert (again.changed, again.written) == (False, False)


def test_a_dry_run_and_a_finding_write_nothing(toy: Catalog) -> None:
    (opened(toy) / PATH).write_bytes(FIRST)
    before = snapshot(toy.root)
    told = exported(toy)
    assert (told.changed, told.written) == (True, False)
    assert "its probe is not green" in told.findings[0].problem
    (worktree.place(toy, "toy", RELEASE) / PATH).write_bytes(OTHER)
    dry = export.export(toy, "toy", RELEASE, reporter=QUIET, dry_run=True, prove=probed)
    assert (dry.changed, dry.written, dry.findings) == (True, False, ())
    assert snapshot(toy.root) == before


@pytest.mark.parametrize(
    ("path", "data", "problem"),
    [
        (PATH, SECOND + b"<<<<<<< a\n", "vllm/twins.py:16: a conflict marker: <<<<<<< a"),
        (PATH, SECOND + b"||||||| b\n", "vllm/twins.py:16: a conflict marker"),
        (PATH, SECOND + b">>>>>>> c\r\n", "vllm/twins.py:16: a conflict marker"),
        ("notes.txt", b"mine\n", "notes.txt: outside of vllm/"),
        ("vllm/twins.py.orig", b"x\n", "vllm/twins.py.orig: left by an editor or a merge"),
        ("vllm/twins.py.rej", b"x\n", "vllm/twins.py.rej: left by an editor or a merge"),
        (PATH, BEFORE, "nothing differs from worktree/kiln-base"),
    ],
)
def test_what_no_edition_can_hold_is_refused(toy: Catalog, path: str, data: bytes, problem: str) -> None:
    folder = opened(toy)
    (folder / path).write_bytes(data)
    before = snapshot(toy.root)
    with pytest.raises(errors.BadInput) as caught:
        exported(toy)
    assert problem in caught.value.message
    assert snapshot(toy.root) == before


def test_a_link_is_refused(toy: Catalog) -> None:
    folder = opened(toy)
    (folder / "vllm/link.py").symlink_to("/etc/passwd")
    with pytest.raises(errors.BadInput, match="a symlink"):
        exported(toy)


def test_without_a_worktree_the_next_command_is_named(toy: Catalog) -> None:
    with pytest.raises(errors.BadInput, match="no such worktree") as caught:
        exported(toy)
    assert caught.value.hint == "./inv patch.edit toy --release 0.31.0"


def test_what_is_shown_to_a_person(toy: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    folder = opened(toy)
    show_authoring.show_worktree(folder, "toy", RELEASE, json=False)
    assert capsys.readouterr().out.splitlines() == [
        str(folder),
        "  edit    files below toy-0.31.0/vllm, with any editor; commit or not",
        f"  look    git -C {folder} diff worktree/kiln-base",
        "  export  ./inv patch.export toy --release 0.31.0",
        f"  discard {DISCARD}",
    ]
    show_authoring.show_export(exported(toy), dry_run=False, json=False)
    assert capsys.readouterr().out == "unchanged: patches/toy/0.31.0.patch is already this, byte for byte\n"
    (folder / PATH).write_bytes(FIRST)
    with pytest.raises(errors.Findings, match="was not written: 1 finding"):
        show_authoring.show_export(exported(toy), dry_run=False, json=True)
    assert json.loads(capsys.readouterr().out)["findings"][0]["where"] == "patches/toy on 0.31.0"
    (folder / PATH).write_bytes(OTHER)
    show_authoring.show_export(exported(toy), dry_run=False, json=False)
    assert capsys.readouterr().out.startswith("wrote patches/toy/0.31.0.patch and its hashes")


# check


def test_every_stored_edition_is_made_again(toy: Catalog) -> None:
    assert list(export.check(toy)) == []
    assert list(export.check(toy, {"toy"}, {RELEASE})) == []


def test_an_edition_that_is_not_as_export_writes_it_is_found(toy: Catalog) -> None:
    edition = toy.root / "patches/toy/0.31.0.patch"
    shorter = edition.read_bytes().replace(b"@@ def", b"@@ class", 1)
    edition.write_bytes(shorter)
    (finding,) = export.check(toy)
    assert finding.where == "patches/toy/0.31.0.patch"
    assert finding.problem.startswith("is not canonical: line 5 is")


def test_unknown_and_missing_editions_are_bad_input(toy: Catalog) -> None:
    with pytest.raises(errors.BadInput, match="unknown patch 'tyo'"):
        list(export.check(toy, {"tyo"}))
    with pytest.raises(errors.BadInput, match=r"no edition of toy on 0\.24\.0"):
        list(export.check(toy, {"toy"}, {"0.24.0"}))
