"""The bash script that makes .venv: with a stub for Python, so that no package index is asked."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kiln import process

INV = Path(__file__).resolve().parents[2] / "inv"
TOOLS = ("bash", "cat", "chmod", "cmp", "cp", "dirname", "env", "flock", "grep", "mkdir", "readlink", "rm", "sleep")
MAKING = "inv: making .venv from requirements.lock (once, under a minute)\n"
# python3 of the machine and, copied, of the environments it makes; every start is a line of $STUB_LOG
STUB = """\
#!/usr/bin/env bash
set -euo pipefail
echo "$*" >>"$STUB_LOG"
case "$*" in
  "-m venv "*)
    mkdir -p "$3/bin" "$3/lib/python3.11/site-packages"
    cp "$0" "$3/bin/python" ;;
  "-m pip "*)
    if [[ ${STUB_PIP:-} == hangs ]]; then echo started >"$STUB_LOG.pip"; exec sleep 60; fi
    if [[ ${STUB_PIP:-} == fails ]]; then
      echo "WARNING: again" >&2
      echo "ERROR: No matching distribution found" >&2
      exit 1
    fi ;;
  *sysconfig*) echo "$(dirname "$(dirname "$0")")/lib/python3.11/site-packages" ;;
  *"-m kiln"*) echo "$0 root=$KILN_ROOT program=$KILN_PROGRAM path=$PYTHONPATH" ;;
esac
"""


class Clone:
    """A checkout as far as `inv` knows one."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder, self._programs = folder, programs
        self._log = folder / "log"
        folder.mkdir()
        shutil.copy(INV, folder / "inv")
        (folder / "requirements.lock").write_text("lock\n", encoding="utf-8")

    @property
    def python(self) -> Path:
        return self.folder / ".venv/bin/python"

    def env(self, **settings: str) -> dict[str, str]:
        return {"PATH": str(self._programs), "STUB_LOG": str(self._log)} | settings

    def run(self, *argv: str, cwd: Path | None = None, **settings: str) -> process.Result:
        self._log.unlink(missing_ok=True)
        return process.run((str(self.folder / "inv"), *argv), cwd=cwd, env=self.env(**settings))

    def says(self, path: str = "") -> str:
        source = f"{self.folder}/src{path}"
        return f"{self.python} root={self.folder} program=./inv path={source}\n"

    @property
    def started(self) -> list[str]:
        """What Python was started for, in this run."""
        return [" ".join(line.split()[:3]) for line in self._log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a folder for PATH with what `inv` needs and no uv."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    (folder / "python3").write_text(STUB, encoding="utf-8")
    (folder / "python3").chmod(0o755)
    return folder


@pytest.fixture
def clone(tmp_path: Path, programs: Path) -> Clone:
    return Clone(tmp_path / "a clone", programs)


@pytest.fixture
def made(clone: Clone) -> Clone:
    assert clone.run("--list") == process.Result(code=0, stdout=clone.says(), stderr=MAKING)
    return clone


def test_it_is_made_once(made: Clone) -> None:
    assert made.run("plan", "--list") == process.Result(code=0, stdout=made.says(), stderr="")
    assert made.started == ["-P -m kiln"], "a warm run starts Python once"


def test_the_folder_and_code_are_those_of_the_script(made: Clone, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere"
    link.symlink_to(made.folder / "inv")
    settings = {"KILN_ROOT": "/other", "KILN_PROGRAM": "other", "PYTHONPATH": "/inherited"}
    found = process.run((str(link),), cwd=tmp_path, env=made.env(**settings))
    assert found == process.Result(code=0, stdout=made.says(":/inherited"), stderr="")


@pytest.mark.parametrize("lost", [".venv/bin", ".venv/lib", ".venv/requirements.lock", ".venv/bin/python", ".venv"])
def test_a_damaged_one_is_made_again(made: Clone, lost: str) -> None:
    path = made.folder / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert made.run() == process.Result(code=0, stdout=made.says(), stderr=MAKING)
    assert made.run() == process.Result(code=0, stdout=made.says(), stderr="")


def test_another_lock_makes_it_again(made: Clone) -> None:
    (made.folder / "requirements.lock").write_text("another lock\n", encoding="utf-8")
    assert made.run().stderr == MAKING
    assert not made.run().stderr


def test_a_copied_clone_makes_its_own(made: Clone, tmp_path: Path, programs: Path) -> None:
    copy = Clone(tmp_path / "copy", programs)
    shutil.copytree(made.folder / ".venv", copy.folder / ".venv", symlinks=True)
    assert copy.run() == process.Result(code=0, stdout=copy.says(), stderr=MAKING)
    pth = copy.folder / ".venv/lib/python3.11/site-packages/kiln.pth"
    assert pth.read_text(encoding="utf-8") == f"{copy.folder}/src\n"
    assert not copy.run().stderr
    assert not made.run().stderr


def test_pip_that_fails_is_exit_code_3_and_the_next_run_starts_afresh(clone: Clone) -> None:
    found = clone.run(STUB_PIP="fails")
    assert (found.code, found.stdout) == (3, "")
    assert found.stderr.splitlines() == [
        MAKING.rstrip(),
        "ERROR: No matching distribution found",
        "inv: pip could not install requirements.lock; it needs a package index that it can reach: pip config list",
    ]
    assert clone.run() == process.Result(code=0, stdout=clone.says(), stderr=MAKING)


def test_without_python_it_is_exit_code_3(clone: Clone, programs: Path) -> None:
    (programs / "python3").unlink()
    why = "inv: python3 is missing; install it: apt-get install python3 python3-venv\n"
    assert clone.run() == process.Result(code=3, stdout="", stderr=why)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_it_is_made_ends_pip_too(clone: Clone, number: signal.Signals, code: int, word: str) -> None:
    argv = [str(clone.folder / "inv")]
    with subprocess.Popen(argv, env=clone.env(STUB_PIP="hangs"), stderr=subprocess.PIPE, text=True) as running:
        begun = time.monotonic()
        while not (clone.folder / "log.pip").exists():
            assert time.monotonic() - begun < 20
            time.sleep(0.01)
        os.kill(running.pid, number)
        _, err = running.communicate(timeout=20)  # waits for pip as well, which holds this pipe
    assert (running.returncode, err) == (code, f"{MAKING}inv: {word}; .venv is made again next time\n")
    assert clone.run() == process.Result(code=0, stdout=clone.says(), stderr=MAKING)
