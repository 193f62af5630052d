"""Writes a drift report as JUnit XML: a suite a column, a test case a cell and recipe fact."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from kiln.drift.records import Verdict
from kiln.drift.words import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.drift.records import Cell, FileVerdict, RecipeFact, Report


def render(report: Report) -> str:
    """Return XML in which new drift is a failure and what could not be looked at an error; it holds no time."""
    root = ET.Element("testsuites", name="drift")
    for column in report.columns:
        suite = ET.SubElement(root, "testsuite", name=visible(column.name))
        if column.problem:
            _add(suite, (column.name, "sources", "error", "could not be read"), column.problem)
        for cell in report.cells:
            if cell.column == column.name:
                _add(suite, (column.name, cell.patch, _kind(cell), cell.verdict.value), _of_cell(cell))
        for fact in report.recipes:
            if fact.column == column.name:
                name = f"{fact.model} {fact.kind} {fact.name}"
                _add(suite, (column.name, name, _recipe_kind(fact), fact.problem), _of_recipe(fact))
        _count(suite)
    _count(root)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _add(suite: ET.Element, names: tuple[str, str, str, str], text: str) -> None:
    """Add a test case of (class, name, kind, message); a case of no kind has passed."""
    owner, name, kind, message = map(visible, names)
    case = ET.SubElement(suite, "testcase", classname=owner, name=name)
    if kind:
        ET.SubElement(case, kind, message=message).text = visible(text)
    else:
        ET.SubElement(case, "system-out").text = visible(f"{message}\n{text}")


def _kind(cell: Cell) -> str:
    if cell.verdict is Verdict.UNKNOWN:
        return "error"
    if not cell.known:
        return "failure"
    return "skipped" if cell.verdict is Verdict.NOT_NEEDED else ""


def _recipe_kind(fact: RecipeFact) -> str:
    if fact.problem == "unreadable":
        return "error"
    return "" if fact.known else "failure"


def _count(element: ET.Element) -> None:
    kinds = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for name, tag in kinds.items():
        element.set(name, str(sum(1 for _ in element.iter(tag))))


def _of_cell(cell: Cell) -> str:
    forced = ["set by hand, to test alerts"] if cell.forced else []
    following = [f"next: {cell.next}"] if cell.next else []
    return "\n".join([cell.says, *forced, *(text for file in cell.files for text in _of_file(file)), *following])


def _of_file(file: FileVerdict) -> Iterator[str]:
    yield f"{file.path}{f', hunk {file.hunk}' if file.hunk else ''}: {file.verdict.value}"
    for label, text in (("expected", file.expected), ("found", file.found), ("next", file.hint)):
        if text:
            yield f"  {label}: {text}"
    for candidate in file.candidates:
        yield f"  candidate: {candidate}"


def _of_recipe(fact: RecipeFact) -> str:
    near = [f"nearest name: {fact.near}"] if fact.near else []
    return "\n".join([fact.says, *near, *(f"set by: {layer}" for layer in fact.origin)])
