"""Draws the matrix as text: patches down, releases across, in several blocks where it is too wide for one."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.drift import attention
from kiln.drift.detail import loud
from kiln.drift.records import Verdict
from kiln.drift.words import WORDS, line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.drift.records import Cell, Column, Report

WIDTH = 100
_MOST_NAME = 12
_COLOURS = {"good": "32", "none": "2", "up": "34", "warn": "33", "bad": "31", "unknown": "35"}


def draw(report: Report, *, colours: bool) -> Iterator[str]:
    """Yield the lines of the matrix and its legend; whole words where they fit, and capitals for what is new."""
    matrix = _Matrix(report=report, short=False, colours=colours)
    if not matrix.fits(report.columns):
        matrix = _Matrix(report=report, short=True, colours=colours)
    rest = report.columns
    while rest:
        taken = next((n for n in range(len(rest), 1, -1) if matrix.fits(rest[:n])), 1)
        yield from matrix.block(rest[:taken])
        yield ""
        rest = rest[taken:]
    yield from matrix.legend()


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    report: Report
    short: bool
    colours: bool

    @functools.cached_property
    def cells(self) -> dict[tuple[str, str], Cell]:
        return {(cell.patch, cell.column): cell for cell in self.report.cells}

    @functools.cached_property
    def first(self) -> int:
        """Return the width of the names of the patches."""
        return max(len("patch"), *(len(line(patch)) for patch, _ in self.report.titles), 0)

    def fits(self, columns: Sequence[Column]) -> bool:
        return self.first + sum(1 + self.width(column) for column in columns) <= WIDTH

    def width(self, column: Column) -> int:
        words = (self.word(self.cells.get((patch, column.name))) for patch, _ in self.report.titles)
        return max(map(len, (*words, *self.heads(column))))

    def block(self, columns: Sequence[Column]) -> Iterator[str]:
        heads = [self.heads(column) for column in columns]
        widths = [self.width(column) for column in columns]
        for n, label in enumerate(("patch", "", "")):
            shown = [head[n].ljust(width) for head, width in zip(heads, widths, strict=True)]
            if "".join(shown).strip():
                yield " ".join([label.ljust(self.first), *shown]).rstrip()
        for patch, _ in self.report.titles:
            row = [self.cells.get((patch, column.name)) for column in columns]
            shown = [self.painted(cell, width) for cell, width in zip(row, widths, strict=True)]
            yield " ".join([line(patch).ljust(self.first), *shown]).rstrip()

    def word(self, cell: Cell | None) -> str:
        if cell is None:
            return ""
        if self.short and loud(cell) and cell.verdict in {Verdict.NOT_NEEDED, Verdict.UNKNOWN}:
            return "N/A" if cell.verdict is Verdict.NOT_NEEDED else "????"
        word = WORDS[cell.verdict].short if self.short else WORDS[cell.verdict].long
        return word.upper() if loud(cell) else word

    def painted(self, cell: Cell | None, width: int) -> str:
        shown = self.word(cell).ljust(width)
        if cell is None or not self.colours:
            return shown
        bold = "1;" if loud(cell) else ""
        return f"\x1b[{bold}{_COLOURS[WORDS[cell.verdict].tone]}m{shown}\x1b[0m"

    def heads(self, column: Column) -> tuple[str, str, str]:
        """Return the lines over a column: its name, in two where space is short, or a number for a long one."""
        name, last = line(column.name), ""
        if self.short and column.kind == "release":
            name, dot, last = name.rpartition(".")
            last = f"{dot}{last}"
        if max(len(name), len(last)) > (_MOST_NAME if not self.short else 5):
            name, last = f"[{self.report.columns.index(column) + 1}]", ""
        mark = "NEW" if column.kind == "release" and not column.in_catalog else ""
        return name, last, "????" if column.problem else mark

    def legend(self) -> Iterator[str]:
        found = attention.counts(self.report)
        for verdict in Verdict:
            if found[verdict]:
                word = WORDS[verdict]
                shown = word.short.ljust(5) if self.short else word.long.ljust(15)
                yield f"{shown} {verdict.value}: {word.meaning}"
        if any(map(loud, self.report.cells)):
            yield "In capitals: the catalog does not say so yet."
        for n, column in enumerate(self.report.columns, start=1):
            if self.heads(column)[0] == f"[{n}]":
                yield f"[{n}] is {column.kind} {line(column.name)}"
