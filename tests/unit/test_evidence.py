from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kiln import __version__, catalog, plan, process
from kiln.errors import Finding
from kiln.publish import evidence
from kiln.smoke.records import CheckResult, SmokeResult

if TYPE_CHECKING:
    from pathlib import Path

PASSED = CheckResult(tier="replay", name="streams", status="passed", seconds=0.5)
FAILED = CheckResult(
    tier="serve", name="tools", status="failed", findings=(Finding(where="call 1", problem="é", hint="h"),)
)
NOT_RUN = CheckResult(tier="device", name="fast path", status="not_run", reason="no GPU")


def result(*checks: CheckResult) -> SmokeResult:
    return SmokeResult(image="sha256:0", puppet="p", started="2026-01-01T00:00:00Z", seconds=1.5, checks=checks)


def test_the_whole_record(toy_catalog: Path) -> None:
    made = plan.make(catalog.load(toy_catalog), variant="mxfp8", arch="gfx942")
    folder = toy_catalog / "build" / made.target.slug
    path = evidence.write(folder, made, result(PASSED, FAILED, NOT_RUN), kind="twin")
    assert path == folder / "twin-evidence.json"
    assert [file.name for file in folder.iterdir()] == ["twin-evidence.json"]
    check = {"findings": [], "reason": "", "seconds": 0.0}
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "schema": 1,
        "kiln": __version__,
        "target": "minimax-m3-mxfp8-gfx942-0.31.0",
        "kind": "twin",
        "image_digest": "sha256:0",
        "commit": "none",
        "dirty": True,
        "passed": False,
        "not_run": ["device/fast path: no GPU"],
        "recipe_sha256": evidence.recipe_sha256(made),
        "series": [{"id": "toy", "edition_sha256": made.series[0].sha256}],
        "smoke": {
            "image": "sha256:0",
            "puppet": "p",
            "started": "2026-01-01T00:00:00Z",
            "seconds": 1.5,
            "checks": [
                check | {"tier": "replay", "name": "streams", "status": "passed", "seconds": 0.5},
                check
                | {"tier": "serve", "name": "tools", "status": "failed"}
                | {"findings": [{"where": "call 1", "problem": "é", "hint": "h"}]},
                check | {"tier": "device", "name": "fast path", "status": "not_run", "reason": "no GPU"},
            ],
        },
    }
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_a_run_in_which_nothing_was_checked_has_not_passed() -> None:
    assert [result(*checks).passed for checks in ((), (NOT_RUN,), (PASSED, NOT_RUN), (PASSED, FAILED))] == [
        False,
        False,
        True,
        False,
    ]


def test_a_second_run_replaces_the_first(toy_catalog: Path) -> None:
    made = plan.make(catalog.load(toy_catalog), variant="mxfp8", arch="gfx942")
    evidence.write(toy_catalog / "build", made, result(FAILED), kind="twin")
    path = evidence.write(toy_catalog / "build", made, result(PASSED), kind="twin")
    assert json.loads(path.read_text(encoding="utf-8"))["passed"] is True


@pytest.mark.parametrize("edited", ["images/releases.yaml", "src/kiln/smoke/checks.py", "recipes/new.yaml"])
def test_the_commit_is_noted_and_whether_anything_was_edited_since(toy_catalog: Path, edited: str) -> None:
    git = ("git", "-C", str(toy_catalog), "-c", "user.name=Test", "-c", "user.email=test@example.invalid")
    (toy_catalog / ".gitignore").write_text("build/\n", encoding="utf-8")
    path = toy_catalog / "src/kiln/smoke/checks.py"
    path.parent.mkdir(parents=True)
    path.write_text("", encoding="utf-8")
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=all")):
        process.ask((*git, *words))
    made = plan.make(catalog.load(toy_catalog), variant="mxfp8", arch="gfx942")

    def noted() -> tuple[str, bool]:
        evidence.write(toy_catalog / "build/x", made, result(PASSED), kind="twin")
        found = evidence.read(toy_catalog / "build/x", "twin")
        assert found
        return found.commit, found.dirty

    head = process.ask((*git, "rev-parse", "HEAD")).strip()
    assert noted() == (head, False)
    with (toy_catalog / edited).open("a", encoding="utf-8") as file:
        file.write("\n# more\n")
    assert noted() == (head, True)
