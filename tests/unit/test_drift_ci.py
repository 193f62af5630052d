"""The weekly run: its script with a stub ./inv, and its workflow as data."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from kiln import process
from kiln.catalog import strict_yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "ci/drift"
WORKFLOW = ROOT / ".github/workflows/drift.yml"

TOKEN, OTHER = {"GH_TOKEN": "t"}, {"GITHUB_TOKEN": "t"}

INV = """\
#!/usr/bin/env bash
echo "$*|${GH_TOKEN:-}${GITHUB_TOKEN:-}" >>calls
if [[ " $* " == *" --out "* ]]; then
  mkdir -p build/drift
  echo "## Drift" >build/drift/drift.md
  exit "${REPORT:-0}"
fi
exit "${ALERTS:-0}"
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the real ci/drift and an ./inv that notes how it is called."""
    (tmp_path / "ci").mkdir()
    shutil.copy(SCRIPT, tmp_path / "ci/drift")
    (tmp_path / "inv").write_text(INV, encoding="utf-8")
    (tmp_path / "inv").chmod(0o755)
    for name in ("GH_TOKEN", "GITHUB_TOKEN", "GITHUB_STEP_SUMMARY", "DRIFT_FORCE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run(checkout: Path, **env: str) -> tuple[int, list[str]]:
    result = process.run((str(checkout / "ci/drift"),), env=os.environ | env, cwd=checkout.parent, timeout_s=20)
    return result.code, (checkout / "calls").read_text(encoding="utf-8").splitlines()


def test_without_a_token_no_issue_is_written_and_that_is_said(checkout: Path) -> None:
    assert run(checkout) == (0, ["drift --out build/drift|"])
    said = process.run((str(checkout / "ci/drift"),), timeout_s=20).stderr
    assert "no issue is written" in said


def test_only_the_alerts_see_the_token(checkout: Path) -> None:
    calls = ["drift --out build/drift|", "drift --issues|t"]
    assert run(checkout, **OTHER) == (0, calls)
    assert run(checkout, **TOKEN) == (0, calls * 2)


@pytest.mark.parametrize(
    ("report", "alerts", "code"),
    [("0", "0", 0), ("6", "6", 6), ("6", "0", 6), ("0", "6", 6), ("6", "4", 4), ("0", "3", 3)],
)
def test_new_drift_is_the_result_after_the_alerts(checkout: Path, report: str, alerts: str, code: int) -> None:
    found, calls = run(checkout, **TOKEN, REPORT=report, ALERTS=alerts)
    assert (found, len(calls)) == (code, 2)


def test_a_run_that_did_not_end_makes_no_alerts_and_leaves_no_old_report(checkout: Path) -> None:
    (checkout / "build/drift").mkdir(parents=True)
    (checkout / "build/drift/old.patch").touch()
    assert run(checkout, **TOKEN, REPORT="4") == (4, ["drift --out build/drift|"])
    assert not (checkout / "build/drift/old.patch").exists()


def test_the_summary_gets_the_markdown(checkout: Path) -> None:
    summary = checkout / "summary"
    summary.write_text("before\n", encoding="utf-8")
    assert run(checkout, REPORT="6", GITHUB_STEP_SUMMARY=str(summary))[0] == 6
    assert summary.read_text(encoding="utf-8") == "before\n## Drift\n"


def test_a_forced_verdict_is_one_argument_and_no_shell(checkout: Path) -> None:
    forced = "a@1=CONFLICT $(touch pwned); touch pwned"
    _, calls = run(checkout, **TOKEN, DRIFT_FORCE=forced)
    assert calls == [f"drift --out build/drift --force={forced}|", f"drift --issues --force={forced}|t"]
    assert not list(checkout.rglob("pwned"))


def test_the_script_is_bash() -> None:
    assert process.run(("bash", "-n", str(SCRIPT))).code == 0
    assert os.access(SCRIPT, os.X_OK)


@pytest.fixture(scope="module")
def workflow() -> Any:
    return strict_yaml.read(WORKFLOW)


def test_the_workflow_has_the_least_rights(workflow: Any) -> None:
    assert workflow["permissions"] == {"contents": "read", "issues": "write"}
    (job,) = workflow["jobs"].values()
    assert "permissions" not in job
    assert job["timeout-minutes"] == 30
    assert job["steps"][0]["with"] == {"persist-credentials": False}


def test_nothing_is_put_into_a_shell_line(workflow: Any) -> None:
    runs = [step for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert [step["run"] for step in runs] == ["ci/drift"]
    assert runs[0]["env"]["DRIFT_FORCE"] == "${{ inputs.force }}"


def test_the_files_are_kept_when_there_is_drift(workflow: Any) -> None:
    (job,) = workflow["jobs"].values()
    last = job["steps"][-1]
    assert last["if"] == "${{ !cancelled() }}"
    assert last["with"]["path"] == "build/drift"
