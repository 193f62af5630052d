"""What a report asks a person to do: one item a fact, and one a column that could not be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln.drift.records import Cell, RecipeFact, Verdict
from kiln.drift.words import many

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.drift.records import Column, Report


@dataclass(frozen=True, kw_only=True)
class Item:
    """`key` stays the same while the same thing is asked again; a column's begins with "@", which no fact's does."""

    key: str
    column: str
    subject: str
    word: str
    says: str
    next: str
    forced: bool = False
    cell: Cell | None = None


def items(report: Report) -> tuple[Item, ...]:
    """Return what needs a person: unread columns first, then facts in the order of the report, once a key."""
    by_key: dict[str, Item] = {}
    for item in _items(report):
        if item.key in by_key and by_key[item.key].says != item.says:
            first = by_key[item.key]
            by_key[item.key] = replace(first, says=f"{first.says}\n{item.says}")
        by_key.setdefault(item.key, item)
    return tuple(by_key.values())


def unread(report: Report) -> frozenset[str]:
    """Return the names of the columns of which something could not be read: nothing is concluded from their silence."""
    names = {column.name for column in report.columns if column.problem}
    cells = {cell.column for cell in report.cells if cell.verdict is Verdict.UNKNOWN}
    return frozenset(names | cells | {fact.column for fact in report.recipes if fact.problem == "unreadable"})


def new_releases(report: Report) -> tuple[Column, ...]:
    """Return the releases that images/releases.yaml does not have."""
    return tuple(
        column for column in report.columns if column.kind == "release" and not (column.in_catalog or column.problem)
    )


def headline(report: Report) -> str:
    """Return in a line what a report found; "no new drift" only where everything could be read."""
    asked = items(report)
    columns = sum(item.key.startswith("@") for item in asked)
    facts = len(asked) - columns
    parts = [f"{many(facts, 'fact is', 'facts are')} new"] if facts else []
    parts += [f"{many(columns, 'source')} could not be read"] if columns else []
    return "; ".join(parts) or "no new drift"


def counts(report: Report) -> Counter[Verdict]:
    """Return how many cells have each verdict."""
    return Counter(cell.verdict for cell in report.cells)


def runs(report: Report) -> Iterator[tuple[RecipeFact, list[str]]]:
    """Yield facts that differ in their column alone as one, while the columns follow each other."""
    order = {column.name: n for n, column in enumerate(report.columns)}
    runs: dict[tuple[object, ...], list[RecipeFact]] = {}
    for fact in sorted(report.recipes, key=lambda fact: order.get(fact.column, len(order))):
        same = (fact.model, fact.kind, fact.name, fact.problem, fact.says, fact.near, fact.origin, fact.known)
        runs.setdefault(same, []).append(fact)
    for facts in runs.values():
        columns = [facts[0].column]
        for fact in facts[1:]:
            if order.get(fact.column, -1) != order.get(columns[-1], -3) + 1:
                yield facts[0], columns
                columns = []
            columns.append(fact.column)
        yield facts[0], columns


def _items(report: Report) -> Iterator[Item]:
    columns = {column.name: column for column in report.columns}
    silent = unread(report)
    for name in (*columns, *sorted(silent - columns.keys())):
        if name in silent:
            yield _unread(report, name, columns.get(name))
    for fact in report.alerts:
        if isinstance(fact, Cell):
            if fact.verdict is not Verdict.UNKNOWN:
                yield _of_cell(fact)
        elif fact.problem != "unreadable":
            yield _of_recipe(fact)


def _unread(report: Report, name: str, column: Column | None) -> Item:
    """Return the one item of a column: its problem, or what its cells say of why they could not be looked at."""
    cells = [cell for cell in report.cells if cell.column == name and cell.verdict is Verdict.UNKNOWN]
    facts = [fact for fact in report.recipes if fact.column == name and fact.problem == "unreadable"]
    reasons = [f"{cell.patch}: {cell.says}" for cell in cells] + [f"{fact.model}: {fact.says}" for fact in facts]
    if column and column.problem:
        reasons = [column.problem]
    return Item(
        key=f"@{name}",
        column=name,
        subject=name,
        word="could not be looked at",
        says="\n".join(dict.fromkeys(reasons)),
        next=next((each.next for each in (column, *cells) if each and each.next), "./inv drift"),
        forced=any(cell.forced for cell in cells),
    )


def _of_cell(cell: Cell) -> Item:
    return Item(
        key=cell.key,
        column=cell.column,
        subject=f"{cell.patch} on {cell.column}",
        word=cell.verdict.value,
        says=cell.says,
        next=cell.next,
        forced=cell.forced,
        cell=cell,
    )


def _of_recipe(fact: RecipeFact) -> Item:
    origin = f"\nset by: {', '.join(fact.origin)}" if fact.origin else ""
    near = f"\nnearest name: {fact.near}" if fact.near else ""
    return Item(
        key=fact.key,
        column=fact.column,
        subject=f"{fact.model} {fact.name} on {fact.column}",
        word=f"{fact.kind} {fact.problem}",
        says=f"{fact.says}{near}{origin}",
        next=f"edit recipes/{fact.model}.yaml, at {' and '.join(fact.origin)}" if fact.origin else "./inv drift",
    )
