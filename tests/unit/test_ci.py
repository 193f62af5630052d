"""The scripts of ci/ with a stub ./inv that notes how it is called, and their workflows as data."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from kiln import process
from kiln.catalog import strict_yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("build", "pins", "release")
# seen under these commits in ten public repositories each
ACTIONS = {
    "actions/checkout": "08c6903cd8c0fde910a37f88322edcfb5dd907a8",
    "actions/upload-artifact": "b7c566a772e6b6bfb58ed0dc250532a479d7789f",
    "sigstore/cosign-installer": "faadad0cce49287aee09b3a48701e75088a2c6ad",
}
TARGET = ("--variant", "mxfp8", "--arch", "gfx942")
SETTINGS = ("KILN_TO", "KILN_KEY", "KILN_IDENTITY", "KILN_ISSUER", "KILN_WAIVER", "KILN_BASES", "GH_TOKEN")

INV = """\
#!/usr/bin/env bash
echo "$*" >>calls
[[ $1 != lock || -z ${CHANGED:-} ]] || echo '{"new": true}' >images/lock.json
[[ $1 != "${FAILS:-}" ]] || exit "${CODE:-1}"
"""
GH = """\
#!/usr/bin/env bash
echo "gh $*" >>"$CALLS"
[[ "$1 $2" != "pr list" ]] || echo "${KNOWN:-}"
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a git checkout with the real scripts, and stubs of ./inv and gh."""
    root = tmp_path / "checkout"
    (root / "images").mkdir(parents=True)
    (root / "images/lock.json").write_text("{}\n", encoding="utf-8")
    shutil.copytree(ROOT / "ci", root / "ci")
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for path, text in ((root / "inv", INV), (bin_folder / "gh", GH)):
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(root / "calls"))
    origin = tmp_path / "origin.git"
    for argv in (
        ("git", "init", "--quiet", "--bare", str(origin)),
        ("git", "init", "--quiet", "--initial-branch=main", str(root)),
        ("git", "-C", str(root), "add", "images"),
        ("git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@example.com", "commit", "-qm", "lock"),
        ("git", "-C", str(root), "remote", "add", "origin", str(origin)),
    ):
        process.ask(argv)
    return root


def run(checkout: Path, script: str, *words: str, **env: str) -> tuple[int, list[str]]:
    result = process.run((str(checkout / "ci" / script), *words), env=os.environ | env, timeout_s=20)
    calls = checkout / "calls"
    return result.code, calls.read_text(encoding="utf-8").splitlines() if calls.exists() else []


def test_every_change_is_linted_and_rehearsed_and_nothing_is_pushed(checkout: Path) -> None:
    assert run(checkout, "build") == (0, ["lint", "plan --all", "build --all --dry-run"])


def test_with_a_repository_every_target_is_built_thin(checkout: Path) -> None:
    _, calls = run(checkout, "build", KILN_TO="registry.example.com/m3")
    assert calls[-1] == "build --all --thin --to=registry.example.com/m3"


@pytest.mark.parametrize("task", ["lint", "plan", "build"])
def test_a_task_that_fails_ends_the_build(checkout: Path, task: str) -> None:
    code, calls = run(checkout, "build", FAILS=task, CODE="6", KILN_TO="registry.example.com/m3")
    assert (code, calls[-1].split()[0]) == (6, task)


def test_a_release_is_built_smoked_and_published_with_a_key(checkout: Path) -> None:
    settings = {"KILN_TO": "registry.example.com/m3", "KILN_KEY": "a key", "KILN_WAIVER": "w.yaml"}
    words = " ".join(TARGET)
    assert run(checkout, "release", *TARGET, **settings) == (
        0,
        [
            f"build {words}",
            f"smoke {words}",
            f"publish {words} --to=registry.example.com/m3 --key=a key --waiver=w.yaml",
        ],
    )


def test_a_release_is_signed_keyless_with_who_and_by_whom(checkout: Path) -> None:
    settings = {"KILN_TO": "registry.example.com/m3", "KILN_IDENTITY": "me", "KILN_ISSUER": "https://issuer"}
    _, calls = run(checkout, "release", *TARGET, **settings)
    assert calls[-1].endswith("--keyless --identity=me --issuer=https://issuer")


@pytest.mark.parametrize(
    "settings",
    [{}, {"KILN_TO": "registry.example.com/m3"}, {"KILN_TO": "registry.example.com/m3", "KILN_IDENTITY": "me"}],
    ids=("no-repository", "unsigned", "no-issuer"),
)
def test_a_release_without_where_to_or_a_signature_begins_nothing(checkout: Path, settings: dict[str, str]) -> None:
    code, calls = run(checkout, "release", *TARGET, **settings)
    assert code
    assert calls == []


@pytest.mark.parametrize("task", ["build", "smoke", "publish"])
def test_what_fails_ends_the_release(checkout: Path, task: str) -> None:
    settings = {"KILN_TO": "registry.example.com/m3", "KILN_KEY": "k", "FAILS": task, "CODE": "7"}
    code, calls = run(checkout, "release", *TARGET, **settings)
    assert (code, calls[-1].split()[0]) == (7, task)


LOCK = "lock --update --strict"
TOKEN = {"GH_TOKEN": "t", "CHANGED": "yes"}


def test_pins_that_did_not_change_are_not_proposed(checkout: Path) -> None:
    assert run(checkout, "pins", GH_TOKEN="t") == (0, [LOCK])  # noqa: S106


def test_changed_pins_are_pushed_as_one_commit_and_proposed(checkout: Path) -> None:
    code, calls = run(checkout, "pins", **TOKEN)
    assert code == 0
    assert [call.split(" --")[0] for call in calls] == ["lock", "gh auth setup-git", "gh pr list", "gh pr create"]
    changed = process.ask(("git", "-C", str(checkout), "show", "--name-only", "--format=", "origin/pins")).split()
    assert changed == ["images/lock.json"]


def test_a_proposal_that_there_is_is_written_anew(checkout: Path) -> None:
    assert run(checkout, "pins", **TOKEN, KNOWN="7")[1][-1] == "gh pr edit 7 --body-file build/pins.md"


def test_bases_are_read_release_by_release(checkout: Path) -> None:
    _, calls = run(checkout, "pins", KILN_BASES="0.30.0 0.31.0")
    assert calls == [LOCK, "lock --bases --release 0.30.0", "lock --bases --release 0.31.0"]


def test_without_a_token_changed_pins_stay_here(checkout: Path) -> None:
    assert run(checkout, "pins", CHANGED="yes") == (0, [LOCK])


@pytest.mark.parametrize(("code", "proposed"), [("6", True), ("3", False), ("2", False)])
def test_a_moved_tag_is_red_and_what_was_confirmed_is_proposed(checkout: Path, code: str, *, proposed: bool) -> None:
    found, calls = run(checkout, "pins", **TOKEN, FAILS="lock", CODE=code)
    assert (found, len(calls) > 1) == (int(code), proposed)


@pytest.fixture(scope="module", params=(*SCRIPTS, "drift"))
def workflow(request: pytest.FixtureRequest) -> Any:
    return strict_yaml.read(ROOT / f".github/workflows/{request.param}.yml")


def steps(workflow: Any) -> list[Any]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_actions_are_pinned_by_commit(workflow: Any) -> None:
    for name in (step["uses"] for step in steps(workflow) if "uses" in step):
        action, _, commit = name.partition("@")
        assert ACTIONS[action] == commit


def test_the_checkout_keeps_no_credentials_and_jobs_end(workflow: Any) -> None:
    assert all(step["with"]["persist-credentials"] is False for step in steps(workflow) if "checkout" in str(step))
    assert all(job["timeout-minutes"] for job in workflow["jobs"].values())


def test_nothing_of_a_person_is_put_into_a_shell_line(workflow: Any) -> None:
    for line in (step["run"] for step in steps(workflow) if "run" in step):
        assert "${{" not in line
        assert re.match(r"(ci/[a-z]+|docker log(in|out)) ?", line)


def test_the_scripts_are_bash_and_can_be_run() -> None:
    for script in SCRIPTS:
        assert process.run(("bash", "-n", str(ROOT / "ci" / script))).code == 0
        assert os.access(ROOT / "ci" / script, os.X_OK)
