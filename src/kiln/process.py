"""The only module that imports subprocess: show a command, ask it, or does it succeed."""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_TAIL_LINES = 40
_POLITE_S = 10
# colours and the like, whole; then any other character that a terminal would obey, but for tabs and ends of lines
_CONTROLS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


@dataclass(frozen=True, kw_only=True)
class Result:
    code: int
    stdout: str
    stderr: str


class Together:
    """The programs that several threads run, so that an interrupt of the first thread ends them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[str]] = set()
        self._ended = False

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Count what this thread runs in the block among them."""
        before = _TOGETHER.set(self)
        try:
            yield
        finally:
            _TOGETHER.reset(before)

    @contextlib.contextmanager
    def holding(self, child: subprocess.Popen[str]) -> Iterator[None]:
        """Count a child that runs; one that comes too late is told to end by an exception."""
        with self._lock:
            if self._ended:
                raise KeyboardInterrupt
            self._children.add(child)
        try:
            yield
        finally:
            with self._lock:
                self._children.discard(child)

    def end(self) -> None:
        """End them all in polite steps, and let no other one begin."""
        with self._lock:
            self._ended = True
            children = tuple(self._children)
        for child in children:
            child.send_signal(signal.SIGINT)
        for child in children:
            stop(child)


_TOGETHER: contextvars.ContextVar[Together | None] = contextvars.ContextVar("together", default=None)


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
    stdin: str | None = None,
) -> Result:
    """Run `argv` with its output held back. Raises Missing (no such program) or CommandFailed (time-out)."""
    try:
        child = subprocess.Popen(
            list(argv),
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise _not_started(argv, error) from error
    with child:
        try:
            with _held(child):
                stdout, stderr = child.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            child.kill()
            message = f"{shlex.join(argv)}: no answer within {timeout_s:g} s"
            raise errors.CommandFailed(message) from error
        except BaseException:
            stop(child)
            raise
    return Result(code=child.returncode, stdout=stdout, stderr=stderr)


def ask(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = None,
) -> str:
    """Return the stdout of `argv`; anything but exit code 0 raises CommandFailed with both streams."""
    result = run(argv, env=env, cwd=cwd, timeout_s=timeout_s)
    if result.code:
        raise failed(argv, result.code, f"{result.stderr.rstrip()}\n{result.stdout}".lstrip("\n"))
    return result.stdout


def succeeds(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> bool:
    """Say whether `argv` exists and ends with exit code 0."""
    try:
        return run(argv, env=env).code == 0
    except errors.Missing:
        return False


def show(
    argv: Sequence[str],
    *,
    line: Callable[[str], None],
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run `argv`, hand every line of output to `line` as it comes, and return them all.

    Raises CommandFailed with the last lines when the exit code is not 0. An interrupt ends the child first.
    """
    lines: list[str] = []
    try:
        child = subprocess.Popen(
            list(argv),
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise _not_started(argv, error) from error
    with child:
        assert child.stdout is not None
        try:
            with _held(child):
                for text in child.stdout:
                    lines.append(_plain(text.rstrip("\n")))
                    line(lines[-1])
        except BaseException:
            stop(child)
            raise
    if child.returncode:
        raise failed(argv, child.returncode, "\n".join(lines))
    return "\n".join(lines)


def attach(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
    """Run `argv` with its output on this very terminal until it ends; an interrupt ends the child first.

    Raises CommandFailed when the exit code is not 0; what it said was shown.
    """
    try:
        # a group of its own: Ctrl-C reaches it once, through `stop`
        child = subprocess.Popen(list(argv), env=env, stdin=subprocess.DEVNULL, text=True, process_group=0)
    except OSError as error:
        raise _not_started(argv, error) from error
    with child:
        try:
            child.wait()
        except BaseException:
            stop(child)
            raise
    if child.returncode:
        raise failed(argv, child.returncode, "")


def spawn(
    argv: Sequence[str],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a program of its own session that outlives this one, its output appended to `log`."""
    try:
        with (log or Path(os.devnull)).open("ab") as out:
            return subprocess.Popen(
                list(argv),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
    except OSError as error:
        raise _not_started(argv, error) from error


def stop(child: subprocess.Popen[str]) -> None:
    """End a child in polite steps: interrupt, so that it cleans up, then terminate, then kill."""
    for number in (signal.SIGINT, signal.SIGTERM):
        child.send_signal(number)
        try:
            child.wait(timeout=_POLITE_S)
        except subprocess.TimeoutExpired:
            continue
        return
    child.kill()
    child.wait()


def python(*args: str) -> tuple[str, ...]:
    """Return the argv that runs this very interpreter with `args`."""
    return (sys.executable, *args)


def failed(argv: Sequence[str], code: int, output: str) -> errors.CommandFailed:
    """Return the error for `argv` that ended with `code`: the command and the end of what it printed."""
    tail = "\n".join(_plain(output).rstrip().splitlines()[-_TAIL_LINES:])
    return errors.CommandFailed(f"$ {shlex.join(argv)}\nexit code {code}\n{tail}".rstrip())


def _plain(text: str) -> str:
    """Return text without what a terminal would obey."""
    return _CONTROLS.sub("", text)


def _held(child: subprocess.Popen[str]) -> contextlib.AbstractContextManager[None]:
    together = _TOGETHER.get()
    return together.holding(child) if together else contextlib.nullcontext()


def _not_started(argv: Sequence[str], error: OSError) -> errors.Missing:
    if isinstance(error, FileNotFoundError) and error.filename == argv[0]:
        return errors.Missing(f"{argv[0]}: no such program on this machine")
    return errors.Missing(f"{argv[0]}: cannot be started: {error.filename}: {error.strerror}")
