from __future__ import annotations

import fcntl
import io
import json
import os
import re
import struct
import termios

import pytest

from kiln import report


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_details_on_a_plain_stream_are_few() -> None:
    stream = io.StringIO()
    with report.Reporter(stream).step("build") as detail:
        for number in range(100):
            detail(str(number))
    assert re.sub(r"\d\.\ds", "N", stream.getvalue()).splitlines() == ["… build", "✓ build  N"]


def test_steps_on_a_plain_stream_are_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_DETAIL_EVERY_S", -1.0)
    stream = io.StringIO()
    reporter = report.Reporter(stream)
    with reporter.step("build") as detail:
        detail("pull\x1b[31m base\r")
        detail("\n")
    reporter.note("done")
    text = stream.getvalue()
    assert re.sub(r"\d\.\ds", "N", text).splitlines() == ["… build", "    pull[31m base", "✓ build  N", "done"]
    assert "\x1b" not in text
    assert "\r" not in text
    assert list(reporter.timings) == ["build"]


def test_a_step_that_fails_is_marked_and_not_timed() -> None:
    stream = io.StringIO()
    reporter = report.Reporter(stream)
    with pytest.raises(ZeroDivisionError), reporter.step("build"):
        raise ZeroDivisionError
    assert re.sub(r"\d\.\ds", "N", stream.getvalue()).splitlines() == ["… build", "✗ build  N"]
    assert reporter.timings == {}


@pytest.fixture(autouse=True)
def xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_on_a_terminal_a_step_is_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Terminal()
    with report.Reporter(stream).step("build") as detail:
        detail("x" * 500)
    lines = stream.getvalue().splitlines()
    assert stream.getvalue().count("\n") == 1
    assert max(len(part) for line in lines for part in line.split("\x1b[K")) == 59
    assert "✓ build" in lines[-1]


def test_the_width_is_that_of_the_terminal_that_is_written_to() -> None:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 37, 0, 0))
    with open(theirs, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor
        with report.Reporter(stream).step("build " + "y" * 500) as detail:
            detail("x" * 500)
        begun = os.read(ours, 4000).decode().split("\r\x1b[K")[1]
    os.close(ours)
    assert len(begun) == 36


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("NO_COLOR", "1")])
def test_a_terminal_that_wants_none_gets_no_control_characters(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    assert report.has_controls(Terminal())
    monkeypatch.setenv(name, value)
    assert not report.has_controls(Terminal())
    stream = Terminal()
    with report.Reporter(stream).step("build") as detail:
        detail("x")
    assert re.sub(r"\d\.\ds", "N", stream.getvalue()) == "… build\n✓ build  N\n"


def test_quiet_says_nothing_even_on_a_terminal() -> None:
    stream = Terminal()
    reporter = report.Reporter(stream, quiet=True)
    with reporter.step("build") as detail:
        detail("x")
    reporter.note("y")
    assert not stream.getvalue()
    assert list(reporter.timings) == ["build"]


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    report.Reporter().note("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_table() -> None:
    assert report.table(("what", "value"), [("a", "1"), ("longer", ""), ("b", "x y")]) == (
        "what    value\na       1\nlonger\nb       x y"
    )
    assert report.table(("what", "value"), []) == "what  value"


def test_as_json_has_one_form() -> None:
    text = report.as_json({"b": "é", "a": [1]})
    assert text == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}'
    assert json.loads(text) == {"a": [1], "b": "é"}
