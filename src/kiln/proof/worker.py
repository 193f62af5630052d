"""Runs many short Python programs that all import torch: it is imported once, and each program runs in a fork.

Runs on the interpreter of the kernels environment, which has no Kiln. Usage: python worker.py JOBS.json

JOBS.json is {"parallel": N, "seconds": the most a program may take, "jobs": [{"name", "argv", "path", "env", "cwd"}]};
argv[0] is a module, or a script that ends in .py. Prints one JSON line a program: {"name", "code", "output",
"seconds"}; a code below 0 is a signal.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

SHARED = ("torch", "torch._dynamo", "torch._inductor.standalone_compile", "triton", "transformers", "pytest")


def main(file: str) -> None:
    work = json.loads(Path(file).read_text(encoding="utf-8"))
    for name in SHARED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    waiting = list(reversed(work["jobs"]))
    running: dict[int, tuple[dict[str, Any], Path, float]] = {}
    with tempfile.TemporaryDirectory() as scratch, _none_left(running):
        while waiting or running:
            while waiting and len(running) < work["parallel"]:
                job = waiting.pop()
                log = Path(scratch) / f"{len(waiting)}.log"
                running[_fork(job, log, work["seconds"])] = job, log, time.monotonic()
            pid, status = os.wait()
            job, log, start = running.pop(pid)
            _end_group(pid)
            print(
                json.dumps(
                    {
                        "name": job["name"],
                        "code": os.waitstatus_to_exitcode(status),
                        "output": log.read_text(encoding="utf-8", errors="replace"),
                        "seconds": round(time.monotonic() - start, 2),
                    }
                ),
                flush=True,
            )


@contextlib.contextmanager
def _none_left(running: Collection[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for pid in running:
            _end_group(pid)


def _end_group(pid: int) -> None:
    """End what a program has started and not waited for."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _fork(job: dict[str, Any], log: Path, seconds: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        signal.alarm(seconds)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(job["env"])
        os.chdir(job["cwd"])
        sys.path[:0] = job["path"]
        code = _run(job["argv"])
    except BaseException:  # noqa: BLE001 - a fork must never go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(argv: list[str]) -> int:
    """Run a module or a script as `python` would and return its exit code."""
    sys.argv = list(argv)
    try:
        if argv[0].endswith(".py"):
            runpy.run_path(argv[0], run_name="__main__")
        else:
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if ended.code is None:
            return 0
        if not isinstance(ended.code, int):
            print(ended.code, file=sys.stderr)
            return 1
        return int(ended.code)
    return 0


if __name__ == "__main__":
    main(sys.argv[1])
