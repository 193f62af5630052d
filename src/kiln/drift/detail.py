"""The part of the page behind a cell: what the verdict rests on, what comes next, and the diff."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

from kiln.drift.markup import Html, fragment, tag
from kiln.drift.records import Verdict
from kiln.drift.words import WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kiln.drift.records import Cell, FileVerdict, Report

FORCED = tag("p", "Set by hand, to test alerts. It is no fact.", class_="forced")
_PORTS = {"": "", "clean": "merges cleanly; its probe has not run", "conflict": "ends in a conflict"}
_LINE_KINDS = (
    ("f", ("diff --git ", "--- ", "+++ ")),
    ("h", ("@@",)),
    ("a", ("+",)),
    ("d", ("-",)),
    ("m", ("index ", "new file ", "deleted file ", "\\")),
)


def details(report: Report) -> Html:
    """Return every cell's detail by patch, then each different diff once."""
    diffs = {cell.diff: f"diff-{_digest(cell.diff)}" for cell in report.cells if cell.diff}
    titles = dict(report.titles)
    groups = []
    for patch in dict.fromkeys((*titles, *(cell.patch for cell in report.cells))):
        cells = (_detail(cell, titles.get(patch, ""), diffs) for cell in report.cells if cell.patch == patch)
        groups.append(tag("details", tag("summary", patch), *cells))
    shown = tag("section", tag("h2", "Details"), *groups, id="details")
    return Html(shown + (_diffs(diffs) if diffs else ""))


def loud(cell: Cell) -> bool:
    """Say whether a cell needs a person; what could not be looked at always does."""
    return not cell.known or cell.verdict is Verdict.UNKNOWN


def badge(verdict: Verdict, *, new: bool = False) -> Html:
    word = WORDS[verdict]
    sign = tag("span", word.sign, aria_hidden="true")
    return tag("span", sign, word.long, class_=f"v {word.tone}{' new' if new else ''}")


def following(command: str) -> Html:
    """Return what comes next: a command that can be copied, or words."""
    if not command:
        return Html()
    if not command.startswith("./inv "):
        return tag("p", f"Next: {command}", class_="plain")
    copy = tag("button", "Copy", class_="copy", type="button", hidden=True)
    return tag("div", tag("code", command), copy, class_="cmd")


def _detail(cell: Cell, title: str, diffs: Mapping[str, str]) -> Html:
    rows = (
        ("Judged with", cell.edition and f"the edition for {cell.edition}"),
        ("First release", cell.first),
        ("Three-way merge", _PORTS[cell.port]),
        ("In the catalog", "yes, it says so" if cell.known else "no, this is new"),
    )
    return tag(
        "article",
        badge(cell.verdict, new=loud(cell)),
        tag("h3", cell.patch, " ", tag("small", f"on {cell.column}")),
        tag("p", title, class_="title") if title else "",
        FORCED if cell.forced else "",
        tag("p", cell.says, class_="says") if cell.says else "",
        following(cell.next),
        _list(rows),
        tag("h4", "Files") if cell.files else "",
        tag("ul", *map(_file, cell.files), class_="files") if cell.files else "",
        _to_diff(cell, diffs),
        class_="detail",
        id=cell.key,
    )


def _to_diff(cell: Cell, diffs: Mapping[str, str]) -> Html:
    if not cell.diff:
        return Html()
    what = "The ported edition, which no probe has proven" if cell.port == "clean" else "The edition"
    return tag("h4", tag("a", what, class_="to-diff", href=fragment(diffs[cell.diff])))


def _file(file: FileVerdict) -> Html:
    differs = [("Expected", file.expected), ("Found", file.found)] if file.expected != file.found else []
    rows = [*differs, *(("Candidate", each) for each in file.candidates)]
    return tag(
        "li",
        tag("code", file.path, class_="path"),
        badge(file.verdict),
        f" hunk {file.hunk}" if file.hunk else "",
        _list(rows, value="pre"),
        tag("p", file.hint) if file.hint else "",
    )


def _list(rows: Iterable[tuple[str, str]], *, value: str = "span") -> Html:
    shown = [Html(tag("dt", what) + tag("dd", tag(value, said))) for what, said in rows if said]
    return tag("dl", *shown) if shown else Html()


def _diffs(diffs: Mapping[str, str]) -> Html:
    shown = (
        tag("details", tag("summary", name), tag("pre", _coloured(diff), class_="diff"), id=name)
        for diff, name in diffs.items()
    )
    return tag("section", tag("h2", "Diffs"), *shown, id="diffs")


def _coloured(diff: str) -> Html:
    """Return a diff with each run of lines of one kind in one element."""
    lines = diff.removesuffix("\n").split("\n")
    runs = itertools.groupby(lines, key=_kind)
    return Html("".join(tag("span", "\n".join(run), class_=kind) for kind, run in runs))


def _kind(line: str) -> str:
    return next((kind for kind, starts in _LINE_KINDS if line.startswith(starts)), "x")


def _digest(diff: str) -> str:
    return hashlib.sha256(diff.encode("utf-8", "surrogatepass")).hexdigest()[:16]
