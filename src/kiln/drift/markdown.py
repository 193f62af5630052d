"""Writes a drift report as Markdown, for the summary of a CI step."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kiln.drift import attention
from kiln.drift.records import Verdict
from kiln.drift.words import WORDS, line, many, visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.drift.attention import Item
    from kiln.drift.records import Cell, Column, Report

_PLAIN = re.compile(r"[^\w .,;:/+=%?-]|_|(?<=:)/(?=/)")


def render(report: Report) -> str:
    """Return the headline, the matrix, then what needs attention with the next commands."""
    blocks = (_head(report), _matrix(report), _attention(report), _recipes(report))
    return "\n\n".join("\n".join(block) for block in map(tuple, blocks) if block) + "\n"


def text(value: str) -> str:
    """Return untrusted text as one line that Markdown shows as it is: no link, mention, markup or table border."""
    return _PLAIN.sub(lambda found: f"&#{ord(found[0])};", line(value))


def span(value: str) -> str:
    """Return untrusted text as code within a line."""
    whole = line(value)
    ticks = "`" * (max(map(len, re.findall("`+", whole)), default=0) + 1)
    pad = " " if whole.startswith("`") or whole.endswith("`") or not whole else ""
    return f"{ticks}{pad}{whole}{pad}{ticks}"


def fence(value: str, language: str = "text") -> str:
    """Return untrusted text as a block of code that it cannot end."""
    whole = visible(value)
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", whole)), 3)
    return f"{ticks}{language}\n{whole}\n{ticks}"


def _head(report: Report) -> Iterator[str]:
    headline = attention.headline(report)
    yield f"## Drift: {headline}"
    yield ""
    found = attention.counts(report)
    said = ", ".join(f"{found[verdict]} {WORDS[verdict].long}" for verdict in Verdict if found[verdict])
    patches, columns = len(report.titles), len(report.columns)
    yield f"{many(patches, 'patch', 'patches')} on {many(columns, 'release')}: {said or 'nothing'}."
    for column in attention.new_releases(report):
        yield f"\n**New release {text(column.name)}**: add it to images/releases.yaml."


def _matrix(report: Report) -> Iterator[str]:
    names = [text(column.name) + _mark(column) for column in report.columns]
    yield _row("patch", names)
    yield "|".join(["", "---", *[":-:"] * len(names), ""])
    cells = {(cell.patch, cell.column): cell for cell in report.cells}
    for patch, _ in report.titles:
        yield _row(text(patch), [_cell(cells.get((patch, column.name))) for column in report.columns])
    yield ""
    yield f"Bold: the catalog does not say so yet. {'; '.join(_legend(report))}."


def _legend(report: Report) -> Iterator[str]:
    found = attention.counts(report)
    for verdict in Verdict:
        if found[verdict]:
            word = WORDS[verdict]
            yield f"{word.sign} {word.long}: {word.meaning}"


def _row(first: str, others: Sequence[str]) -> str:
    return f"| {' | '.join([first, *others])} |"


def _mark(column: Column) -> str:
    if column.problem:
        return "<br>not read"
    return "<br>new" if column.kind == "release" and not column.in_catalog else ""


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    word = WORDS[cell.verdict]
    plain = word.sign if word.tone in {"good", "none"} and cell.known else f"{word.sign} {word.long}"
    return plain if cell.known else f"**{plain}{' (forced)' if cell.forced else ''}**"


def _attention(report: Report) -> Iterator[str]:
    asked = attention.items(report)
    if asked:
        yield "### What needs attention"
    for item in asked:
        yield ""
        yield from _item(item)


def _item(item: Item) -> Iterator[str]:
    forced = " (set by hand, to test alerts)" if item.forced else ""
    yield f"- **{text(item.subject)}**: {text(item.word)}{forced}<br>{text('; '.join(item.says.splitlines()))}"
    if item.next:
        yield f"  <br>next: {span(item.next)}"


def _recipes(report: Report) -> Iterator[str]:
    if report.recipes:
        yield "### Recipes"
        yield ""
        yield _row("name", ["kind", "releases", "problem", "nearest name", "what it says"])
        yield "|---|---|---|---|---|---|"
    for fact, columns in attention.runs(report):
        problem = fact.problem if fact.known else f"**{fact.problem}**"
        over = " to ".join(dict.fromkeys((columns[0], columns[-1])))
        shown = (fact.kind, text(over), problem, text(fact.near), text(fact.says))
        yield _row(text(fact.name), shown)
