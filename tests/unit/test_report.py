from __future__ import annotations

import io
import json
import re

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


def test_on_a_terminal_a_step_is_one_line_that_is_written_over() -> None:
    stream = Terminal()
    with report.Reporter(stream).step("build") as detail:
        detail("x" * 500)
    lines = stream.getvalue().splitlines()
    assert stream.getvalue().count("\n") == 1
    assert max(len(part) for line in lines for part in line.split("\x1b[K")) <= 100
    assert "✓ build" in lines[-1]


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
