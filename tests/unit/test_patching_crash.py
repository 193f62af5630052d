"""Stops apply and revert before each of their changes to the disk: by SIGKILL, a full or read-only disk, an interrupt.

A change is every audited system call that alters the tree, and every fsync of a file, before which the file is also
cut in half: what a kill in the middle of a write leaves. All of them are tried, more than 200 kills in all.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from patching_support import FILES, INFO, after_three, compiled, snapshot, three, wheel, wide, wide_wheel

from kiln.patching import engine, errors, journal, lock, roots, transaction, undo
from kiln.patching.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.patching.outcomes import SeriesReport

    State = dict[str, tuple[int, int, bytes]]

EVENTS = frozenset(
    f"os.{name}" for name in ("rename", "remove", "link", "mkdir", "rmdir", "utime", "chmod", "chown", "setxattr")
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
SURVIVED, WRONG = 0, 9
LEAST_KILLS = 200
armed: list[Callable[[int | None], None]] = []


def hook(event: str, args: tuple[Any, ...]) -> None:
    if armed and (event in EVENTS or (event == "open" and isinstance(args[2], int) and args[2] & WRITING)):
        armed[0](None)


sys.addaudithook(hook)


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Count an fsync as a change, and skip it: a killed process loses nothing, and a busy disk is slow."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: armed[0](descriptor) if armed else None)
    yield
    armed.clear()


def arm(change: int, stop: Callable[[], None], *, for_good: bool = False) -> list[int]:
    """Call `stop` before the change of this number (`for_good`: and all later ones); return a list of those met."""
    met: list[int] = []

    def each(descriptor: int | None) -> None:
        met.append(len(met))
        if len(met) - 1 == change or (for_good and len(met) > change):
            if descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode) and not for_good:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            stop()

    armed[:] = [each]
    return met


def killed(body: Callable[[], object], change: int) -> bool:
    """Run `body` in a fork and kill it before this change; say whether it came that far."""
    child = os.fork()
    if child == 0:
        code = WRONG
        try:
            arm(change, lambda: os.kill(os.getpid(), signal.SIGKILL))
            body()
            code = SURVIVED
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in {SURVIVED, -signal.SIGKILL}
    return code != SURVIVED


def recovered(root: roots.Root) -> str:
    """Do what the next run does first, and no more."""
    with lock.held(root.metadata, wait_s=0) as held:
        return transaction.recover(root, held)


def stripped(state: State, *, times: bool) -> State:
    """Leave out the time of the one folder in which a killed run may leave its lock; and all times, when asked."""
    return {
        path: (mode, mtime if times and path != INFO else 0, data)
        for path, (mode, mtime, data) in state.items()
        if path != f"{INFO}/{lock.NAME}"
    }


class World:
    """A tree that goes from pristine to patched and back; every state it may rest in is known."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.root = wide_wheel(where)
        self.series = wide()
        self.apply()
        self.post = stripped(snapshot(where), times=False)
        self.revert()

    def apply(self) -> SeriesReport:
        return engine.apply(self.series, self.root)

    def revert(self) -> SeriesReport:
        return engine.revert(self.root)

    def now(self, *, times: bool = False) -> State:
        return stripped(snapshot(self.where), times=times)

    def swap(self, change: int, *, back: bool, kill: bool = True) -> tuple[bool, str]:
        """Kill one run, let the next one recover, and check that the tree is as before or as after it."""
        before = self.now(times=True)
        run = self.revert if back else self.apply
        met = killed(run, change) if kill else failed(run, change)
        note = recovered(self.root)
        if self.now() == stripped(before, times=False):
            assert self.now(times=True) == before, f"change {change} moved a time"
        else:
            rested = self.post if not back else self.pristine
            assert self.now() == rested, f"change {change} left a mix behind"
        assert run().outcome.done
        assert self.now() == (self.pristine if back else self.post)
        return met, note

    def refill(self) -> None:
        compiled(self.where)
        state = self.now()
        self.pristine = {path: row for path, row in state.items() if "__pycache__/" not in path or "__init__" in path}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_t32_sigkill_before_any_change_of_apply_or_revert_is_recovered(world: World) -> None:
    kills = 0
    ways = set()
    met = [True, True]
    change = 0
    while any(met):
        world.refill()
        for n, back in enumerate((False, True)):
            met[n], note = world.swap(change, back=back)
            kills += met[n]
            ways.add((back, note))
        change += 1
    print(f"{kills} kills")
    assert kills > LEAST_KILLS
    notes = ("", "a killed run was rolled back first", "a killed run had written everything; it was finished")
    assert ways == {(back, note) for back in (False, True) for note in notes}


def failed(run: Callable[[], object], change: int) -> bool:
    """Run while the disk turns read-only before this change, for good; then it is writable again."""

    def refuse() -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    met = arm(change, refuse, for_good=True)
    try:
        with contextlib.suppress(errors.CannotWrite):
            run()
    finally:
        armed.clear()
    return len(met) > change


def test_t32_a_disk_that_turns_read_only_is_recovered_when_it_is_writable_again(world: World) -> None:
    met = [True, True]
    change = 0
    while any(met):
        world.refill()
        for n, back in enumerate((False, True)):
            met[n], _ = world.swap(change, back=back, kill=False)
        change += 1
    assert change > LEAST_KILLS // 2


@pytest.mark.parametrize("first", [0, 1] if os.environ.get("KILN_ALL_FAULTS") else [0])
def test_t32_a_full_disk_or_an_interrupt_rolls_back_at_once(world: World, first: int) -> None:
    """No recovery by a later run is needed: the failing run itself leaves the tree as before or as after it.

    The two take turns along the changes; with KILN_ALL_FAULTS set every change meets both.
    """

    def refuse() -> None:
        raise (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt())[(change + first) % 2]

    change, going = 0, True
    while going:
        world.refill()
        going = False
        for run, other in ((world.apply, world.post), (world.revert, world.pristine)):
            before = snapshot(world.where)
            met = arm(change, refuse)
            with contextlib.suppress(errors.CannotWrite, KeyboardInterrupt):
                run()
            armed.clear()
            going |= len(met) > change
            assert snapshot(world.where) == before or world.now() == other, f"change {change} left a mix behind"
            assert not (world.root.metadata / journal.NAME).exists()
            assert run().outcome.done
        change += 1
    assert change > LEAST_KILLS // 2


def tree(where: Path) -> roots.Root:
    root = wheel(where)
    (where / "vllm/__pycache__").mkdir()
    (where / "vllm/__pycache__/a.cpython-312.pyc").write_bytes(b"old")
    return root


def half_applied(root: roots.Root) -> None:
    """Kill a run just after its first rename."""
    for change in range(1000):
        assert killed(lambda: engine.apply(three(), root), change)
        if (root.path / "vllm/a.py").read_bytes() == after_three()["vllm/a.py"]:
            return


def test_t33_a_file_edited_after_the_kill_is_named_and_left_alone(tmp_path: Path) -> None:
    root = tree(tmp_path)
    half_applied(root)
    (tmp_path / "vllm/b.py").write_bytes(b"edited = 1\n")
    before = snapshot(tmp_path)
    for run in (partial(engine.apply, three(), root), partial(engine.revert, root)):
        with pytest.raises(errors.Interrupted) as caught:
            run()
        assert [(file.path, file.outcome) for file in caught.value.files] == [("vllm/b.py", Outcome.HALF_APPLIED)]
    lock_file = f"{INFO}/{lock.NAME}"
    assert {**snapshot(tmp_path), INFO: before[INFO], lock_file: before[lock_file]} == before
    report = engine.verify(root, three())
    assert report.outcome is Outcome.HALF_APPLIED
    assert "vllm/b.py" in {file.path for file in report.files}


def test_t33_the_file_that_an_original_was_kept_in_is_gone(tmp_path: Path) -> None:
    root = tree(tmp_path)
    half_applied(root)
    (tmp_path / "vllm/a.py.kiln-old").unlink()
    with pytest.raises(errors.Interrupted) as caught:
        engine.apply(three(), root)
    assert [file.path for file in caught.value.files] == ["vllm/a.py"]


def test_a_file_that_changes_while_it_is_patched_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program writes between our look at the file and our rename: its bytes win."""
    root = tree(tmp_path)
    keep = transaction._keep

    def late(path: Path, beside: Path) -> None:
        if path.name == "b.py":
            path.write_bytes(b"theirs = 1\n")
        keep(path, beside)

    monkeypatch.setattr(transaction, "_keep", late)
    with pytest.raises(errors.CannotWrite, match=r"b\.py: changed while"):
        engine.apply(three(), root)
    assert (tmp_path / "vllm/b.py").read_bytes() == b"theirs = 1\n"
    assert (tmp_path / "vllm/a.py").read_bytes() == FILES["vllm/a.py"]
    assert not [path for path in snapshot(tmp_path) if "kiln" in path]


def test_a_disk_that_does_not_keep_what_was_written_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path)
    rename = Path.replace

    def lossy(self: Path, target: Path) -> Path:
        if self.name == "a.py.kiln-new":
            self.write_bytes(b"")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", lossy)
    before = snapshot(tmp_path)
    with pytest.raises(errors.CannotWrite, match="does not hold what was written"):
        engine.apply(three(), root)
    assert snapshot(tmp_path) == before


STEP = {"path": "vllm/a.py", "pre": None, "post": "0" * 64}
JOURNAL: dict[str, Any] = {
    "schema": 1,
    "steps": [STEP],
    "made": [],
    "gone": [],
    "times": {"vllm": 1, ".": 2},
    "epoch": None,
}


@pytest.mark.parametrize(
    "value",
    [
        {},
        {**JOURNAL, "schema": 2},
        {**JOURNAL, "schema": True},
        {**JOURNAL, "steps": 5},
        {**JOURNAL, "steps": [{**STEP, "path": "../outside"}]},
        {**JOURNAL, "steps": [{**STEP, "post": "0"}]},
        {**JOURNAL, "steps": [{**STEP, "pre": 5}]},
        {**JOURNAL, "made": ["/tmp"]},
        {**JOURNAL, "gone": ["../x"]},
        {**JOURNAL, "times": {"..": 1}},
        {**JOURNAL, "times": {"vllm": 2**70}},
        {**JOURNAL, "times": {"vllm": "1"}},
        {**JOURNAL, "epoch": 2**40},
        {**JOURNAL, "more": 1},
    ],
)
def test_a_journal_that_cannot_be_used_stops_everything(tmp_path: Path, value: dict[str, Any]) -> None:
    root = tree(tmp_path / "root")
    (tmp_path / "outside").write_text("mine")
    (root.metadata / journal.NAME).write_text(json.dumps(value))
    before = snapshot(tmp_path, times=False)
    for run in (partial(engine.apply, three(), root), partial(engine.revert, root), partial(engine.status, root)):
        with pytest.raises(errors.Interrupted, match="not readable"):
            run()
    assert snapshot(tmp_path, times=False) == before


@pytest.mark.parametrize("data", [b"", b"\xff", b"[" * 100_000, b"9" * 10_000, b'{"a": 1, "a": 1}', b"1.5"])
def test_a_journal_that_is_no_json_stops_everything(tmp_path: Path, data: bytes) -> None:
    root = tree(tmp_path)
    (root.metadata / journal.NAME).write_bytes(data)
    with pytest.raises(errors.Interrupted, match="not readable"):
        engine.apply(three(), root)


def test_a_journal_that_names_nothing_wrong_is_read_back(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root.metadata / journal.NAME).write_text(json.dumps(JOURNAL))
    assert journal.read(root.metadata) == journal.Journal(
        steps=(journal.Step("vllm/a.py", None, "0" * 64),),
        made=(),
        gone=(),
        times=((".", 2), ("vllm", 1)),
        epoch=None,
    )


def test_the_undo_file_of_a_killed_apply_is_no_trace_of_a_series(tmp_path: Path) -> None:
    root = tree(tmp_path)
    half_applied(root)
    assert engine.revert(root).hint == "a killed run was rolled back first"
    assert not (root.metadata / undo.NAME).exists()
    assert engine.apply(three(), root).outcome is Outcome.APPLIED
