"""One issue a fact: made once, edited on change, closed when the fact is gone, and never forged."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from drift_reports import HOSTILE, cell, column, fact, hostile, report
from hypothesis import given, settings
from hypothesis import strategies as st

from kiln import errors
from kiln.drift import alerts
from kiln.drift.alerts import Action, Issue
from kiln.drift.records import FileVerdict, Report, Verdict
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

CALM = report(cell("a"))
BROKEN = report(
    cell(
        "a",
        verdict=Verdict.CONFLICT,
        known=False,
        says="the edition for 0.30.0 does not fit",
        next="./inv patch.port a --to 0.31.0",
        edition="0.30.0",
        port="clean",
        files=(
            FileVerdict(path="vllm/x.py", verdict=Verdict.CONFLICT, hunk=1, expected="line 3: a", found="line 3: b"),
        ),
    )
)
TITLE = "drift: a on 0.31.0: CONFLICT"
BODY = """\
<!-- kiln-drift: a@0.31.0 -->

`a on 0.31.0`: `CONFLICT`

```text
the edition for 0.30.0 does not fit
```

```text
CONFLICT  vllm/x.py, hunk 1
  expected: line 3: a
  found: line 3: b
```

The ported edition, from `0.30.0`, is among the files of the run; its probe has not run.

Next:

```sh
./inv patch.port a --to 0.31.0
```

This text is kept by `./inv drift --issues`: edited when the fact changes, closed when it is gone, opened again when \
it is back. Write comments; what is written here is overwritten.
"""


def track(tracker: Sequence[Issue], actions: Sequence[Action]) -> tuple[Issue, ...]:
    """Return what a tracker holds after the actions, as the real one would."""
    issues = {issue.number: issue for issue in tracker}
    for action in actions:
        number = action.number or max(issues, default=0) + 1
        assert (action.kind == "create") == (number not in issues)
        state = "closed" if action.kind == "close" else issues[number].state if action.kind == "edit" else "open"
        issues[number] = Issue(number=number, title=action.title, body=action.body, state=state)
    return tuple(issues.values())


def after(*reports: Report, tracker: Sequence[Issue] = ()) -> tuple[Issue, ...]:
    for made in reports:
        tracker = track(tracker, alerts.plan(made, tracker, whole=True))
        assert alerts.plan(made, tracker, whole=True) == ()
    return tuple(tracker)


def unread(*patches: str) -> Report:
    cells = (cell(patch, verdict=Verdict.UNKNOWN, known=False, says="could not be read: HTTP 503") for patch in patches)
    return report(*cells, columns=(column("0.31.0", problem="HTTP 503"),))


OPEN = Issue(number=1, title=TITLE, body=BODY, state="open")
CLOSED = replace(OPEN, state="closed")


def test_the_text_of_an_issue() -> None:
    made = Action(kind="create", number=None, title=TITLE, body=BODY)
    assert alerts.plan(BROKEN, (), whole=True) == (made,)


def test_the_life_of_an_issue() -> None:
    assert alerts.plan(BROKEN, (OPEN,), whole=True) == ()
    old = replace(OPEN, title="drift: a on 0.31.0: OFFSET")
    assert alerts.plan(BROKEN, (old,), whole=True) == (Action(kind="edit", number=1, title=TITLE, body=BODY),)
    assert alerts.plan(CALM, (OPEN,), whole=True) == (Action(kind="close", number=1, title=TITLE, body=BODY),)
    assert alerts.plan(CALM, (CLOSED,), whole=True) == ()
    assert alerts.plan(BROKEN, (CLOSED,), whole=True) == (Action(kind="reopen", number=1, title=TITLE, body=BODY),)


def test_what_the_tracker_does_to_line_ends_is_no_change() -> None:
    assert alerts.plan(BROKEN, (replace(OPEN, body=BODY.rstrip().replace("\n", "\r\n")),), whole=True) == ()


def test_of_twins_the_first_stays() -> None:
    twins = (replace(OPEN, number=9), replace(OPEN, number=4), replace(OPEN, number=7), replace(CLOSED, number=2))
    closed = [Action(kind="close", number=number, title=TITLE, body=BODY) for number in (7, 9)]
    assert alerts.plan(BROKEN, twins, whole=True) == tuple(closed)


def test_an_issue_without_a_mark_is_a_persons() -> None:
    assert alerts.plan(CALM, (replace(OPEN, body="drift of ours"),), whole=True) == ()


def test_a_narrowed_report_closes_only_what_it_looked_at() -> None:
    other = replace(OPEN, number=2, body=BODY.replace("a@0.31.0", "b@0.31.0"))
    close = Action(kind="close", number=1, title=TITLE, body=BODY)
    assert alerts.plan(CALM, (OPEN, other), whole=False) == (close,)
    assert alerts.plan(CALM, (OPEN, other), whole=True) == (close, replace(close, number=2, body=other.body))


def test_a_recipe_fact_that_is_gone_is_closed_only_by_a_whole_report() -> None:
    (issue,) = after(report(cell(), recipes=(fact(),)))
    assert issue.title == "drift: MiniMaxAI/MiniMax-M3 --flag on 0.31.0: flag unknown"
    assert issue.body.startswith("<!-- kiln-drift: MiniMaxAI/MiniMax-M3%20--flag@0.31.0 -->\n")
    assert alerts.plan(report(cell()), (issue,), whole=False) == ()
    assert [action.kind for action in alerts.plan(report(cell()), (issue,), whole=True)] == ["close"]


# what could not be read


def test_a_release_that_could_not_be_read_makes_one_issue() -> None:
    (action,) = alerts.plan(unread("a", "b", "c"), (), whole=True)
    assert (action.kind, action.title) == ("create", "drift: 0.31.0: could not be looked at")
    assert action.body.startswith("<!-- kiln-drift: @0.31.0 -->\n")
    assert "HTTP 503" in action.body


def test_issues_of_a_release_that_could_not_be_read_stay_as_they_are() -> None:
    twins = (OPEN, replace(OPEN, number=2), replace(CLOSED, number=3))
    assert [action.kind for action in alerts.plan(unread("a"), twins, whole=True)] == ["create"]
    tracker = after(BROKEN, unread("a"), CALM)
    assert [(issue.state, issue.title) for issue in tracker] == [
        ("closed", TITLE),
        ("closed", "drift: 0.31.0: could not be looked at"),
    ]


def test_a_release_whose_name_ends_like_another_is_another() -> None:
    made = report(cell("a", "1.0", Verdict.UNKNOWN, known=False), cell("a", "21.0"))
    tracker = after(report(cell("a", "1.0"), cell("a", "21.0", Verdict.CONFLICT, known=False)))
    assert [action.kind for action in alerts.plan(made, tracker, whole=True)] == ["create", "close"]


def test_a_forced_fact_says_so_and_goes_with_the_next_run() -> None:
    forced = report(cell("a", verdict=Verdict.CONFLICT, known=False, forced=True))
    (issue,) = after(forced)
    assert issue.title == f"[forced] {TITLE}"
    assert "set by hand" in issue.body
    assert [each.state for each in after(CALM, tracker=(issue,))] == ["closed"]


# what the data cannot do


def test_a_key_cannot_be_forged() -> None:
    bodies = [action.body for action in alerts.plan(hostile(), (), whole=True)]
    assert len(bodies) == 3
    assert all(body.count("<!--") == 1 and body.startswith("<!-- kiln-drift: ") for body in bodies)
    victim = Issue(number=99, title="real", body="<!-- kiln-drift: other@1 -->\n", state="open")
    assert alerts.plan(report(cell("other", "1")), after(hostile()), whole=False) == ()
    numbers = [action.number for action in alerts.plan(hostile(), (victim,), whole=False)]
    assert numbers == [None, None, None]


def test_data_is_code_and_bounded() -> None:
    says = f"@everyone fixes #1 ```\n@all {'x' * 90_000}"
    files = tuple(FileVerdict(path=f"{n}{HOSTILE}", verdict=Verdict.CONFLICT, found="y" * 9000) for n in range(500))
    made = report(cell("a", verdict=Verdict.CONFLICT, known=False, says=says, files=files))
    (action,) = alerts.plan(made, (), whole=True)
    assert len(action.body) < 20_000
    assert len(action.title) < 256
    assert "\n````text\n@everyone" in action.body
    assert "and 480 files more" in action.body


# every sequence of reports

VERDICTS = st.sampled_from([Verdict.CLEAN, Verdict.CONFLICT, Verdict.OFFSET, Verdict.UNKNOWN])
REPORTS = st.lists(st.tuples(VERDICTS, VERDICTS, VERDICTS, st.booleans()), min_size=1, max_size=6)


def seen(first: Verdict, second: Verdict, third: Verdict, *, flag: bool) -> Report:
    places = (("a", "0.30.0", first), ("b", "0.30.0", second), ("a", "0.31.0", third))
    cells = (cell(patch, name, verdict, known=verdict is Verdict.CLEAN) for patch, name, verdict in places)
    return report(*cells, recipes=(fact(),) if flag else ())


@given(REPORTS)
@settings(max_examples=150, deadline=None)
def test_whatever_comes_the_open_issues_are_the_facts_and_a_second_run_does_nothing(
    rows: list[tuple[Verdict, Verdict, Verdict, bool]],
) -> None:
    tracker: tuple[Issue, ...] = ()
    for *verdicts, flag in rows:
        made = seen(*verdicts, flag=flag)
        before = {issue.number: issue for issue in tracker}
        tracker = after(made, tracker=tracker)
        titles = [issue.title for issue in tracker]
        assert len({issue.body.splitlines()[0] for issue in tracker}) == len(titles)
        silent = {each.column for each in made.cells if each.verdict is Verdict.UNKNOWN}
        wanted = {each.key for each in made.alerts if each.column not in silent} | {f"@{name}" for name in silent}
        is_open = {issue.body.splitlines()[0][17:-4].replace("%20", " ") for issue in tracker if issue.state == "open"}
        assert {key for key in is_open if key.rpartition("@")[2] not in silent} == {
            key for key in wanted if key.rpartition("@")[2] not in silent
        }
        closed = {n for n, issue in before.items() if issue.state == "open"} - {
            issue.number for issue in tracker if issue.state == "open"
        }
        assert not [n for n in closed if before[n].body.splitlines()[0][17:-4].rpartition("@")[2] in silent]


# with gh

GH = """\
#!{python}
import json, os, sys
path, log = os.environ["TRACKER"], os.environ["TRACKER"] + ".log"
issues = json.load(open(path)) if os.path.exists(path) else []
args = sys.argv[1:]
with open(log, "a") as out:
    print(json.dumps(args), file=out)
def given(name):
    return next((arg.partition("=")[2] for arg in args if arg.startswith("--" + name + "=")), None)
if args[:2] == ["label", "create"]:
    open(path + ".label", "w").close()
elif args[:2] == ["issue", "list"]:
    assert given("label") == "kiln-drift" and given("state") == "all" and given("limit") == "1000"
    print(json.dumps([{{k: i[k] for k in given("json").split(",")}} for i in issues]))
elif args[:2] == ["issue", "create"]:
    assert os.path.exists(path + ".label"), "no such label"
    if "broken" in given("title"):
        sys.exit("HTTP 422")
    issues.append(dict(number=len(issues) + 1, title=given("title"), body=sys.stdin.read(), state="OPEN"))
else:
    issue = issues[int(args[2]) - 1]
    if args[1] == "edit":
        issue.update(title=given("title"), body=sys.stdin.read().replace("\\n", "\\r\\n"))
    else:
        issue["state"] = dict(close="CLOSED", reopen="OPEN")[args[1]]
json.dump(issues, open(path, "w"))
"""


@pytest.fixture
def gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a gh that keeps issues in a file on PATH; return that file."""
    program = tmp_path / "bin/gh"
    program.parent.mkdir()
    program.write_text(GH.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TRACKER", str(tmp_path / "issues.json"))
    return tmp_path / "issues.json"


@pytest.fixture
def told() -> tuple[io.StringIO, Callable[..., None]]:
    """Return where progress goes, and run(report) that does all."""
    stream = io.StringIO()

    def run(made: Report, *, dry_run: bool = False) -> None:
        alerts.run(made, whole=True, dry_run=dry_run, reporter=Reporter(stream))

    return stream, run


def test_the_life_of_an_issue_through_gh(gh: Path, told: tuple[io.StringIO, Callable[..., None]]) -> None:
    _, run = told
    changed = report(cell("a", verdict=Verdict.OFFSET, known=False, says='it\'s "off" `$(id)`'))
    states = []
    for made in (BROKEN, BROKEN, changed, changed, CALM, CALM, BROKEN, BROKEN):
        run(made)
        (issue,) = json.loads(gh.read_text())
        states.append((issue["state"], issue["title"]))
    offset = TITLE.replace("CONFLICT", "OFFSET")
    assert states == [("OPEN", TITLE)] * 2 + [("OPEN", offset)] * 2 + [("CLOSED", offset)] * 2 + [("OPEN", TITLE)] * 2
    calls = [json.loads(row)[:2] for row in gh.with_suffix(".json.log").read_text().splitlines()]
    done = [verb for _, verb in calls if verb != "list"]
    assert done == ["create", "create", "edit", "close", "edit", "reopen"]  # the first makes the label
    assert calls.count(["issue", "list"]) == 8


def test_a_dry_run_only_says_what_would_be_done(gh: Path, told: tuple[io.StringIO, Callable[..., None]]) -> None:
    stream, run = told
    run(BROKEN, dry_run=True)
    assert json.loads(gh.read_text()) == []
    assert f"would create issue: {TITLE}\n" in stream.getvalue()


def test_one_issue_that_fails_does_not_stop_the_others(gh: Path, told: tuple[io.StringIO, Callable[..., None]]) -> None:
    _, run = told
    made = report(*(cell(name, verdict=Verdict.CONFLICT, known=False) for name in ("a", "broken", "c")))
    with pytest.raises(errors.CommandFailed, match="HTTP 422"):
        run(made)
    assert [issue["title"] for issue in json.loads(gh.read_text())] == [TITLE, TITLE.replace(" a ", " c ")]


def test_more_issues_than_can_be_listed_is_an_error(gh: Path, told: tuple[io.StringIO, Callable[..., None]]) -> None:
    _, run = told
    gh.write_text(json.dumps([{"number": n, "title": "", "body": None, "state": "OPEN"} for n in range(1000)]))
    with pytest.raises(errors.CommandFailed, match="1000 issues with the label kiln-drift or more"):
        run(BROKEN)
    assert len(json.loads(gh.read_text())) == 1000


def test_no_gh_is_missing_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: tuple[io.StringIO, Callable[..., None]]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.Missing, match="gh: no such program") as caught:
        told[1](BROKEN)
    assert caught.value.hint == "install GitHub's gh, or leave --issues out"
