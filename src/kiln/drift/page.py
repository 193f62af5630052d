"""Writes a drift report as one HTML file that needs nothing else: no network, no clock, and no script to be read."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING

from kiln.drift import attention
from kiln.drift.detail import FORCED, badge, details, following, loud
from kiln.drift.markup import Html, box, fragment, join, tag, text
from kiln.drift.records import Verdict
from kiln.drift.words import WORDS, many

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.drift.attention import Item
    from kiln.drift.records import Cell, Column, RecipeFact, Report


def render(report: Report) -> str:
    """Return the page; the same report gives the same bytes, and text of the data is never more than text."""
    template = resources.files("kiln.drift").joinpath("page.html").read_text(encoding="utf-8")
    parts = {
        "csp": text(_policy(template)),
        "title": text(f"Kiln drift: {attention.headline(report)}"),
        "main": "\n".join(_main(report)),
        "footer": _footer(report),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _policy(template: str) -> str:
    """Return a policy by which only the template's own script and style count."""
    hashes = []
    for name in ("script", "style"):
        inline = template.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        hashes.append(f"{name}-src 'sha256-{digest}'")
    only = ("base-uri 'none'", "form-action 'none'", "require-trusted-types-for 'script'")
    return "; ".join(("default-src 'none'", *hashes, *only))


def _main(report: Report) -> Iterator[Html]:
    yield _hero(report)
    yield _asks(report)
    yield _matrix(report)
    yield _recipes(report)
    yield details(report)
    yield _sources(report)


def _hero(report: Report) -> Html:
    headline = attention.headline(report)
    names = [column.name for column in report.columns]
    between = f", {names[0]} to {names[-1]}" if len(names) > 1 else "".join(f", {name}" for name in names)
    patches = many(len(report.titles), "patch", "patches")
    fresh = (
        tag("p", f"{column.name} is a new release: images/releases.yaml does not have it yet.")
        for column in attention.new_releases(report)
    )
    return tag(
        "section",
        tag("h1", headline[:1].upper() + headline[1:]),
        tag("p", f"{patches} on {many(len(names), 'release')} of vLLM{between}."),
        *fresh,
        tag("ul", *_tiles(report), class_="tiles"),
        class_="hero",
    )


def _tiles(report: Report) -> Iterator[Html]:
    found = attention.counts(report)
    if asked := len(attention.items(report)):
        yield tag("li", tag("b", str(asked)), " to look at", class_="loud")
    for verdict in Verdict:
        if found[verdict]:
            sign = tag("i", WORDS[verdict].sign, class_=WORDS[verdict].tone, aria_hidden="true")
            yield tag("li", sign, tag("b", str(found[verdict])), f" {WORDS[verdict].long}")


def _asks(report: Report) -> Html:
    asked = [tag("li", *_ask(item), class_="ask") for item in attention.items(report)]
    if not asked:
        return Html()
    return tag("section", tag("h2", "What needs attention"), tag("ul", *asked, class_="asks"))


def _ask(item: Item) -> Iterator[Html]:
    if item.cell:
        yield badge(item.cell.verdict, new=True)
        yield tag("h3", tag("a", item.subject, href=fragment(item.key)))
    else:
        tone = "unknown" if item.key.startswith("@") else "warn"
        yield tag("span", item.word, class_=f"v new {tone}")
        yield tag("h3", item.subject)
    if item.forced:
        yield FORCED
    yield tag("p", item.says, class_="says")
    yield following(item.next)


def _matrix(report: Report) -> Html:
    """Return the table; its roles are said, because a phone shows it as a list of patches."""
    corner = tag("th", "Patch", role="columnheader", scope="col")
    head = tag("tr", corner, *map(_heading, report.columns), role="row")
    table = tag(
        "table",
        tag("thead", head, role="rowgroup"),
        tag("tbody", *_rows(report), role="rowgroup"),
        class_="matrix",
        role="table",
    )
    only = tag("label", box("only"), " Only what needs attention")
    return tag(
        "section",
        tag("div", tag("h2", "Every patch on every release"), only, class_="tools"),
        tag("div", table, tag("p", "No patch needs attention.", class_="nothing"), class_="box"),
        tag("ul", *_legend(report), class_="legend"),
    )


def _heading(column: Column) -> Html:
    mark = Html()
    if column.problem:
        mark = tag("small", "not read", class_="new unknown")
    elif column.kind != "release":
        mark = tag("small", column.kind, class_="up")
    elif not column.in_catalog:
        mark = tag("small", "new", class_="new warn")
    return tag("th", mark, tag("span", column.name, class_="name"), role="columnheader", scope="col")


def _rows(report: Report) -> Iterator[Html]:
    cells = {(cell.patch, cell.column): cell for cell in report.cells}
    for patch, title in report.titles:
        row = [cells.get((patch, column.name)) for column in report.columns]
        calm = not any(cell and loud(cell) for cell in row)
        first = tag("th", tag("b", patch), tag("span", title), role="rowheader", scope="row")
        others = (tag("td", _cell(cell) if cell else "", role="cell") for cell in row)
        yield tag("tr", first, *others, role="row", class_="calm" if calm else "")


def _cell(cell: Cell) -> Html:
    word = WORDS[cell.verdict]
    return tag(
        "a",
        tag("span", cell.column, class_="r"),
        tag("span", word.sign, class_="s"),
        tag("span", word.long, class_="w"),
        class_=f"c {word.tone}{' new' if loud(cell) else ''}",
        href=fragment(cell.key),
        aria_label=f"{cell.patch} on {cell.column}: {word.long}{', needs attention' if loud(cell) else ''}",
    )


def _legend(report: Report) -> Iterator[Html]:
    found = attention.counts(report)
    for verdict in Verdict:
        if found[verdict]:
            yield tag("li", badge(verdict), f" {WORDS[verdict].meaning}")
    yield tag("li", tag("span", "full colour", class_="v new bad"), " the catalog does not say so yet")


def _recipes(report: Report) -> Html:
    if not report.recipes:
        return Html()
    says = "Flags, environment variables and parsers that a release does not take as the recipe means them."
    heads = ("Name", "Releases", "Problem", "What it says", "Set by")
    rows = tuple(_recipe(fact, columns) for fact, columns in attention.runs(report))
    table = _plain_table(heads, rows)
    return tag("section", tag("h2", "Recipes"), tag("p", says, class_="lead"), tag("div", table, class_="box"))


def _recipe(fact: RecipeFact, columns: list[str]) -> Html:
    new = not fact.known or fact.problem == "unreadable"
    tone = "unknown" if fact.problem == "unreadable" else "warn" if new else "none"
    near = tag("small", "nearest name: ", tag("code", fact.near)) if fact.near else ""
    span = columns[0] if len(columns) == 1 else f"{columns[0]} to {columns[-1]}"
    return tag(
        "tr",
        tag("th", tag("code", fact.name), tag("small", f"{fact.model}, {fact.kind}")),
        tag("td", span),
        tag("td", tag("span", fact.problem, class_=f"v {tone}{' new' if new else ''}")),
        tag("td", fact.says, near, class_="says"),
        tag("td", ", ".join(fact.origin)),
        class_="" if new else "calm",
    )


def _sources(report: Report) -> Html:
    rows = tuple(
        tag(
            "tr",
            tag("th", column.name),
            tag("td", column.kind),
            tag("td", tag("code", column.identity)),
            tag("td", column.problem or ("in the catalog" if column.in_catalog else "not in the catalog")),
        )
        for column in report.columns
    )
    table = tag("div", _plain_table(("Name", "Kind", "Identity", "State"), rows), class_="box")
    return tag("section", tag("details", tag("summary", "What was read"), table))


def _plain_table(heads: tuple[str, ...], rows: tuple[Html, ...]) -> Html:
    head = tag("tr", *(tag("th", name, scope="col") for name in heads))
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="plaintable")


def _footer(report: Report) -> Html:
    known = sum(cell.known for cell in report.cells)
    says = f"{known} of {many(len(report.cells), 'verdict')} are what the catalog says. Made by "
    return join((text(says), tag("code", "./inv drift"), text(".")))
