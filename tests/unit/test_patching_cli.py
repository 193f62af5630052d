from __future__ import annotations

import hashlib
import itertools
import json
import os
import runpy
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from patching_support import A1, FILES, INFO, after_three, contents, series_of, snapshot, three, wheel

from kiln import process
from kiln.patching import cli, plan, series, transaction, zipapp
from kiln.patching.tree import Memory

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("zipapp") / "kiln-patch.pyz"
    zipapp.build(target)
    return target


def folders(tmp_path: Path) -> tuple[str, str]:
    wheel(tmp_path / "root")
    series.write_series(tmp_path / "series", three())
    return f"--root={tmp_path / 'root'}", f"--series={tmp_path / 'series'}"


def test_the_zipapp_is_reproducible_small_and_licensed(tmp_path: Path, packed: Path) -> None:
    sha256 = zipapp.build(tmp_path / "again.pyz")
    assert sha256 == hashlib.sha256(packed.read_bytes()).hexdigest()
    assert packed.stat().st_size < 200_000
    assert os.access(packed, os.X_OK)
    with zipfile.ZipFile(packed) as archive:
        names = archive.namelist()
        assert "unidiff/LICENSE" in names
        assert archive.read("kiln/__init__.py") == b""
        assert {name for name in names if name.startswith("kiln/")} - {"kiln/__init__.py"} == {
            name for name in names if name.startswith("kiln/patching/")
        }


@pytest.mark.parametrize("python", [(sys.executable, "-I", "-S", "-B"), ("/usr/bin/python3", "-I", "-B")])
def test_the_zipapp_runs_end_to_end_on_a_bare_python(tmp_path: Path, packed: Path, python: tuple[str, ...]) -> None:
    if not Path(python[0]).exists():
        pytest.skip(f"no {python[0]} here")
    root, wanted = folders(tmp_path)
    environment = {"PATH": "", "LC_ALL": "C", "LANGUAGE": "de"}
    copy = tmp_path / "opt/kiln/ledger.json"
    argv = (*python, str(packed), "apply", root, wanted, "--fresh", f"--copy-ledger={copy}")
    done = process.run(argv, env=environment, cwd=Path("/"))
    assert (done.code, done.stderr) == (0, "")
    assert done.stdout.count("APPLIED") == 9
    assert contents(tmp_path / "root") == after_three()
    assert copy.read_bytes() == plan.plan(three(), Memory(FILES)).ledger
    again = process.run(argv, env=environment)
    assert again.code == 5
    assert "--fresh" in again.stderr
    verified = process.run((*python, str(packed), "verify", root, "--json"), env=environment)
    assert (verified.code, json.loads(verified.stdout)["report"]["outcome"]) == (0, "ALREADY_APPLIED")


def test_t34_two_processes_at_once(tmp_path: Path, packed: Path) -> None:
    root, wanted = folders(tmp_path)
    argv = (sys.executable, "-I", "-S", str(packed), "apply", root, wanted)
    runs = [process.spawn(argv, log=tmp_path / f"log{n}") for n in range(4)]
    assert [run.wait(timeout=30) for run in runs] == [0, 0, 0, 0]
    first = [(tmp_path / f"log{n}").read_text().partition(" ")[0] for n in range(4)]
    assert sorted(first) == ["ALREADY_APPLIED"] * 3 + ["APPLIED"]
    assert contents(tmp_path / "root") == after_three()


def test_a_conflict_is_told_with_hunk_expected_found_and_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, wanted = folders(tmp_path)
    target = tmp_path / "root/vllm/a.py"
    target.write_bytes(target.read_bytes().replace(b"a5 = 5", b"a5 = '\x1b[31m'"))
    assert cli.main(("apply", root, wanted)) == 5
    out, err = capsys.readouterr()
    assert "CONFLICT           vllm/a.py, hunk 1\n" in out
    assert "expected: line 6: a5 = 5\n" in out
    assert "found:    line 6: a5 = '\\x1b[31m'\n" in out
    assert err.startswith("next: ")


def test_json_is_all_that_stdout_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, wanted = folders(tmp_path)
    assert cli.main(("status", root, wanted, "--json")) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["report"]["outcome"], value["version"], value["exit_code"]) == ("UNKNOWN", "0.31.0", 0)
    assert cli.main(("verify", root, wanted, "--json")) == 5
    assert json.loads(capsys.readouterr().out)["exit_code"] == 5
    assert cli.main(("verify", f"--root={tmp_path}", "--json")) == 2
    assert "no vllm-" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.parametrize(
    ("file", "data"),
    [
        ("series/series.json", b"{"),
        ("series/extra.patch", b""),
        (f"root/{INFO}/METADATA", b"Name: vllm\nVersion: 0.30.0\n\n"),
    ],
)
def test_bad_input_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, data: bytes) -> None:
    root, wanted = folders(tmp_path)
    (tmp_path / file).write_bytes(data)
    before = snapshot(tmp_path)
    assert cli.main(("apply", root, wanted)) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_an_edition_with_other_bytes_is_exit_code_5(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, wanted = folders(tmp_path)
    with (tmp_path / "series/two.patch").open("ab") as file:
        file.write(b"\n")
    assert cli.main(("apply", root, wanted)) == 5
    assert "PATCH_CHANGED    two" in capsys.readouterr().out
    assert contents(tmp_path / "root") == FILES


def test_fresh_and_an_empty_series(tmp_path: Path) -> None:
    root, _ = folders(tmp_path)
    series.write_series(tmp_path / "none", series_of())
    argv = ("apply", root, f"--series={tmp_path / 'none'}", "--fresh")
    assert [cli.main(argv), cli.main(argv)] == [0, 0]


def test_status_after_apply_and_after_an_edit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, wanted = folders(tmp_path)
    assert cli.main(("apply", root, wanted)) == 0
    (tmp_path / "root/vllm/a.py").write_bytes(A1["vllm/a.py"])
    assert cli.main(("status", root)) == 0
    assert "TARGET_MODIFIED" in capsys.readouterr().out
    assert cli.main(("apply", root, wanted)) == 5


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(("--help",))
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "kiln-patch.pyz apply --series /opt/kiln/series --fresh" in text
    assert "exit codes:" in text


def test_fresh_and_a_copy_of_the_ledger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, wanted = folders(tmp_path)
    copy = tmp_path / "opt/ledger.json"
    assert cli.main(("apply", root, wanted, "--fresh", f"--copy-ledger={copy}")) == 0
    assert cli.main(("apply", root, wanted, f"--copy-ledger={copy}")) == 0
    assert copy.read_bytes() == plan.plan(three(), Memory(FILES)).ledger
    assert cli.main(("apply", root, wanted, "--fresh")) == 5
    assert "next: --fresh: this was applied before" in capsys.readouterr().err


def test_what_a_killed_run_left_is_told_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, wanted = folders(tmp_path)
    step = {"path": "vllm/a.py", "pre": "0" * 64, "post": "1" * 64}
    value = {"schema": 1, "steps": [step], "made": [], "gone": [], "times": {}, "epoch": None}
    (tmp_path / "root" / INFO / "kiln-journal.json").write_text(json.dumps(value))
    assert cli.main(("status", root)) == 0
    assert "HALF_APPLIED       vllm/a.py" in capsys.readouterr().out
    assert cli.main(("apply", root, wanted)) == 5
    err = capsys.readouterr().err
    assert "HALF_APPLIED       vllm/a.py" in err
    assert "kiln-journal.json, reinstall the package, then apply" in err
    assert cli.main(("revert", root, "--json")) == 5
    assert json.loads(capsys.readouterr().out)["error"]["files"][0]["path"] == "vllm/a.py"


@pytest.mark.parametrize("case", list(itertools.product(("apply", "revert"), ENDING)), ids=str)
def test_a_signal_takes_back_what_was_begun(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: tuple[str, signal.Signals],
) -> None:
    command, number = case
    root, wanted = folders(tmp_path)
    if command == "revert":
        assert cli.main(("apply", root, wanted)) == 0
    before, handlers = snapshot(tmp_path / "root", times=False), [signal.getsignal(each) for each in ENDING]
    swap = transaction._swap

    def swap_then_signal(*args: Any) -> None:
        swap(*args)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(transaction, "_swap", swap_then_signal)
    assert cli.main((command, root, wanted)) == 128 + number
    assert snapshot(tmp_path / "root", times=False) == before
    assert f"ended by {number.name}; what was begun is taken back" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in ENDING] == handlers


def test_the_module_starts_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kiln-patch", "revert", "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("kiln.patching", run_name="__main__")
    assert caught.value.code == 0
    assert "Deleted files come back with their modes" in capsys.readouterr().out
