"""Every form of a drift report: complete, the same twice, and never more than text where the data attacks."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from drift_reports import BROKEN, HOSTILE, NEW, cell, column, fact, hostile, realistic, report

from kiln import errors
from kiln.drift import attention, junit, markdown, matrix, page
from kiln.drift.bisect import Break
from kiln.drift.records import FileVerdict, Report, Verdict
from kiln.drift.words import WORDS, line, visible
from kiln.tasks.show_drift import show_breaks, show_report
from kiln.upstream.git_ref import Commit

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def real() -> Report:
    return realistic()


class Elements(HTMLParser):
    """Collects elements, their attributes, and the text of those that run or style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        self._in = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._in = tag

    def handle_data(self, data: str) -> None:
        if self._in in {"script", "style"}:
            self.inline[self._in] = self.inline.get(self._in, "") + data

    def handle_endtag(self, _tag: str) -> None:
        self._in = ""


def unread() -> Report:
    """Return a report on three releases of which one could not be reached."""
    known = (cell("a", "0.30.0"), cell("a", "0.31.0", Verdict.UNKNOWN, known=False, says="could not be read: HTTP 503"))
    names = (column("0.30.0"), column("0.31.0", problem="HTTP 503"))
    return report(*known, columns=names)


def test_every_verdict_has_a_word_and_no_two_look_the_same() -> None:
    assert set(WORDS) == set(Verdict)
    for part in ("sign", "long", "short"):
        assert len({getattr(word, part) for word in WORDS.values()}) == len(Verdict)
    assert max(len(word.short) for word in WORDS.values()) == 4


def test_what_cannot_be_seen_is_named() -> None:
    assert visible("a\u202eb\x1b\r\n\tc\ud800\ufffe") == "a⟦U+202E⟧b⟦U+001B⟧⟦U+000D⟧\n\tc⟦U+D800⟧⟦U+FFFE⟧"
    assert line("a\n  b\x00") == "a b⟦U+0000⟧"
    assert len(line("x" * 9000)) == 2000


# what needs a person


def test_a_column_that_could_not_be_read_is_one_item_and_never_no_drift() -> None:
    made = unread()
    assert [item.key for item in attention.items(made)] == ["@0.31.0"]
    assert attention.items(made)[0].next == "./inv drift"
    assert attention.headline(made) == "1 source could not be read"
    alone = replace(made, cells=made.cells[:1])
    assert not alone.alerts
    assert attention.headline(alone) == "1 source could not be read"
    assert attention.headline(report(cell())) == "no new drift"


def test_a_cell_that_could_not_be_looked_at_says_of_which_patch() -> None:
    made = report(cell("a", "0.30.0", Verdict.UNKNOWN, known=False, says="no edition"), cell("b", "0.30.0"))
    assert [item.says for item in attention.items(made)] == ["a: no edition"]


def test_facts_of_one_key_are_one_item_that_says_both() -> None:
    pair = (
        fact("minimax_m3", kind="parser", says="no tool parser"),
        fact("minimax_m3", kind="parser", says="no other"),
    )
    (item,) = attention.items(report(cell(), recipes=pair))
    assert [text for text in item.says.splitlines() if text.startswith("no")] == ["no tool parser", "no other"]


def test_a_column_that_could_not_be_read_is_no_new_release_and_says_what_helps() -> None:
    made = unread()
    column = replace(made.columns[0], name="newest", in_catalog=False, problem="no answer", next="look there")
    made = replace(made, columns=(column,), cells=())
    assert attention.new_releases(made) == ()
    assert [item.next for item in attention.items(made)] == ["look there"]


def test_facts_on_consecutive_columns_are_one_run() -> None:
    names = ("0.29.0", "0.30.0", "0.31.0", "0.32.0")
    facts = tuple(fact(at=name, says="gone") for name in names if name != "0.31.0")
    made = report(*(cell(name=name) for name in names), recipes=facts)
    assert [columns for _, columns in attention.runs(made)] == [["0.29.0", "0.30.0"], ["0.32.0"]]


# the page


def test_the_page_is_the_same_twice_and_needs_nothing_else(real: Report) -> None:
    text = page.render(real)
    assert text == page.render(real)
    elements = Elements(text)
    addresses = [value or "" for _, attrs in elements.found for name, value in attrs.items() if name in {"href", "src"}]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert not {"link", "img", "iframe", "object", "base", "form"} & {name for name, _ in elements.found}
    assert not re.search(r"url\(|@import|https?:|fetch\(|XMLHttp|Date|random", "".join(elements.inline.values()))


def test_every_cell_links_to_its_detail_and_every_diff_is_there_once(real: Report) -> None:
    elements = Elements(page.render(real))
    ids = [attrs["id"] for _, attrs in elements.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    keys = {each.key for each in real.cells}
    assert keys <= set(ids)
    assert keys == {str(attrs["href"])[1:] for _, attrs in elements.found if str(attrs.get("class")).startswith("c ")}
    diffs = {each.diff for each in real.cells if each.diff}
    assert len(diffs) < sum(bool(each.diff) for each in real.cells)
    assert sum(attrs.get("class") == "diff" for _, attrs in elements.found) == len(diffs)
    links = [attrs["href"] for _, attrs in elements.found if attrs.get("class") == "to-diff"]
    assert len(links) == sum(bool(each.diff) for each in real.cells)
    assert {str(link)[1:] for link in links} == {name for name in ids if str(name).startswith("diff-")}


def test_the_policy_lets_this_script_and_this_style_run_and_nothing_else(real: Report) -> None:
    elements = Elements(page.render(real))
    policy = next(attrs["content"] for _, attrs in elements.found if attrs.get("http-equiv"))
    assert policy
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(elements.inline[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert not [attrs for _, attrs in elements.found if any(key == "style" or key.startswith("on") for key in attrs)]


def test_hostile_text_adds_no_element_and_no_attribute_to_the_page() -> None:
    text = page.render(hostile())
    shapes = [
        [(name, sorted(attrs)) for name, attrs in Elements(page.render(hostile(word))).found]
        for word in (HOSTILE, "calm\ncalm\ncalm")
    ]
    assert shapes[0] == shapes[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)
    assert "&lt;img src=x onerror=" in text


def test_a_page_of_no_drift_says_so_and_one_of_unread_sources_does_not() -> None:
    assert "<h1>No new drift</h1>" in page.render(report(cell()))
    text = page.render(unread())
    assert "<h1>1 source could not be read</h1>" in text
    assert "No new drift" not in text
    assert "HTTP 503" in text


def test_a_verdict_set_by_hand_says_so_everywhere() -> None:
    made = report(cell(verdict=Verdict.CONFLICT, known=False, forced=True))
    for text in (page.render(made), markdown.render(made), junit.render(made)):
        assert re.search("set by hand", text, re.IGNORECASE)


# markdown and junit


def test_markdown_has_the_matrix_the_alerts_and_the_next_commands(real: Report) -> None:
    text = markdown.render(real)
    assert text == markdown.render(real)
    assert text.startswith("## Drift: 6 facts are new\n")
    rows = [row for row in text.splitlines() if row.startswith("| ")]
    assert {row.count("|") for row in rows[: 1 + len(real.titles)]} == {2 + len(real.columns)}
    assert f"| {BROKEN} | ✓ | ✕ conflict |" in text
    assert "**✕ conflict** |" in text
    assert f"next: `./inv patch.port {BROKEN} --to {NEW}`" in text
    assert f"**New release {NEW}**" in text


def test_hostile_text_stays_text_in_markdown() -> None:
    text = markdown.render(hostile())
    outside = re.sub(r"(`+).*?\1", "", text)
    assert "<img" not in outside
    assert "<!--" not in outside
    assert "@all" not in outside
    assert "**b**" not in outside
    rows = [row for row in text.splitlines() if row.startswith("| evil")]
    assert [row.count("|") for row in rows] == [4]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)


def test_code_cannot_end_its_own_block() -> None:
    assert markdown.span("a`b``c") == "```a`b``c```"
    assert markdown.span("`") == "`` ` ``"
    block = markdown.fence("x\n````\ny")
    assert block.splitlines()[0] == "`````text"
    assert block.splitlines()[-1] == "`````"


def test_junit_counts_drift_as_failures_and_silence_as_errors() -> None:
    cells = (
        cell("a"),
        cell("b", verdict=Verdict.NOT_NEEDED),
        cell("c", verdict=Verdict.CONFLICT),
        cell("d", verdict=Verdict.CONFLICT, known=False, next="./inv patch.port d"),
        cell("e", verdict=Verdict.UNKNOWN, known=False),
    )
    facts = (fact(), fact("--old", problem="default", known=True), fact("--lost", problem="unreadable"))
    made = report(*cells, recipes=facts, columns=(column("0.31.0", problem="HTTP 503"),))
    root = ET.fromstring(junit.render(made))  # noqa: S314
    (suite,) = root
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "9",
        "failures": "2",
        "errors": "3",
        "skipped": "1",
    }
    kinds = {case.get("name"): case[0].tag for case in suite}
    assert kinds["a"] == kinds["c"] == "system-out"
    assert (kinds["b"], kinds["d"], kinds["e"], kinds["sources"]) == ("skipped", "failure", "error", "error")
    assert "next: ./inv patch.port d" in junit.render(made)


def test_junit_is_xml_whatever_the_text_holds() -> None:
    text = junit.render(hostile())
    assert text == junit.render(hostile())
    root = ET.fromstring(text)  # noqa: S314
    assert [failure.get("message") for failure in root.iter("failure")] == ["CONFLICT", "unknown"]
    assert not {"img", "script"} & {element.tag for element in root.iter()}


# the terminal


def test_twelve_releases_and_a_new_one_fit_into_a_hundred_columns(real: Report) -> None:
    lines = list(matrix.draw(real, colours=False))
    assert max(map(len, lines)) <= 100
    assert [text for text in lines if text.startswith("patch")] == [lines[0]]
    assert f"{BROKEN:<26} ok   conf conf conf conf conf conf ok   ok   ok   ok   ok   CONF" in lines
    assert lines[2].strip() == "NEW"
    assert "\x1b" not in "".join(lines)


def test_more_releases_than_fit_are_drawn_below_and_none_is_lost() -> None:
    names = [f"0.{n}.0" for n in range(40)]
    lines = list(matrix.draw(report(*(cell("a-patch-of-a-long-name", name) for name in names)), colours=False))
    assert max(map(len, lines)) <= 100
    heads = " ".join(text for text in lines if text.startswith("patch")).split()
    assert [name for name in heads if name != "patch"] == [f"0.{n}" for n in range(40)]
    assert sum(text.count(" ok") for text in lines if text.startswith("a-patch")) == 40


def test_few_releases_are_drawn_in_whole_words() -> None:
    made = report(cell("a", "0.30.0", Verdict.MERGED), cell("a", "0.31.0", Verdict.CONFLICT, known=False))
    assert list(matrix.draw(made, colours=False))[:2] == ["patch 0.30.0 0.31.0", "a     merged CONFLICT"]


def test_a_long_name_is_a_number_that_the_legend_explains() -> None:
    digest = "registry.example/vllm@sha256:" + "0" * 64
    made = report(cell("a", digest), columns=(column(digest, kind="image", in_catalog=False),))
    lines = list(matrix.draw(made, colours=False))
    assert lines[:2] == ["patch [1]", "a     clean"]
    assert f"[1] is image {digest}" in lines


def test_an_unread_column_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.Findings, match=r"^1 source could not be read$"):
        show_report(unread(), json=False, out=None)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["????"]
    assert shown[2].split() == ["a", "clean", "UNKNOWN"]
    assert "0.31.0: could not be looked at: HTTP 503" in shown


def test_colours_are_for_terminals(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    show_report(report(cell()), json=False, out=None)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setattr("kiln.report.has_controls", lambda _: True)
    show_report(report(cell()), json=False, out=None)
    assert "\x1b[32mclean" in capsys.readouterr().out


def test_new_drift_is_told_after_all_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], real: Report
) -> None:
    with pytest.raises(errors.Findings, match=r"^6 facts are new$"):
        show_report(real, json=False, out=str(tmp_path))
    shown = capsys.readouterr().out
    assert f"{NEW} is a new release: images/releases.yaml does not have it" in shown
    assert f"{BROKEN} on {NEW}: CONFLICT: " in shown
    assert f"  next: ./inv patch.port {BROKEN} --to {NEW}" in shown
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page.render(real)
    assert (tmp_path / "drift.md").read_text(encoding="utf-8") == markdown.render(real)
    assert (tmp_path / "drift.xml").read_text(encoding="utf-8") == junit.render(real)
    assert json.loads((tmp_path / "drift.json").read_text(encoding="utf-8"))["alerts"] == [
        each.key for each in real.alerts
    ]
    ported = next(each for each in real.cells if each.port == "clean")
    editions = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.patch"))
    assert editions == [f"editions/{ported.patch}/{NEW}.patch", f"retire/m3-stream-first-delta/{NEW}.patch"]
    assert (tmp_path / editions[0]).read_text(encoding="utf-8") == ported.diff


def test_json_is_alone_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report(cell()), json=True, out=tmp_path)
    assert json.loads(capsys.readouterr().out)["cells"][0]["verdict"] == "CLEAN"
    with pytest.raises(errors.Findings):
        show_report(hostile(), json=True, out=None)
    assert json.loads(capsys.readouterr().out)["cells"][0]["says"] == HOSTILE


def test_no_drift_is_said_and_is_no_finding(capsys: pytest.CaptureFixture[str]) -> None:
    show_report(report(cell()), json=False, out=None)
    assert capsys.readouterr().out.splitlines()[-1] == "no new drift"


def test_editions_of_an_earlier_run_do_not_stay(tmp_path: Path) -> None:
    ported = cell("a", verdict=Verdict.OFFSET, port="clean", diff="one\n")
    show_report(report(ported), json=True, out=tmp_path)
    assert (tmp_path / "editions/a/0.31.0.patch").read_text(encoding="utf-8") == "one\n"
    show_report(report(cell("a")), json=True, out=tmp_path)
    assert not (tmp_path / "editions/a").exists()


def test_a_name_leads_nowhere_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    cells = [
        cell(patch, name, Verdict.OFFSET, port="clean", diff=f"{patch} {name}")
        for patch in ("..", ".", "a/../../b", "a")
        for name in ("../../../x", "/etc/x", "..", "a\x00b")
    ]
    show_report(report(*cells), json=True, out=out)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.read_text(encoding="utf-8") for path in written if path.suffix == ".patch"} == {c.diff for c in cells}
    assert {path.relative_to(out).parts[0] for path in written} == {
        "index.html",
        "drift.md",
        "drift.xml",
        "drift.json",
        "editions",
    }


def test_half_a_surrogate_pair_stops_no_report(tmp_path: Path) -> None:
    show_report(report(cell(says="\ud800", diff="-\udc80\n", port="clean")), json=True, out=tmp_path)
    assert (tmp_path / "editions/toy/0.31.0.patch").read_bytes() == b"-\x80\n"
    assert json.loads((tmp_path / "drift.json").read_text(encoding="utf-8"))["cells"][0]["says"] == "\ud800"


def test_breaks_name_release_file_and_commit(capsys: pytest.CaptureFixture[str]) -> None:
    commit = Commit(id="ab" * 20, date="2026-08-01", subject="Move it\x1b[31m")
    wrong = FileVerdict(path="vllm/x.py", verdict=Verdict.CONFLICT, hunk=2, expected="line 1: a", found="line 1: b")
    broken = Break(
        patch="p",
        edition="0.24.0",
        fits="0.24.0",
        broken="0.25.0",
        verdict=Verdict.CONFLICT,
        files=(wrong,),
        commit=commit,
    )
    show_breaks((broken, replace(broken, broken="", verdict=Verdict.CLEAN, files=(), commit=None)), json=False)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split(maxsplit=5)[:5] == ["p", "0.24.0", "0.24.0", "0.25.0", "CONFLICT"]
    assert shown[1].endswith("abababababab 2026-08-01 Move it⟦U+001B⟧[31m")
    assert shown[2].split() == ["p", "0.24.0", "0.24.0", "none", "CLEAN"]
    assert shown[3:] == ["0.25.0: vllm/x.py, hunk 2: CONFLICT", "  expected: line 1: a", "  found:    line 1: b"]
    show_breaks((broken,), json=True)
    assert json.loads(capsys.readouterr().out)[0]["commit"]["id"] == "ab" * 20
