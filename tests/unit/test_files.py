"""Files appear whole or not at all; one run at a time has a folder."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from kiln import files


def test_a_file_is_written_whole_with_the_folders_above(tmp_path: Path) -> None:
    path = files.write(tmp_path / "a/b.json", "{}\n")
    assert path.read_bytes() == b"{}\n"
    assert path.stat().st_mode & 0o777 == 0o644
    assert files.write(path, b"new").read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.json"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files.write(tmp_path / "b.json", "old")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["b.json"]


def test_a_second_run_waits_and_leftovers_are_swept(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    (tmp_path / ".made.half").mkdir()
    order: list[str] = []

    def second() -> None:
        with files.locked(folder, waiting=lambda: order.append("waits")):
            order.append("second")

    with files.locked(folder, waiting=lambda: pytest.fail("nobody else has it")):
        assert not (tmp_path / ".made.half").exists()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.2)
        order.append("first")
    thread.join()
    assert order == ["waits", "first", "second"]
