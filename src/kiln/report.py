"""Shows a person what happens: steps and progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_LINE_WIDTH = 100  # where there is no terminal
_DETAIL_EVERY_S = 5.0


class Reporter:
    """Prints one line a step with its time.

    On a terminal the running step shows its latest detail; elsewhere, and on one that shall get no control characters,
    a detail is a line, one every few seconds.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self._live = not quiet and has_controls(self._stream)
        self._last_detail = 0.0
        self.timings: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a named step; the yielded function takes one line of detail at a time."""
        start = self._last_detail = time.monotonic()
        self._begin(name)
        try:
            yield lambda detail: self._detail(name, detail, start)
        except BaseException:
            self._end("✗", name, time.monotonic() - start)
            raise
        self.timings[name] = round(time.monotonic() - start, 2)
        self._end("✓", name, self.timings[name])

    def note(self, text: str) -> None:
        """Print one line as it is."""
        if not self._quiet:
            print(text, file=self._stream, flush=True)

    def _begin(self, name: str) -> None:
        if self._live:
            self._over(f"… {name}")
        else:
            self.note(f"… {name}")

    def _detail(self, name: str, detail: str, start: float) -> None:
        detail = "".join(c for c in detail if c.isprintable()).strip()
        if self._live and detail:
            self._over(f"… {name}  {time.monotonic() - start:.0f}s  {detail}")
        elif detail and time.monotonic() - self._last_detail > _DETAIL_EVERY_S:
            self._last_detail = time.monotonic()
            self.note(f"    {detail}"[:_LINE_WIDTH])

    def _over(self, text: str) -> None:
        """Write over the running line; one that is wrapped could not be written over."""
        print(f"\r\x1b[K{text[: _width(self._stream) - 1]}", end="", file=self._stream, flush=True)

    def _end(self, mark: str, name: str, seconds: float) -> None:
        clear = "\r\x1b[K" if self._live else ""
        self.note(f"{clear}{mark} {name}  {seconds:.1f}s")


class Among(Reporter):
    """The reporter of one of several jobs at a time: plain whole lines, each with the job's name before it."""

    def __init__(self, name: str, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        super().__init__(stream, quiet=quiet)
        self._name, self._live = name, False

    def note(self, text: str) -> None:
        if not self._quiet:
            # in one write, or the lines of two jobs run into each other
            self._stream.write(f"{self._name} | {text}\n")
            self._stream.flush()


def has_controls(stream: TextIO) -> bool:
    """Say whether a stream is a terminal that takes colours and lines written over: https://no-color.org."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def _width(stream: TextIO) -> int:
    """Return the columns of the stream's own terminal; stdout may be a file."""
    with contextlib.suppress(OSError, ValueError):
        if columns := os.get_terminal_size(stream.fileno()).columns:
            return columns
    return shutil.get_terminal_size().columns


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return left-aligned columns as plain text, one line a row; the last column is not padded."""
    cells = [tuple(headers), *(tuple(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headers) - 1)]
    lines = ("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def as_json(value: Any) -> str:
    """Return the one JSON form used everywhere: two spaces, sorted keys, no trailing newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)
