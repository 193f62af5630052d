from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import pytest

from kiln import errors, process

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "import sys; print('to stdout'); print('to stderr', file=sys.stderr); sys.exit(int(sys.argv[1]))"


def program(code: int) -> tuple[str, ...]:
    return process.python("-c", PROGRAM, str(code))


def shell(text: str) -> tuple[str, ...]:
    return ("sh", "-c", text)


def test_run_returns_code_and_both_streams() -> None:
    expected = process.Result(code=7, stdout="to stdout\n", stderr="to stderr\n")
    assert process.run(program(7)) == expected


def test_run_gives_stdin_environment_and_folder(tmp_path: Path) -> None:
    result = process.run(shell('cat; printf %s "$WORD"; pwd'), stdin="in ", env={"WORD": "env "}, cwd=tmp_path)
    assert result == process.Result(code=0, stdout=f"in env {tmp_path}\n", stderr="")


def test_run_without_stdin_reads_nothing() -> None:
    assert process.run(("cat",)) == process.Result(code=0, stdout="", stderr="")


def test_bytes_that_are_not_utf8_are_replaced() -> None:
    assert process.ask(shell(r"printf '\377'")) == "\ufffd"


def test_run_gives_up_after_its_time() -> None:
    start = time.monotonic()
    with pytest.raises(errors.CommandFailed, match=r"^sleep 30: no answer within 0.2 s$"):
        process.run(("sleep", "30"), timeout_s=0.2)
    assert time.monotonic() - start < 5


def test_ask_returns_stdout() -> None:
    assert process.ask(program(0)) == "to stdout\n"


def test_ask_that_fails_names_command_code_and_both_streams() -> None:
    with pytest.raises(errors.CommandFailed) as caught:
        process.ask(shell("printf err >&2; printf out; exit 3"))
    assert caught.value.message == "$ sh -c 'printf err >&2; printf out; exit 3'\nexit code 3\nerr\nout"
    assert caught.value.exit_code == 4


def test_no_control_sequence_reaches_an_error_or_a_line() -> None:
    lines: list[str] = []
    coloured = shell(r"printf '\033[31mred\033[0m\t\033]0;title\007x\a\b\n\033[2K end\n'; exit 1")
    for start in (process.ask, lambda argv: process.show(argv, line=lines.append)):
        with pytest.raises(errors.CommandFailed) as caught:
            start(coloured)
        assert caught.value.message.endswith("\nexit code 1\nred\tx\n end")
    assert lines == ["red\tx", " end"]


def test_a_long_failure_shows_its_last_lines() -> None:
    with pytest.raises(errors.CommandFailed) as caught:
        process.ask(shell("seq 100; exit 1"))
    assert caught.value.message.splitlines() == ["$ sh -c 'seq 100; exit 1'", "exit code 1", *map(str, range(61, 101))]


@pytest.mark.parametrize("how", ["run", "ask", "show", "spawn"])
def test_a_missing_program_is_named(how: str) -> None:
    with pytest.raises(errors.Missing, match=r"^kiln-no-such: no such program on this machine$") as caught:
        started(how, ("kiln-no-such",))
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("how", ["run", "ask", "show", "spawn"])
def test_a_file_that_cannot_run_is_named(how: str, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program", encoding="utf-8")
    with pytest.raises(errors.Missing) as caught:
        started(how, (str(plain),))
    assert caught.value.message == f"{plain}: cannot be started: {plain}: Permission denied"


def test_a_missing_working_folder_is_not_blamed_on_the_program(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(errors.Missing) as caught:
        process.run(("true",), cwd=gone)
    assert caught.value.message == f"true: cannot be started: {gone}: No such file or directory"


def started(how: str, argv: tuple[str, ...]) -> None:
    if how == "show":
        process.show(argv, line=print)
    else:
        getattr(process, how)(argv)


@pytest.mark.parametrize(("argv", "expected"), [(("true",), True), (("false",), False), (("kiln-no-such",), False)])
def test_succeeds(argv: tuple[str, ...], *, expected: bool) -> None:
    assert process.succeeds(argv) is expected


def test_show_hands_over_each_line_as_it_comes(tmp_path: Path) -> None:
    """The child waits for a file that is made only when its first line has been seen."""
    seen = tmp_path / "seen"
    lines: list[str] = []

    def line(text: str) -> None:
        lines.append(text)
        seen.touch()

    waiting = f"echo one; until [ -e {seen} ]; do sleep 0.01; done; echo two >&2; echo three"
    assert process.show(shell(waiting), line=line) == "one\ntwo\nthree"
    assert lines == ["one", "two", "three"]


def test_show_that_fails_names_command_code_and_output() -> None:
    lines: list[str] = []
    with pytest.raises(errors.CommandFailed) as caught:
        process.show(shell("echo one; echo two >&2; exit 9"), line=lines.append)
    assert caught.value.message == "$ sh -c 'echo one; echo two >&2; exit 9'\nexit code 9\none\ntwo"
    assert lines == ["one", "two"]


def test_an_interrupt_in_the_middle_of_a_shown_command_ends_it() -> None:
    pids: list[int] = []

    def line(text: str) -> None:
        pids.append(int(text))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.show(shell("echo $$; exec sleep 60"), line=line)
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_spawn_appends_to_its_log_in_a_session_of_its_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n", encoding="utf-8")
    with process.spawn(process.python("-c", "import os; print(os.getsid(0) == os.getpid())"), log=log) as child:
        assert child.wait(10) == 0
    assert log.read_text(encoding="utf-8") == "before\nTrue\n"


def test_spawn_without_a_log_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with process.spawn(program(5)) as child:
        assert child.wait(10) == 5
    assert capfd.readouterr() == ("", "")


def test_spawn_that_cannot_write_its_log_names_the_log(tmp_path: Path) -> None:
    log = tmp_path / "gone/log"
    with pytest.raises(errors.Missing) as caught:
        process.spawn(("true",), log=log)
    assert caught.value.message == f"true: cannot be started: {log}: No such file or directory"


def test_python_is_this_interpreter() -> None:
    assert process.python("-m", "kiln") == (sys.executable, "-m", "kiln")
