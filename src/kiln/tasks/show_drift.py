"""Prints what drift found, the matrix first, and writes the same report as files."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from kiln import errors, files, report
from kiln.drift import attention, junit, markdown, matrix, page
from kiln.drift.records import Verdict
from kiln.drift.words import line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.drift.bisect import Break
    from kiln.drift.records import Cell, Report

_KINDS = ("editions", "retire")


def show_report(made: Report, *, json: bool, out: Path | str | None) -> None:
    """Print the report, or its JSON and nothing else, and write it into the folder `out`.

    Raises Findings, after all is printed and written, where there is new drift or something could not be read.
    """
    written = write(made, Path(out)) if out else ()
    if json:
        print(_clean(report.as_json(made.as_data())))
    else:
        print("\n".join(_lines(made)))
        for path in written:
            print(f"wrote {path}")
    if attention.items(made):
        raise errors.Findings(attention.headline(made))
    if not json:
        print(attention.headline(made))


def show_breaks(breaks: Sequence[Break], *, json: bool) -> None:
    """Print up to which release each edition fits, and what breaks it on the next."""
    if json:
        print(report.as_json([asdict(each) for each in breaks]))
        return
    heads = ("patch", "edition", "fits up to", "first broken on", "verdict", "commit")
    print(report.table(heads, [_broken(each) for each in breaks]))
    for each in breaks:
        if each.why:
            print(f"{each.broken}: {line(each.why)}")
        for file in each.files:
            print(f"{each.broken}: {line(file.path)}{f', hunk {file.hunk}' if file.hunk else ''}: {file.verdict.value}")
            for label, text in (("expected", file.expected), ("found", file.found), ("next", file.hint)):
                if text:
                    print(f"  {label + ':':<9} {line(text)}")


def _kind(cell: Cell) -> str:
    """Return the folder for a cell's diff: a ported edition, a proposal for patch.yaml, or "" for none."""
    retired = cell.verdict is Verdict.MERGED and not cell.known and cell.diff
    return "editions" if cell.port == "clean" else "retire" if retired else ""


def write(made: Report, out: Path) -> tuple[Path, ...]:
    """Write every form of the report, ported editions and proposals to retire; those of an earlier run are removed."""
    editions = {
        out / _kind(cell) / _name(cell.patch) / f"{_name(cell.column)}.patch": cell.diff
        for cell in made.cells
        if _kind(cell)
    }
    for left in sorted(path for kind in _KINDS for path in (out / kind).glob("*/*.patch")):
        left.unlink()
        if not any(left.parent.iterdir()):
            left.parent.rmdir()
    reports = {
        "index.html": page.render(made),
        "drift.md": markdown.render(made),
        "drift.xml": junit.render(made),
        "drift.json": f"{report.as_json(made.as_data())}\n",
    }
    return (
        *(files.write(out / name, _clean(text)) for name, text in reports.items()),
        *(files.write(path, diff.encode("utf-8", "surrogateescape")) for path, diff in editions.items()),
    )


def _lines(made: Report) -> Iterator[str]:
    yield from matrix.draw(made, colours=report.has_controls(sys.stdout))
    yield ""
    for column in attention.new_releases(made):
        yield f"{line(column.name)} is a new release: images/releases.yaml does not have it"
        yield "  next: add a block for it there, then ./inv lint"
    for item in attention.items(made):
        forced = " (set by hand, to test alerts)" if item.forced else ""
        yield f"{line(item.subject)}: {line(item.word)}{forced}: {line('; '.join(item.says.splitlines()))}"
        if item.next:
            yield f"  next: {line(item.next)}"


def _broken(each: Break) -> tuple[str, ...]:
    commit = f"{each.commit.id[:12]} {each.commit.date} {line(each.commit.subject, 60)}" if each.commit else ""
    return (each.patch, each.edition, each.fits, each.broken or "none", each.verdict.value, commit)


def _name(part: str) -> str:
    """Return a name of the data as one part of a path, which leads nowhere else; each name gives another one."""
    quoted = quote(part, safe="+", errors="surrogatepass")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _clean(text: str) -> str:
    """Return text that UTF-8 can hold: half of a surrogate pair becomes its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
