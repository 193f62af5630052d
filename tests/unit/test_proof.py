"""Which cases are proven, and what each broken probe, test and edition is called."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, errors, process
from kiln.errors import Finding
from kiln.proof import cases, prove
from kiln.proof.cases import Case
from kiln.proof.prove import Proof
from kiln.tasks import show_proof

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).resolve().parents[2]
TOY = "patches/toy/patch.yaml"
CASE = Case(patch="toy", release="0.31.0")


def change(root: Path, old: str, new: str, file: str = TOY) -> None:
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new, 1))


def add_second(root: Path) -> None:
    """Add a patch that changes the toy's file after it."""
    folder = root / "patches" / "second"
    folder.mkdir()
    (folder / "0.31.0.patch").write_bytes((root / "patches/toy/0.31.0.patch").read_bytes())
    (folder / "patch.yaml").write_text((root / TOY).read_text().replace("id: toy", "id: second"))
    change(root, "toy]", "toy, second]", "patches/series.yaml")


# cases


def test_every_edition_is_a_case_on_top_of_what_changes_its_files(toy_catalog: Path) -> None:
    add_second(toy_catalog)
    second = Case(patch="second", release="0.31.0", before=("toy",))
    whole = Case(patch="all of bf16 gfx942", release="0.31.0", before=("toy", "second"), kind="series")
    loaded = catalog.load(toy_catalog)
    assert cases.plan(loaded) == (CASE, second, whole)
    assert cases.plan(loaded, ids={"toy"}) == (CASE, whole)


def test_the_release_that_has_a_change_itself_is_a_case_too(toy_catalog: Path) -> None:
    change(toy_catalog, "{status: not-reported}", "{status: merged, links: [x]}\nupstream_since: 0.33.0")
    upstream = Case(patch="toy", release="0.33.0", kind="upstream")
    loaded = catalog.load(toy_catalog)
    assert cases.plan(loaded) == (CASE, upstream)
    assert cases.plan(loaded, releases={"0.33.0"}) == (upstream,)
    with pytest.raises(errors.BadInput, match=r"^nothing to prove of toy on 0\.24\.0$"):
        cases.plan(loaded, ids={"toy"}, releases={"0.24.0"})


def test_the_ends_of_each_run_of_equal_changes_stand_for_it() -> None:
    loaded = catalog.load(ROOT)
    chosen = cases.distinct(loaded, cases.plan(loaded, ids={"gfx942-index-topk-pin"}))
    pin = [case.release for case in chosen if case.kind == "edition"]
    assert pin == ["0.24.0", "0.25.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"]
    stream = cases.distinct(loaded, cases.plan(loaded, ids={"m3-stream-first-delta"}))
    assert "0.31.0" in {case.release for case in stream if case.kind == "edition"}
    upstream = cases.distinct(loaded, cases.plan(loaded, ids={"eagle3-amd"}))
    assert [case.release for case in upstream] == ["0.24.0", "0.31.0", "0.33.0"]


def test_a_release_that_needs_a_patch_without_an_edition_is_a_case(toy_catalog: Path) -> None:
    change(toy_catalog, '"==0.31.0"}', '">=0.31.0"}\nunported: [0.32.0, 0.33.0]')
    found = cases.plan(catalog.load(toy_catalog))
    assert found == (CASE, *(Case(patch="toy", release=name, kind="unported") for name in ("0.32.0", "0.33.0")))


def test_unknown_names_are_listed_at_once(toy_catalog: Path) -> None:
    with pytest.raises(errors.BadInput) as caught:
        cases.plan(catalog.load(toy_catalog), ids={"tyo"}, releases={"0.31"})
    assert caught.value.message.splitlines()[0] == "unknown patch 'tyo'; did you mean 'toy'?"
    assert caught.value.message.splitlines()[1].startswith("unknown release '0.31'; did you mean '0.31.0'")


# judgement


def ended(code: int, output: str = "", **results: list[str]) -> prove.Ran:
    return prove.Ran(code=code, output=output, seconds=1.0, results=results)


RIGHT = {
    "probe released": ended(1, "noise\nred: the defect\n"),
    "tests released": ended(0, "", xfailed=["a", "b"], unready=["b"]),
    "probe patched": ended(0, "green: gone\n"),
    "tests patched": ended(0, "", passed=["a", "b", "c"], skipped=["d: Skipped: no GPU"]),
}


def judged(changed: Mapping[str, prove.Ran | None] | None = None, case: Case = CASE) -> Proof:
    ran = RIGHT | {kind.replace("_", " "): one for kind, one in (changed or {}).items()}
    return prove.judge(case, {f"{case.name} {kind}": one for kind, one in ran.items() if one})


def test_a_patch_that_is_red_then_green_is_proven() -> None:
    assert judged() == Proof(
        case=CASE, rules=2, unready=1, tests=3, skipped=("d: Skipped: no GPU",), findings=(), seconds=4.0
    )


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"probe_released": ended(0, "green: all is well")}, "without the patch its probe is not red: exit code 0"),
        ({"probe_released": ended(1, "Traceback: ImportError")}, "without the patch its probe is not red: exit code 1"),
        ({"probe_released": ended(2, "red: usage")}, "without the patch its probe is not red: exit code 2"),
        ({"probe_patched": ended(1, "red: the defect")}, "its probe is not green: exit code 1"),
        ({"probe_patched": ended(0, "")}, "its probe is not green: exit code 0"),
        ({"probe_patched": ended(-14, "")}, "its probe is not green: exit code -14"),
        ({"tests_released": ended(1, "XPASS(strict)", xfailed=["a"], failed=["b"])}, "a test that is marked as a rule"),
        ({"tests_released": ended(0, "", xfailed=[])}, "a test that is marked as a rule"),
        ({"tests_patched": ended(1, "assert 1 == 2", failed=["a"])}, "with the patch, tests fail:\nassert 1 == 2"),
        ({"tests_patched": ended(5, "no tests ran")}, "with the patch, tests fail:\nno tests ran"),
        ({"tests_patched": ended(-14, "....")}, "with the patch, tests fail, and took longer than 600 s:\n...."),
        ({"tests_patched": ended(0, "", skipped=["a: Skipped: x"])}, "with the patch, no test passes"),
        ({"tests_patched": ended(0, "")}, "with the patch, no test passes"),
        ({"tests_patched": ended(0, "", passed=["a"])}, "fails without the patch, and is gone with it: b"),
        ({"tests_patched": None, "tests_released": None}, "has no tests"),
    ],
)
def test_each_way_to_be_wrong_is_a_finding(changed: dict[str, prove.Ran | None], problem: str) -> None:
    findings = judged(changed).findings
    assert len(findings) == 1
    assert problem in findings[0].problem
    assert findings[0].where == "patches/toy on 0.31.0"
    assert findings[0].hint


def test_a_release_that_should_have_the_change_and_has_not_is_a_finding() -> None:
    case = Case(patch="toy", release="0.33.0", kind="upstream")
    green: dict[str, prove.Ran | None] = {"probe_released": None, "tests_released": None, "tests_patched": None}
    assert judged(green, case).findings == ()
    assert (
        "on the release that has it" in judged(green | {"probe_patched": ended(1, "red: x")}, case).findings[0].problem
    )


def test_a_release_said_to_need_a_patch_that_does_not_is_a_finding() -> None:
    case = Case(patch="toy", release="0.33.0", kind="unported")
    alone: dict[str, prove.Ran | None] = {"tests_released": None, "probe_patched": None, "tests_patched": None}
    assert judged(alone, case).findings == ()
    green = judged(alone | {"probe_released": ended(0, "green: all is well")}, case)
    assert [finding.problem[:43] for finding in green.findings] == ["without the patch its probe is not red: exi"]


def test_a_series_is_judged_by_the_modules_that_can_be_imported() -> None:
    case = Case(patch="all of bf16 gfx942", release="0.31.0", before=("a", "b"), kind="series")
    alone: dict[str, prove.Ran | None] = {"probe_released": None, "tests_released": None, "tests_patched": None}
    said = ended(0, "not run: vllm.x: needs compiled code\ngreen: 1 of 2 changed modules can be imported\n")
    assert judged(alone | {"probe_patched": said}, case).skipped == ("vllm.x: needs compiled code",)
    red = judged(alone | {"probe_patched": ended(1, "red: vllm.x cannot be imported")}, case)
    assert [finding.where for finding in red.findings] == ["all of bf16 gfx942 on 0.31.0"]


def test_a_module_that_only_the_patched_tree_cannot_import_is_red(tmp_path: Path) -> None:
    for tree in ("released", "patched"):
        (tmp_path / tree / "toy").mkdir(parents=True)
        (tmp_path / tree / "toy/__init__.py").touch()
        (tmp_path / tree / "toy/always.py").write_text("import no_such_module\n")
        (tmp_path / tree / "toy/good.py").touch()
    (tmp_path / "patched/toy/new.py").touch()

    def told(*modules: str) -> tuple[int, list[str]]:
        script, trees = ROOT / "src/kiln/proof/imports.py", (tmp_path / "patched", tmp_path / "released")
        ended = process.run(process.python("-P", str(script), *map(str, trees), *modules))
        return ended.code, ended.stdout.splitlines()

    missing = "ModuleNotFoundError: No module named 'no_such_module'"
    assert told("toy.always", "toy.good", "toy.new") == (
        0,
        [
            f"not run: toy.always: cannot be imported here, patched or not: {missing}",
            "green: 2 of 3 changed modules can be imported",
        ],
    )
    (tmp_path / "patched/toy/always.py").write_text("import no_such_module\nfrom toy.lost import Thing\n")
    assert told("toy.always") == (1, ["red: toy.always imports toy.lost, which the tree does not have"])
    (tmp_path / "patched/toy/good.py").write_text("from toy.new import Gone\n")
    code, lines = told("toy.good", "toy.new")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith("red: toy.good cannot be imported when all patches are applied: ImportError: ")


# what a person sees


def test_proofs_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    upstream = Case(patch="toy", release="0.33.0", kind="upstream")
    show_proof.show_proofs([judged(), judged(case=upstream)], json=False)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "patch",
        "toy",
        "toy",
        "NOT RUN toy on 0.31.0: no GPU",
        "NOT RUN toy on 0.33.0: no GPU",
        "1 editions proven: red without the patch, green with it",
    ]


def test_a_finding_is_exit_code_6(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = judged({"probe_patched": ended(1, "red: the defect")})
    with pytest.raises(errors.Findings, match=r"^1 finding$"):
        show_proof.show_proofs([wrong], json=False)
    out = capsys.readouterr().out
    assert "toy    0.31.0   FINDING" in out
    assert "patches/toy on 0.31.0: with the patch" in out
    assert "  next: repair the edition or the probe\n" in out
    assert wrong.findings == (
        Finding(
            where=wrong.findings[0].where, problem=wrong.findings[0].problem, hint="repair the edition or the probe"
        ),
    )


# the worker, on this interpreter: without torch it shares less and does the same


def work(tmp_path: Path, **scripts: str) -> dict[str, tuple[int, str]]:
    """Return (exit code, last line of output) of each script."""
    jobs = []
    for name, text in scripts.items():
        script = tmp_path / f"{name}.py"
        script.write_text(text)
        jobs.append(
            {"name": name, "argv": [str(script), "word"], "path": [str(tmp_path)], "env": {"A": name}, "cwd": "/"}
        )
    (tmp_path / "jobs.json").write_text(json.dumps({"parallel": 2, "seconds": 2, "jobs": jobs}))
    lines = process.ask(process.python("-P", str(ROOT / "src/kiln/proof/worker.py"), str(tmp_path / "jobs.json")))
    said = [json.loads(line) for line in lines.splitlines()]
    return {each["name"]: (each["code"], each["output"].rstrip().rpartition("\n")[2]) for each in said}


def test_every_program_runs_in_a_fork_of_its_own_and_its_end_is_told(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("WORD = 'imported'\n")
    found = work(
        tmp_path,
        arguments="import os, sys\nprint(sys.argv[1], os.environ['A'], os.getcwd())\n",
        path="import beside\nprint(beside.WORD)\n",
        returns="raise SystemExit(3)\n",
        says="raise SystemExit('no more')\n",
        nothing="raise SystemExit\n",
        breaks="1 / 0\n",
        leaves="import sys\nsys.modules['left'] = sys\n",
        fresh="import left\n",
        hangs="import time\ntime.sleep(60)\n",
        forgets="import subprocess\nsubprocess.Popen(['sleep', '7.2519'])\n",
        dies="import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
    )
    assert not process.succeeds(("pgrep", "-f", "sleep 7.2519"))
    assert found == {
        "arguments": (0, "word arguments /"),
        "path": (0, "imported"),
        "returns": (3, ""),
        "says": (1, "no more"),
        "nothing": (0, ""),
        "breaks": (1, "ZeroDivisionError: division by zero"),
        "leaves": (0, ""),
        "fresh": (1, "ModuleNotFoundError: No module named 'left'"),
        "hangs": (-signal.SIGALRM, ""),
        "forgets": (0, ""),
        "dies": (-signal.SIGKILL, ""),
    }
