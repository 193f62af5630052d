"""Takes a series back: the tree is what it was, or nothing is written and the reason is named."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from patching_support import (
    A1,
    FILES,
    INFO,
    WIDE_FILES,
    after_three,
    contents,
    series_of,
    snapshot,
    three,
    wheel,
    wide,
    wide_wheel,
)

from kiln.patching import cli, engine, errors, ledger, lock, record, series, undo
from kiln.patching.outcomes import Outcome, digest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def pristine(where: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return everything but bytecode and times."""
    return {path: row for path, row in snapshot(where, times=False).items() if not path.endswith(".pyc")}


def test_revert_gives_bytes_modes_and_record_back_and_leaves_nothing(tmp_path: Path) -> None:
    root = wide_wheel(tmp_path)
    before = pristine(tmp_path)
    engine.apply(wide(), root)
    assert pristine(tmp_path) != before
    report = engine.revert(root)
    assert report.outcome is Outcome.REVERTED
    assert {patch.outcome for patch in report.patches} == {Outcome.REVERTED}
    assert pristine(tmp_path) == before
    assert (tmp_path / "vllm/tool.sh").stat().st_mode & 0o7777 == 0o755
    assert engine.verify(root).hint.startswith("no ledger")


def test_apply_after_revert_after_apply(tmp_path: Path) -> None:
    root = wide_wheel(tmp_path)
    held = []
    for _ in range(2):
        assert engine.apply(wide(), root).outcome is Outcome.APPLIED
        assert engine.verify(root, wide()).outcome is Outcome.ALREADY_APPLIED
        held.append(snapshot(tmp_path, times=False))
        assert engine.revert(root).outcome is Outcome.REVERTED
    assert held[0] == held[1]


def test_the_times_of_folders_stay_and_of_files_are_now(tmp_path: Path) -> None:
    root = wide_wheel(tmp_path)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.utime(path, (1000, 1000))
    engine.apply(wide(), root)
    start = time.time() - 2
    engine.revert(root)
    new = {path for path, (_, mtime_ns, _) in snapshot(tmp_path).items() if mtime_ns > start * 10**9}
    changed = {"vllm/a.py", "vllm/b.py", "vllm/old.py", "vllm/sub/c.py", "vllm/tool.sh", "vllm/data.txt"}
    assert new == {*changed, f"{INFO}/RECORD"}


def test_source_date_epoch_is_the_time_of_what_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = wide_wheel(tmp_path)
    engine.apply(wide(), root)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    engine.revert(root)
    assert {(tmp_path / path).stat().st_mtime for path in ("vllm/a.py", "vllm/old.py", "vllm", INFO)} == {1700000000}


def test_the_same_tree_and_series_give_the_same_undo(tmp_path: Path) -> None:
    for name in ("x", "y"):
        engine.apply(wide(), wide_wheel(tmp_path / name))
    held = [(tmp_path / name / INFO / undo.NAME).read_bytes() for name in ("x", "y")]
    assert held[0] == held[1]
    assert str(tmp_path).encode() not in held[0]
    assert len(held[0]) < sum(len(patch.data) for patch in wide().patches) + 3000
    assert undo.render(undo.parse(held[0])) == held[0]


def test_a_tree_without_a_series_is_left_alone(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    before = snapshot(tmp_path)
    for wanted in (None, three()):
        report = engine.revert(root, wanted)
        assert (report.outcome, report.patches) == (Outcome.REVERTED, ())
        assert report.hint.startswith("nothing to revert: no series")
    assert snapshot(tmp_path) == before


def test_t22_content_that_we_did_not_write_is_not_taken_back(tmp_path: Path) -> None:
    root = wheel(tmp_path, after_three())
    before = snapshot(tmp_path)
    assert engine.revert(root, three()).outcome is Outcome.MERGED
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("path", ["vllm/a.py", "vllm/sub/new/d.py", "vllm/old.py", f"{INFO}/RECORD"])
def test_t92_a_file_edited_after_the_apply_is_named_and_nothing_is_written(tmp_path: Path, path: str) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    with (tmp_path / path).open("ab") as file:
        file.write(b"mine = 1\n")
    before = snapshot(tmp_path)
    report = engine.revert(root)
    assert report.outcome is Outcome.TARGET_MODIFIED
    rows = [*report.files, *(file for patch in report.patches for file in patch.files)]
    assert {row.path for row in rows if not row.outcome.done} == {path}
    assert "reinstall" in report.hint + "".join(row.hint for row in rows)
    assert snapshot(tmp_path) == before


def test_the_series_that_is_named_must_be_the_one_in_the_tree(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    before = snapshot(tmp_path)
    assert engine.revert(root, series_of(("one", A1))).outcome is Outcome.STALE_RESIDUE
    assert snapshot(tmp_path) == before
    assert engine.revert(root, three()).outcome is Outcome.REVERTED
    assert contents(tmp_path) == FILES


def test_a_new_folder_that_holds_something_else_stays(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    cache = tmp_path / "vllm/sub/new/__pycache__"
    cache.mkdir()
    (cache / "d.cpython-312.pyc").write_bytes(b"of d")
    (tmp_path / "vllm/sub/new/mine.txt").write_text("mine")
    assert engine.revert(root).outcome is Outcome.REVERTED
    assert sorted(path.name for path in (tmp_path / "vllm/sub/new").iterdir()) == ["mine.txt"]


def test_a_new_folder_that_became_a_link_is_refused(tmp_path: Path) -> None:
    root = wheel(tmp_path / "root")
    engine.apply(three(), root)
    (tmp_path / "root/vllm/sub/new").rename(tmp_path / "elsewhere")
    (tmp_path / "root/vllm/sub/new").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(errors.BadPath, match="elsewhere"):
        engine.revert(root)
    assert (tmp_path / "elsewhere/d.py").read_bytes() == b"d = 1\n"


def test_a_cache_folder_that_became_a_link_is_refused(tmp_path: Path) -> None:
    root = wheel(tmp_path / "root")
    engine.apply(three(), root)
    (tmp_path / "mine").mkdir()
    (tmp_path / "root/vllm/sub/new/__pycache__").symlink_to(tmp_path / "mine")
    with pytest.raises(errors.BadPath, match="mine"):
        engine.revert(root)
    assert contents(tmp_path / "root") == after_three()


def test_t64_bytecode_of_what_comes_back_is_removed(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    (tmp_path / "vllm/__pycache__").mkdir()
    (tmp_path / "vllm/__pycache__/a.cpython-312.pyc").write_bytes(b"of the patched a.py")
    engine.revert(root)
    assert not list((tmp_path / "vllm/__pycache__").iterdir())


def test_an_empty_series_is_taken_back(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    before = snapshot(tmp_path, times=False)
    engine.apply(series_of(), root)
    assert engine.revert(root).outcome is Outcome.REVERTED
    assert snapshot(tmp_path, times=False) == before


def test_a_series_that_puts_a_file_back_is_taken_back(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    before = snapshot(tmp_path, times=False)
    both = series_of(("there", A1), ("back", {"vllm/a.py": FILES["vllm/a.py"]}), ("new", {"vllm/n.py": b"n = 1\n"}))
    engine.apply(both, root)
    engine.revert(root)
    assert snapshot(tmp_path, times=False) == before


@pytest.mark.parametrize("ending", ["\n", "\r\n", ""])
@pytest.mark.parametrize("last", ["vllm/a.py", "vllm/__init__.py", "vllm/old.py"])
def test_record_comes_back_byte_for_byte(tmp_path: Path, ending: str, last: str) -> None:
    root = wheel(tmp_path)
    lines = (root.metadata / "RECORD").read_text().splitlines()
    lines.sort(key=lambda line: line.startswith(last))
    before = (ending or "\n").join(lines).encode() + ending.encode()
    (root.metadata / "RECORD").write_bytes(before)
    engine.apply(three(), root)
    assert engine.verify(root).outcome is Outcome.ALREADY_APPLIED
    engine.revert(root)
    assert (root.metadata / "RECORD").read_bytes() == before


def test_an_empty_record_is_no_special_case() -> None:
    was = record.before(b"", {"a"})
    assert record.restored(record.updated(b"", {"a": b"1"}), {"a"}, was) == b""


@pytest.mark.parametrize("name", ["kiln-undo", "kiln-ledger.json"])
def test_without_undo_or_ledger_nothing_is_written(tmp_path: Path, name: str) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    (root.metadata / name).unlink()
    before = snapshot(tmp_path)
    report = engine.revert(root)
    wanted = {"kiln-undo": Outcome.UNKNOWN, "kiln-ledger.json": Outcome.STALE_RESIDUE}
    assert (report.outcome, report.files[0].path) == (wanted[name], "kiln-undo")
    assert "reinstall" in report.hint
    assert not engine.verify(root).outcome.done
    assert "kiln-undo" in {file.path for file in engine.verify(root).files}
    assert snapshot(tmp_path) == before


def test_a_ledger_that_cannot_be_read_stops_a_revert(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    (root.metadata / ledger.NAME).write_bytes(b"{}")
    assert engine.revert(root).outcome is Outcome.UNKNOWN
    assert contents(tmp_path) == after_three()


def forged(data: bytes, **fields: object) -> bytes:
    head, _, rest = data.partition(b"\n")
    return json.dumps({**json.loads(head), **fields}, separators=(",", ":"), sort_keys=True).encode() + b"\n" + rest


@pytest.mark.parametrize(
    "fields",
    [
        {"schema": 2},
        {"more": 1},
        {"editions": [1]},
        {"editions": [-5]},
        {"editions": "x"},
        {"editions": [True]},
        {"modes": {"vllm/old.py": 0o100644}},
        {"modes": {"vllm/old.py": -1}},
        {"modes": {"../old.py": 0o644}},
        {"modes": {"vllm/old.py": "rw"}},
        {"made": ["/etc"]},
        {"made": "vllm"},
        {"record": {"sha256": 1, "ends": True, "lines": []}},
        {"record": {"sha256": "0", "ends": 1, "lines": []}},
        {"record": {"sha256": "0", "ends": True, "lines": [{"at": -1, "line": ""}]}},
        {"record": {"sha256": "0", "ends": True, "lines": [{"at": 10**15, "line": ""}]}},
        {"record": {"sha256": "0", "ends": True, "lines": [{"at": 0, "line": "\u20ac"}]}},
        {"record": {"sha256": "0", "ends": True, "lines": [{"at": 0, "line": 1}]}},
    ],
)
def test_an_undo_that_is_not_as_it_was_written_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    where = root.metadata / undo.NAME
    assert forged(where.read_bytes()) == where.read_bytes()
    where.write_bytes(forged(where.read_bytes(), **fields))
    before = snapshot(tmp_path)
    report = engine.revert(root)
    assert (report.outcome, report.files[0].path) == (Outcome.UNKNOWN, undo.NAME)
    assert snapshot(tmp_path) == before


def test_the_undo_of_another_series_is_refused() -> None:
    kept = undo.Undo(editions=(), record=record.before(b"", ()), modes=(), made=())
    with pytest.raises(errors.BadSeries, match="0 editions"):
        undo.series(ledger.of(three()), kept)
    editions = tuple(patch.data for patch in three().patches)
    with pytest.raises(errors.BadSeries, match="not the edition"):
        undo.series(ledger.of(three()), replace(kept, editions=(*editions[:2], editions[0])))
    assert undo.series(ledger.of(three()), replace(kept, editions=editions)) == three()


def test_editions_that_do_not_lead_back_are_refused(tmp_path: Path) -> None:
    """Ledger and undo agree and the files are at post, yet the ledger names another pre: nothing is written."""
    one = series_of(("one", A1))
    change = replace(one.patches[0].files[0], pre=digest(b"never"))
    lying = replace(one, patches=(replace(one.patches[0], files=(change,)),))
    root = wheel(tmp_path)
    engine.apply(one, root)
    (root.metadata / ledger.NAME).write_bytes(ledger.render(ledger.of(lying)))
    before = snapshot(tmp_path)
    report = engine.revert(root)
    assert report.outcome is Outcome.UNKNOWN
    assert "does not lead back to vllm/a.py" in report.files[0].found
    assert snapshot(tmp_path) == before


def test_t34_a_revert_waits_for_its_turn(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    with lock.held(root.metadata, wait_s=0), pytest.raises(errors.Locked):
        engine.revert(root, wait_s=0)
    assert contents(tmp_path) == after_three()


def test_the_command_line_takes_back_and_says_what_comes_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = f"--root={tmp_path / 'root'}"
    wide_wheel(tmp_path / "root")
    series.write_series(tmp_path / "series", wide())
    series.write_series(tmp_path / "shorter", series_of(("one", A1), files=WIDE_FILES))
    shorter = f"--series={tmp_path / 'shorter'}"
    assert cli.main(("revert", root)) == 0
    assert "nothing to revert" in capsys.readouterr().out
    assert cli.main(("apply", root, f"--series={tmp_path / 'series'}")) == 0
    capsys.readouterr()
    assert cli.main(("apply", root, shorter)) == 5
    hint = capsys.readouterr().err
    revert, apply = hint.strip().rpartition("; ")[2].split(" && ")
    assert revert.split()[2:] == ["revert", root, "--distribution=vllm"]
    assert apply.split()[2:] == ["apply", shorter, root]
    assert cli.main(revert.split()[2:]) == 0
    assert "REVERTED         five" in capsys.readouterr().out
    assert cli.main(apply.split()[2:]) == 0
    (tmp_path / "root/vllm/a.py").write_bytes(b"")
    capsys.readouterr()
    assert cli.main(("revert", root, "--json")) == 5
    assert json.loads(capsys.readouterr().out)["report"]["outcome"] == "TARGET_MODIFIED"
