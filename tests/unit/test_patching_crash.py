"""Stops a run before each of its changes to the disk, by SIGKILL, by a full disk and by an interrupt."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kiln.patching import engine, errors, journal, lock, roots
from kiln.patching.outcomes import Outcome

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode does not
from test_patching_support import FILES, INFO, after_three, contents, series_of, snapshot, three, wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiln.patching.series import Series

EVENTS = frozenset({"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.utime", "os.chmod", "os.chown"})
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SURVIVED, REFUSED, WRONG = 0, 5, 9


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that it wrote; fsync is for power cuts, and slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def in_child(body: Callable[[], int]) -> int:
    """Run `body` in a fork, whose audit hook ends with it; return its exit code, or minus the signal."""
    child = os.fork()
    if child == 0:
        code = WRONG
        try:
            code = body()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stop_before(change: int, stop: Callable[[], None]) -> None:
    """Call `stop` once, before the change to the disk of this number."""
    left = [change]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in EVENTS or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
            left[0] -= 1
            if left[0] == -1:
                stop()

    sys.addaudithook(hook)


def killed_at(root: roots.Root, change: int) -> bool:
    def body() -> int:
        stop_before(change, lambda: os.kill(os.getpid(), signal.SIGKILL))
        engine.apply(three(), root)
        return SURVIVED

    code = in_child(body)
    assert code in {SURVIVED, -signal.SIGKILL}
    return code == -signal.SIGKILL


def tree(where: Path) -> roots.Root:
    root = wheel(where)
    (where / "vllm/__pycache__").mkdir()
    (where / "vllm/__pycache__/a.cpython-312.pyc").write_bytes(b"old")
    return root


def package(where: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return the snapshot without the lock, and without what only a killed run may leave undone: one folder's time."""
    return {path: row for path, row in snapshot(where).items() if path != INFO}


def test_t32_sigkill_before_any_change_is_recovered_by_the_next_run(tmp_path: Path) -> None:
    tree(tmp_path / "pristine")
    pristine = package(tmp_path / "pristine")
    ways = set()
    for change in range(1000):
        shutil.copytree(tmp_path / "pristine", tmp_path / "run")
        root = roots.find("vllm", root=tmp_path / "run")
        before = package(tmp_path / "run")
        assert before.keys() == pristine.keys()
        if not killed_at(root, change):
            break
        half = bool(engine.status(root, three()).files)
        report = engine.apply(three(), root)
        ways.add((half, report.outcome, report.hint))
        assert contents(tmp_path / "run") == after_three()
        assert engine.verify(root, three()).outcome is Outcome.ALREADY_APPLIED
        assert not [path for path in snapshot(tmp_path / "run") if "kiln" in path and "ledger" not in path]
        assert snapshot(tmp_path / "run")["vllm"][1] == before["vllm"][1]
        shutil.rmtree(tmp_path / "run")
    assert change > 30
    assert {(outcome, hint) for _, outcome, hint in ways} == {
        (Outcome.APPLIED, ""),
        (Outcome.APPLIED, "a killed run was rolled back first"),
        (Outcome.ALREADY_APPLIED, "a killed run had written everything; it was finished"),
        (Outcome.ALREADY_APPLIED, ""),
    }


def test_t32_a_rolled_back_tree_is_byte_for_byte_and_time_for_time_the_old_one(tmp_path: Path) -> None:
    """The next run is given a series that does not fit, so that what it leaves is what recovery made."""
    tree(tmp_path / "pristine")
    rolled_back = 0
    for change in range(2, 60, 3):
        shutil.copytree(tmp_path / "pristine", tmp_path / "run")
        root = roots.find("vllm", root=tmp_path / "run")
        before = package(tmp_path / "run")
        killed_at(root, change)
        report = engine.apply(_unfit(), root)
        if not (root.metadata / "kiln-ledger.json").exists():
            rolled_back += report.hint.startswith("a killed run was rolled back")
            assert package(tmp_path / "run") == before
        shutil.rmtree(tmp_path / "run")
    assert rolled_back > 5


def _unfit() -> Series:
    files = {**FILES, "vllm/a.py": b"x = 1\ny = 1\n"}
    return series_of(("unfit", {"vllm/a.py": b"x = 1\ny = 2\n"}), files=files)


@pytest.mark.parametrize("interrupt", [True, False])
def test_t32_a_full_disk_or_an_interrupt_before_any_change_rolls_back(tmp_path: Path, *, interrupt: bool) -> None:
    def stop() -> None:
        if interrupt:
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tree(tmp_path / "pristine")
    for change in range(1000):
        where = tmp_path / str(change)
        shutil.copytree(tmp_path / "pristine", where)
        code = in_child(functools.partial(_stopped, where, change, stop))
        if code == SURVIVED:
            break
        assert code == REFUSED, f"change {change} left a mix behind"
        shutil.rmtree(where)
    assert change > 30


def _stopped(where: Path, change: int, stop: Callable[[], None]) -> int:
    """Return SURVIVED when there was nothing to stop, REFUSED when the tree is as before or as it should be."""
    root = roots.find("vllm", root=where)
    before = snapshot(where)
    stopped = []

    def once() -> None:
        stopped.append(change)
        stop()

    stop_before(change, once)
    with contextlib.suppress(KeyboardInterrupt, errors.CannotWrite):
        engine.apply(three(), root)
    left = snapshot(where)
    whole = contents(where) == after_three() and (root.metadata / "kiln-ledger.json").exists()
    clean = not [path for path in left if "kiln" in path and "ledger" not in path]
    if not stopped:
        return SURVIVED if whole and clean else WRONG
    return REFUSED if (left == before or whole) and clean else WRONG


def test_t33_a_file_edited_after_the_kill_is_named_and_left_alone(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for change in range(1000):
        assert killed_at(root, change)
        if (tmp_path / "vllm/a.py").read_bytes() == after_three()["vllm/a.py"]:
            break
    (tmp_path / "vllm/b.py").write_bytes(b"edited = 1\n")
    before = snapshot(tmp_path)
    with pytest.raises(errors.Interrupted) as caught:
        engine.apply(three(), root)
    assert [(file.path, file.outcome) for file in caught.value.files] == [("vllm/b.py", Outcome.HALF_APPLIED)]
    lock_file = f"{INFO}/{lock.NAME}"
    assert {**snapshot(tmp_path), INFO: before[INFO], lock_file: before[lock_file]} == before
    report = engine.verify(root, three())
    assert report.outcome is Outcome.HALF_APPLIED
    assert "vllm/b.py" in {file.path for file in report.files}


@pytest.mark.parametrize("data", [b"", b"{}", b'{"schema": 1, "steps": 5, "made": [], "times": {}, "epoch": null}'])
def test_a_journal_that_cannot_be_read_stops_everything(tmp_path: Path, data: bytes) -> None:
    root = tree(tmp_path)
    (root.metadata / journal.NAME).write_bytes(data)
    with pytest.raises(errors.Interrupted, match="not readable"):
        engine.apply(three(), root)


def test_a_journal_cannot_lead_out_of_the_root(tmp_path: Path) -> None:
    root = tree(tmp_path / "root")
    (tmp_path / "outside").write_text("mine")
    step = {"path": "../outside", "pre": None, "post": None}
    value = {"schema": 1, "steps": [step], "made": [], "times": {}, "epoch": None}
    (root.metadata / journal.NAME).write_text(json.dumps(value))
    with pytest.raises(errors.Interrupted, match="leaves the root"):
        engine.apply(three(), root)
    assert (tmp_path / "outside").read_text() == "mine"
