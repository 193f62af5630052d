"""Worktrees at a release's files, and what export makes of them: the same bytes, or a reason."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
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
from kiln.authoring import drafts, export, gate, leftovers, repository, worktree
from kiln.report import Reporter
from kiln.tasks import show_authoring
from kiln.upstream import wheel

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
        with pytest.raises(errors.BadInput, match="no worktree that was finished") as caught:
            call(toy)
        assert caught.value.hint == f"make it anew; what is in it is lost: {DISCARD}"
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


GIT = """\
#!/bin/sh
# a git that starts another program, and both write until they are ended
trap 'exit 1' TERM
(while :; do echo x > inner.$$; sleep 0.02; done) &
while :; do echo x > outer; sleep 0.02; done
"""


@pytest.mark.parametrize("number", [signal.SIGINT, None])
def test_an_interrupted_or_late_git_is_gone_with_all_that_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals | None
) -> None:
    git.execute(tmp_path, "version")
    folder = tmp_path / "tree"
    for made in (folder, tmp_path / "bin"):
        made.mkdir()
    program = tmp_path / "bin/git"
    program.write_text(GIT)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    begun = time.monotonic()
    if number:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            git.execute(folder, "status")
    else:
        code, _, problem = git.execute(folder, "status", seconds=1)
        assert (code, problem) == (-signal.SIGKILL, "no answer within 1 s\n")
    assert time.monotonic() - begun < 4
    assert {path.name.partition(".")[0] for path in folder.iterdir()} == {"inner", "outer"}
    shutil.rmtree(folder)
    time.sleep(0.1)
    assert not folder.exists()
    assert threading.active_count() == 1 or not any("Timer" in each.name for each in threading.enumerate())


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
        (PATH, SECOND + b"<<<<<<<\tHEAD\n", "vllm/twins.py:16: a conflict marker"),
        (PATH, SECOND + b"<<<<<<<HEAD\n", "vllm/twins.py:16: a conflict marker: <<<<<<<HEAD"),
        (PATH, SECOND + b"=======\n", "vllm/twins.py:16: a conflict marker: ======="),
        (PATH, SECOND + b"=======\r\n", "vllm/twins.py:16: a conflict marker: ======="),
        (PATH, SECOND + b"<<<<<<<<< longer\n", "vllm/twins.py:16: a conflict marker"),
        (PATH, SECOND + b"    >>>>>>> indented\n", "vllm/twins.py:16: a conflict marker"),
        *(
            (f"vllm/sub/{name}", b"x\n", f"vllm/sub/{name}: left by an editor or a merge")
            for name in ("#a.py#", "4913", "a.py.swo", "a.py~", "a.py.bak")
        ),
        *(
            (f"vllm/sub/{name}", b"x\n", f"vllm/sub/{name.partition('/')[0]}: a hidden file or folder")
            for name in (".a.py.swo", ".DS_Store", ".#a.py", ".git/config", ".idea/x.xml")
        ),
        ("notes.txt", b"mine\n", "notes.txt: outside of vllm/"),
        ("vllm/twins.py.orig", b"x\n", "vllm/twins.py.orig: left by an editor or a merge"),
        ("vllm/twins.py.rej", b"x\n", "vllm/twins.py.rej: left by an editor or a merge"),
        (PATH, BEFORE, "nothing differs from worktree/kiln-base"),
    ],
)
def test_what_no_edition_can_hold_is_refused(toy: Catalog, path: str, data: bytes, problem: str) -> None:
    folder = opened(toy)
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(data)
    before = snapshot(toy.root)
    with pytest.raises(errors.BadInput) as caught:
        exported(toy)
    assert problem in caught.value.message
    assert snapshot(toy.root) == before


def test_lines_that_were_there_before_and_other_rules_are_no_markers() -> None:
    rule = b"=======\n" + BEFORE
    after = rule + b'"""A heading\n=========\n\n>>> x << 7\n\nnote\n======\n"""\n'
    assert list(leftovers.problems({PATH: rule}, {PATH: after})) == []


def test_other_files_and_deletions_are_findings_until_they_are_confirmed(
    toy: Catalog, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # the cache has what the wheel has, and a wheel that could say what it has not is out of reach
    monkeypatch.setattr(
        wheel, "read", lambda _, paths, **__: {path: SOURCES[path] for path in paths if path in SOURCES}
    )
    folder = opened(toy)
    (folder / PATH).write_bytes(OTHER)
    (folder / "vllm/config.json").unlink()
    (folder / "vllm/new.py").write_bytes(b"x = 1\n")
    before = snapshot(toy.root)
    told = exported(toy, prove=found("must not be asked"))
    assert [(file.what, file.path) for file in told.files] == [
        ("deleted", "vllm/config.json"),
        ("new", "vllm/new.py"),
        ("changed", PATH),
    ]
    assert [finding.problem for finding in told.findings] == [
        "deletes vllm/config.json, which the edition for 0.31.0 does not",
        "vllm/new.py is new, and the edition for 0.31.0 does not touch it",
    ]
    assert told.findings[0].hint == "if it is meant: ./inv patch.export toy --release 0.31.0 --files"
    assert snapshot(toy.root) == before
    confirmed = export.export(toy, "toy", RELEASE, reporter=QUIET, prove=probed, files=True)
    show_authoring.show_export(confirmed, dry_run=False, json=False)
    assert capsys.readouterr().out.startswith(
        "deleted  vllm/config.json\nnew      vllm/new.py\nchanged  vllm/twins.py\n"
    )
    made = catalog.load(toy.root)
    assert made.patches["toy"].editions[RELEASE].files.keys() == {PATH, "vllm/config.json", "vllm/new.py"}
    (folder / PATH).write_bytes(SECOND)
    assert exported(made).written, "the edition has these files now"


def test_a_deletion_in_a_first_edition_and_one_instead_of_a_change_are_findings(toy: Catalog) -> None:
    (opened(toy) / PATH).unlink()
    (finding,) = exported(toy).findings
    assert finding.problem == f"deletes {PATH}, which the edition for 0.31.0 does not"
    described = toy.root / "patches/toy/patch.yaml"
    described.write_text(described.read_text().partition("editions:")[0])
    (finding,) = exported(catalog.load(toy.root)).findings
    assert finding.problem == f"deletes {PATH}, which an edition before does not"


@pytest.mark.parametrize("how", ["no record", "wrong pre", "wrong sha256"])
def test_an_edition_whose_record_is_wrong_is_not_unchanged(toy: Catalog, how: str) -> None:
    folder = opened(toy)
    right = snapshot(toy.root)
    described = toy.root / "patches/toy/patch.yaml"
    edition = toy.patches["toy"].editions[RELEASE]
    text = described.read_text()
    hashes = {"wrong pre": edition.files[PATH].pre, "wrong sha256": edition.sha256}
    wrong = text.partition("editions:")[0] if how == "no record" else text.replace(str(hashes[how]), "f" * 64)
    described.write_text(wrong)
    assert wrong != text
    told = exported(catalog.load(toy.root))
    assert (told.changed, told.written, told.findings) == (True, True, ())
    assert catalog.load(toy.root).patches["toy"].editions == {RELEASE: edition}
    assert snapshot(toy.root).keys() == right.keys()
    assert (folder / PATH).read_bytes() == SECOND


def test_a_mode_is_left_out_and_named(toy: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    folder = opened(toy)
    (folder / "vllm/config.json").chmod(0o755)
    told = exported(toy)
    assert (told.changed, told.left_out) == (
        False,
        (("vllm/config.json", "mode only: an edition holds contents, not modes"),),
    )
    show_authoring.show_export(told, dry_run=False, json=False)
    assert "left out vllm/config.json: mode only" in capsys.readouterr().out
    (folder / PATH).write_bytes(BEFORE)
    with pytest.raises(errors.BadInput, match=r"but what an edition cannot hold, the mode of vllm/config\.json"):
        exported(toy)


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
    assert capsys.readouterr().out.splitlines() == [
        "changed  vllm/twins.py",
        "unchanged: patches/toy/0.31.0.patch and its hashes are already this",
    ]
    (folder / PATH).write_bytes(FIRST)
    with pytest.raises(errors.Findings, match="was not written: 1 finding"):
        show_authoring.show_export(exported(toy), dry_run=False, json=True)
    assert json.loads(capsys.readouterr().out)["findings"][0]["where"] == "patches/toy on 0.31.0"
    (folder / PATH).write_bytes(OTHER)
    show_authoring.show_export(exported(toy), dry_run=False, json=False)
    assert "\nwrote patches/toy/0.31.0.patch and its hashes" in capsys.readouterr().out


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
