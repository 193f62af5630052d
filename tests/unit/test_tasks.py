from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from invoke.program import Program

from conftest import TOY_BEFORE, TOY_PATH
from kiln import __version__, catalog, errors, plan, process, report
from kiln.errors import Finding
from kiln.smoke.records import CheckResult, SmokeResult
from kiln.tasks import namespace, program, show
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Callable

    Edit = Callable[[str, str, str], None]

SOURCE = Path(__file__).resolve().parents[2] / "src"
CATALOG = catalog.load(Path(__file__).resolve().parents[2])
TARGET = ("--variant", "mxfp8", "--arch", "gfx942")
TASKS = [
    "build",
    "check",
    "drift",
    "engine.down",
    "engine.status",
    "engine.up",
    "image.diff",
    "lint",
    "lock.images",
    "lock.twin",
    "patch.apply",
    "patch.edit",
    "patch.explain",
    "patch.export",
    "patch.lint",
    "patch.new",
    "patch.pack",
    "patch.port",
    "patch.prove",
    "patch.revert",
    "patch.status",
    "patch.verify",
    "plan",
    "publish",
    "run",
    "smoke",
    "test",
    "verify",
]
FLAGS = " (arguments are flags: --variant mxfp8)"
PACK_FLAGS = "--arch, --json, --model, --out, --release, --variant"
NEXT = "\n  next: kiln --list, or kiln TASK --help\n"


@pytest.fixture(autouse=True)
def in_the_copy(catalog_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(catalog_copy)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)  # Invoke changes it


def kiln(*argv: str) -> process.Result:
    """Run the program as a person does."""
    return process.run(process.python("-m", "kiln", *argv), env=os.environ | {"PYTHONPATH": str(SOURCE)})


class Ran:
    """Runs the program in this process: (exit code, stdout, stderr)."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        return self._end_of(program.KilnProgram, argv)

    def plain(self, *argv: str) -> tuple[int, str, str]:
        """Run the tasks as plain `invoke` does."""
        return self._end_of(Program, argv)

    def _end_of(self, kind: type[Program], argv: tuple[str, ...]) -> tuple[int, str, str]:
        made = kind(name="Kiln", binary="kiln", version=__version__, namespace=namespace())
        code: object = 0
        try:
            made.run(["kiln", *argv])
        except SystemExit as end:
            code = end.code
        assert isinstance(code, int)
        return code, *self._capsys.readouterr()


@pytest.fixture
def ran(capsys: pytest.CaptureFixture[str]) -> Ran:
    return Ran(capsys)


def expected_plan(root: Path) -> dict[str, object]:
    made = plan.make(catalog.load(root), variant="mxfp8", arch="gfx942")
    found = json.loads(report.as_json(made.as_data()))
    assert isinstance(found, dict)
    return found


# as a person runs it


def test_plan_as_json_is_json_and_nothing_else(catalog_copy: Path) -> None:
    found = kiln("plan", *TARGET, "--json")
    assert (found.code, found.stderr) == (0, "")
    assert json.loads(found.stdout) == expected_plan(catalog_copy)


def test_a_wrong_catalog_is_exit_code_2_and_one_message(edit: Edit) -> None:
    edit("patches/series.yaml", "order:", "ordr:")
    assert kiln("plan", *TARGET, "--json") == process.Result(
        code=2,
        stdout="",
        stderr=(
            "✗ patches/series.yaml: order: missing\n"
            "patches/series.yaml: ordr: unknown key 'ordr'; did you mean 'order'?\n"
        ),
    )


# the same program, in this process


def test_list_names_every_task(ran: Ran) -> None:
    code, out, err = ran("--list")
    assert (code, err) == (0, "")
    assert sorted(line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " ") == TASKS


def test_every_flag_is_explained() -> None:
    """In a process of its own, because Invoke forgets the help of a flag once it was asked for."""
    found = kiln("build", "--help")
    assert (found.code, found.stderr) == (0, "")
    assert found.stdout.startswith("Usage: kiln [--core-opts] build ")
    flags = [line for line in found.stdout.splitlines() if line.startswith("  -")]
    assert len(flags) == 15
    assert not [line for line in flags if len(line.strip().split("  ")) < 2], "a flag without a word of help"


def test_version(ran: Ran) -> None:
    assert ran("--version") == (0, f"Kiln {__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("plna",), "✗ unknown task 'plna'; did you mean 'plan'?" + FLAGS),
        (("zzzzz",), f"✗ unknown task 'zzzzz'; known: {', '.join(TASKS)}{FLAGS}"),
        (("plan", "--varian", "mxfp8"), "✗ unknown option '--varian'; did you mean '--variant'?"),
        (("--zzzzz",), "✗ unknown option '--zzzzz'"),
        (("--variant", "mxfp8", "plan"), "✗ unknown option '--variant'; it belongs after a task: kiln TASK --variant"),
        (("--verison",), "✗ unknown option '--verison'; did you mean '--version'?"),
        (("plan", "--hlep"), "✗ unknown option '--hlep'; did you mean '--help'?"),
        (("lint", "--variant", "x"), "✗ unknown option '--variant'; lint takes --json"),
        (("check", "--zzz"), "✗ unknown option '--zzz'; check takes none"),
        (("patch.pack", "-r", "0.31.0"), f"✗ unknown option '-r'; patch.pack takes {PACK_FLAGS}"),
    ],
)
def test_a_mistyped_command_line_is_exit_code_2(ran: Ran, argv: tuple[str, ...], message: str) -> None:
    assert ran(*argv) == (2, "", message + NEXT)


def test_a_flag_without_its_value_is_exit_code_2(ran: Ran) -> None:
    code, out, err = ran("plan", "--variant")
    assert (code, out) == (2, "")
    assert err.startswith("✗ --variant needs a value\n")
    assert err.endswith(NEXT)


def test_plan_without_a_target_asks_for_one(ran: Ran) -> None:
    code, out, err = ran("plan")
    assert (code, out) == (2, "")
    assert err.startswith("✗ --variant is missing; known: bf16, mxfp8, mxfp8-block, nvfp4, mxfp4\n--arch is missing; ")
    assert err.endswith("\n  next: see what there is: ./inv plan --list\n")


def test_a_target_that_cannot_be_is_refused_before_anything_is_done(ran: Ran) -> None:
    refused = (
        "✗ nvfp4 cannot run on gfx942; it runs on: sm100 (b200); sm103 (b300)\n"
        "  next: see every target there is: ./inv plan --list\n"
    )
    for task in ("plan", "build", "smoke"):
        assert ran(task, "--variant", "nvfp4", "--arch", "gfx942", "--json") == (2, "", refused)


def test_plan_for_a_person(ran: Ran) -> None:
    code, out, err = ran("plan", *TARGET)
    assert (code, err) == (0, "")
    rows = {line.split("  ")[0]: line.rsplit("  ", 1)[-1].strip() for line in out.splitlines() if "  " in line}
    assert rows["target"] == "minimax-m3-mxfp8-gfx942-0.31.0"
    assert rows["arch"] == "gfx942 (mi300x)"
    assert rows["patch gfx942-index-topk-pin"] == "edition 0.31.0: One index top-k tile on gfx942"
    assert rows["--tensor-parallel-size 8"] == "strategy.single_node_tp"
    assert rows["VLLM_USE_BREAKABLE_CUDAGRAPH=0"] == "hardware_overrides.amd"
    assert "\x1b" not in out


def test_plan_of_a_release_without_digest_and_twin_says_so(ran: Ran) -> None:
    code, out, _ = ran("plan", *TARGET, "--release", "0.33.0")
    assert code == 0
    rows = {line.split("  ")[0]: line.rsplit("  ", 1)[-1].strip() for line in out.splitlines() if "  " in line}
    assert rows["digest"] == "unknown: a build refuses a bare tag"
    assert rows["twin"] == "none: no CPU wheel of this release has been published yet"


def test_plan_list(ran: Ran, catalog_copy: Path) -> None:
    code, out, err = ran("plan", "--list", "--json")
    assert (code, err) == (0, "")
    names = ("model", "variant", "arch", "release")
    targets = list(plan.possible(catalog.load(catalog_copy)))
    rows = json.loads(out)
    twins = [dict(zip(names, target, strict=True)) | {"twin": target[3] == "0.31.0"} for target in targets]
    assert [{key: row[key] for key in row if key != "refused"} for row in rows] == twins
    assert any(row["refused"] for row in rows)
    assert not all(row["refused"] for row in rows)
    code, out, err = ran("plan", "--list")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 1 + len({target[:3] for target in targets})
    cells = {tuple(cell.strip() for cell in line.split("  ") if cell.strip()) for line in out.splitlines()}
    model, newest = "MiniMaxAI/MiniMax-M3", "0.30.0, 0.31.0 (twin), 0.32.0, 0.33.0"
    since = "0.25.0, 0.25.1, 0.26.0, 0.27.0, 0.27.1, 0.28.0, 0.29.0"
    assert (model, "nvfp4", "sm100", f"0.24.0, {since}, {newest}") in cells
    assert (model, "mxfp4", "gfx950", f"0.24.0, {since}, {newest}") in cells


def test_plan_list_of_some_targets(ran: Ran) -> None:
    code, out, err = ran("plan", "--list", "--variant", "mxfp4", "--arch", "mi355x", "--release", "0.31.0", "--json")
    assert (code, err) == (0, "")
    row = {"model": "MiniMaxAI/MiniMax-M3", "variant": "mxfp4", "arch": "gfx950", "release": "0.31.0", "twin": True}
    assert json.loads(out) == [row | {"refused": []}]
    code, out, err = ran("plan", "--list", "--arch", "sm90")
    assert (code, {line.split()[2] for line in out.splitlines()}) == (0, {"arch", "sm90"})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ("--variant", "MXFP8", "--arch", "gfx94", "--release", "1", "--model", "m"),
            (
                "unknown model 'm'; known: MiniMaxAI/MiniMax-M3\n"
                "unknown variant 'MXFP8'; did you mean 'mxfp8'?\n"
                "unknown arch 'gfx94'; did you mean 'gfx942'?\n"
                f"unknown release '1'; known: {', '.join(CATALOG.releases.releases)}"
            ),
        ),
        (("--variant", "nvfp4", "--arch", "mi300x"), "no target has variant nvfp4 and arch mi300x"),
    ],
)
def test_plan_list_of_no_target_is_refused(ran: Ran, argv: tuple[str, ...], message: str) -> None:
    refused = f"✗ {message}\n  next: see every target there is: ./inv plan --list\n"
    assert ran("plan", "--list", *argv) == (2, "", refused)


def test_lint_says_what_it_could_not_check(ran: Ran, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    edit("patches/m3-stream-first-delta/patch.yaml", '">=0.25.0"', '">=0.24.0"')
    code, out, err = ran("lint")
    editions = sum(len(patch.editions) for patch in CATALOG.patches.values())
    assert (code, err) == (6, f"✗ {editions + 1} findings\n")
    covered = "patches/m3-stream-first-delta/patch.yaml: applies.releases: covers 0.24.0, which has no edition"
    lines = [line for line in out.splitlines() if not line.startswith("  next: ")]
    assert lines[0] == covered
    assert len(lines[1:]) == editions
    assert all(": could not be checked against the files of vllm-" in line for line in lines[1:])


def test_a_dry_run_rehearses_and_builds_nothing(ran: Ran, toy_catalog: Path) -> None:
    loaded = catalog.load(toy_catalog)
    pin = loaded.releases.releases["0.31.0"].wheel
    wheel.keep(
        pin,
        "vllm/toy.py",
        b"# one\n# two\n# three\nWORD = 'before'\n# five\n# six\n# seven\n",
        cache=loaded.state / "wheels",
    )
    code, out, err = ran("build", *TARGET, "--dry-run", "--json")
    assert code == 0
    assert err.startswith("… rehearse "), "progress is shown beside JSON"
    assert json.loads(out) == expected_plan(toy_catalog)
    assert not (toy_catalog / "build").exists()
    wheel.keep(pin, "vllm/toy.py", b"WORD = 'other'\n", cache=loaded.state / "wheels")
    code, out, err = ran("build", *TARGET, "--dry-run")
    assert (code, out) == (5, "")
    assert "patch toy: " in err
    assert "  next: nothing was built; compare patches/toy/0.31.0.patch with patch.yaml" in err


def test_plan_all_shows_the_matrix(ran: Ran) -> None:
    code, out, err = ran("plan", "--all", "--arch", "gfx942", "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["target"] for row in rows] == ["minimax-m3-bf16-gfx942-0.31.0", "minimax-m3-mxfp8-gfx942-0.31.0"]
    assert [row["refused"] for row in rows] == [[], []]
    code, alone, _ = ran("plan", *TARGET, "--json")
    assert json.loads(alone) == rows[1]["plan"]
    code, out, err = ran("plan", "--all", "--arch", "gfx942")
    assert (code, err, len(out.splitlines())) == (0, "", 3)
    assert out.splitlines()[2].endswith("m3-stream-first-delta, m3-reasoning-prompt-marker")


def test_a_dry_run_of_all_has_a_row_for_each_and_the_worst_exit_code(ran: Ran, toy_catalog: Path) -> None:
    loaded = catalog.load(toy_catalog)
    pin = loaded.releases.releases["0.31.0"].wheel
    wheel.keep(pin, TOY_PATH, TOY_BEFORE, cache=loaded.state / "wheels")
    code, out, err = ran("build", "--all", "--arch", "gfx942", "--dry-run", "--json")
    assert code == 0
    assert {line.partition(" | ")[0] for line in err.splitlines()} == {row["target"] for row in json.loads(out)}
    assert [row["outcome"] for row in json.loads(out)] == ["rehearsed", "rehearsed"]
    wheel.keep(pin, TOY_PATH, b"WORD = 'other'\n", cache=loaded.state / "wheels")
    code, out, err = ran("build", "--all", "--arch", "gfx942", "--dry-run")
    assert code == 5
    assert [line.split()[1] for line in out.splitlines()[1:]] == ["failed", "failed"]
    assert "✗ 2 of 2 targets were refused or failed: " in err
    for flags in (("--all", "--arch", "gfx942"), (*TARGET, "--dry-run")):
        code, out, err = ran("build", *flags, "--jobs", "none")
        assert (code, out) == (2, "")
    code, out, err = ran("plan", "--all", "--list")
    assert (code, out) == (2, "")


def test_a_twin_of_a_release_that_has_none_is_refused(ran: Ran) -> None:
    code, out, err = ran("build", *TARGET, "--release", "0.33.0", "--twin", "--dry-run")
    assert (code, out) == (2, "")
    assert err.startswith("✗ release 0.33.0 has no twin: no CPU wheel of this release has been published yet\n  next: ")


def test_locking_a_twin_of_an_unknown_release(ran: Ran) -> None:
    code, out, err = ran("lock.twin", "--release", "0.33.0")
    assert (code, out) == (2, "")
    assert err == "✗ release 0.33.0 has no twin to lock; releases with one: 0.31.0\n"


def test_an_interrupt_is_exit_code_130(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "make", interrupted)
    assert ran("plan", *TARGET) == (130, "", "interrupted; containers and half-made files have been removed\n")


def test_a_termination_undoes_what_was_begun_and_is_exit_code_143(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    children, undone = [], []

    def serve(line: str) -> None:
        children.append(int(line))
        os.kill(os.getpid(), signal.SIGTERM)

    def terminated(*_: object, **__: object) -> None:
        try:
            process.show(("sh", "-c", "echo $$; exec sleep 60"), line=serve)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one, in the midst of cleaning up
            undone.append(True)

    monkeypatch.setattr(plan, "make", terminated)
    before = signal.getsignal(signal.SIGTERM)
    assert ran("plan", *TARGET) == (143, "", "terminated; containers and half-made files have been removed\n")
    assert signal.getsignal(signal.SIGTERM) == before
    assert undone == [True]
    assert not Path(f"/proc/{children[0]}").exists()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_system_refuses_is_one_sentence(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(plan, "make", refused)
    assert ran("plan", *TARGET) == (2, "", f"✗ {message}\n")
    assert ran.plain("plan", *TARGET) == (2, "", f"✗ {message}\n")
    monkeypatch.setattr(program.KilnProgram, "parse_cleanup", refused)
    assert ran("--list") == (2, "", f"✗ {message}\n")


def test_a_home_that_cannot_be_made_is_one_sentence(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILN_HOME", "/proc/nope")
    monkeypatch.setenv("KILN_ENGINE", "embedded")
    assert ran("engine.up") == (2, "", "✗ /proc/nope: No such file or directory\n")


def test_a_reader_that_had_enough_gets_silence(catalog_copy: Path, tmp_path: Path) -> None:
    script = f'(sleep 0.3; exec {sys.executable} -m "$0" "$@" 2>err) | true; echo "${{PIPESTATUS[0]}}"'
    folder = tmp_path / "plain"
    folder.mkdir()
    shutil.copy(SOURCE.parent / "tasks.py", folder)
    plain = ("invoke", f"--search-root={folder}")
    for argv in (("kiln", "plan", "--list"), ("kiln", "--list"), (*plain, "plan", "--list")):
        found = process.run(("bash", "-c", script, *argv), env=os.environ | {"PYTHONPATH": str(SOURCE)})
        assert (found.stdout, (catalog_copy / "err").read_text(encoding="utf-8")) == ("141\n", ""), argv


@pytest.mark.parametrize("argv", ["plan --list", "--list"])
def test_a_full_disk_behind_stdout_is_one_sentence(argv: str) -> None:
    command = ("bash", "-c", f"exec {sys.executable} -m kiln {argv} >/dev/full")
    found = process.run(command, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert (found.code, found.stderr) == (2, "✗ No space left on device\n")


def test_a_damaged_environment_says_so(tmp_path: Path, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "invoke.py").write_text("import pydantic_nope\n", encoding="utf-8")
    env = os.environ | {"PYTHONPATH": f"{tmp_path}:{SOURCE}"}
    found = process.run(process.python("-m", "kiln", "--list"), env=env)
    assert (found.code, found.stdout, len(found.stderr.splitlines())) == (3, "", 2)
    assert "is damaged: pydantic_nope cannot be imported\n  next: " in found.stderr

    def lost(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'requests.x'", name="requests.x")

    monkeypatch.setattr(plan, "make", lost)
    code, out, err = ran("plan", *TARGET)
    assert (code, out) == (3, "")
    assert "is damaged: requests.x cannot be imported\n  next: " in err


def test_an_import_that_is_a_bug_keeps_its_traceback(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ImportError("cannot import name 'x' from 'kiln.plan'", name="kiln.plan")

    monkeypatch.setattr(plan, "make", lost)
    with pytest.raises(ImportError):
        ran("plan", *TARGET)


def test_the_program_is_called_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kiln("zzz").stderr.endswith("next: kiln --list, or kiln TASK --help\n")
    monkeypatch.setenv("KILN_PROGRAM", "./inv")
    assert kiln("zzz").stderr.endswith("next: ./inv --list, or ./inv TASK --help\n")


def test_no_flag_is_short() -> None:
    flags = {flag for context in namespace().to_contexts() for flag in context.flags}
    assert "--variant" in flags
    assert {flag for flag in flags if not flag.startswith("--")} == set()


def test_purging_says_what_it_removed(catalog_copy: Path, ran: Ran) -> None:
    home = catalog_copy / ".kiln/engine"
    none = "no embedded engine was running\n"
    assert ran("engine.down", "--purge") == (0, f"{none}nothing to remove: there is no {home}\n", "")
    home.mkdir(parents=True)
    code, out, _ = ran("engine.down", "--purge")
    assert (code, out) == (0, f"{none}removed {home}: packages, images and caches\n")
    assert not home.exists()


def test_a_bug_keeps_its_traceback(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "make", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ran("plan", *TARGET)


# what a smoke run prints


def smoke(*checks: CheckResult) -> SmokeResult:
    return SmokeResult(image="sha256:" + "0" * 64, puppet="p", started="", seconds=1.5, checks=checks)


PASSED = CheckResult(tier="replay", name="streams", status="passed", seconds=0.5)
FAILED = CheckResult(tier="serve", name="tools", status="failed", findings=(Finding(where="call", problem="lost"),))
NOT_RUN = CheckResult(tier="device", name="fast path", status="not_run", reason="no GPU")


def test_a_smoke_run_that_passed(capsys: pytest.CaptureFixture[str]) -> None:
    show.show_smoke(smoke(PASSED, NOT_RUN), Path("e.json"), json=False)
    assert capsys.readouterr().out.splitlines() == [
        "tier    check      verdict",
        "replay  streams    passed   0.50s",
        "device  fast path  NOT_RUN  no GPU",
        "1 passed, 0 FAILED, 1 NOT_RUN on sha256:000000000000 in 1.5 s; evidence: e.json",
    ]


@pytest.mark.parametrize("checks", [(PASSED, FAILED), (NOT_RUN,), ()])
def test_a_smoke_run_that_did_not_pass_is_exit_code_7(
    checks: tuple[CheckResult, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(errors.SmokeFailed) as caught:
        show.show_smoke(smoke(*checks), Path("e.json"), json=True)
    assert caught.value.exit_code == 7
    assert json.loads(capsys.readouterr().out)["passed"] is False


@pytest.mark.parametrize(
    "argv",
    [
        ("patch.export", "--check", "gfx942-index-topk-pn"),
        ("patch.export", "--check", "--release", "0.31.0", "gfx942-index-topk-pn", "--json"),
        ("patch.export", "gfx942-index-topk-pn", "--check"),
        ("patch.explain", "--json", "gfx942-index-topk-pn"),
    ],
)
def test_a_bare_id_may_stand_after_flags(ran: Ran, argv: tuple[str, ...]) -> None:
    code, _, err = ran(*argv)
    assert code == 2
    assert "unknown patch 'gfx942-index-topk-pn'; did you mean 'gfx942-index-topk-pin'?" in err


def test_a_second_bare_word_is_no_id_and_a_value_is_none_either(ran: Ran) -> None:
    code, _, err = ran("patch.explain", "gfx942-index-topk-pin", "more")
    assert (code, "unknown task 'more'" in err) == (2, True)
    code, _, err = ran("patch.explain", "--id", "gfx942-index-topk-pin", "more")
    assert (code, "unknown task 'more'" in err) == (2, True)
    code, _, err = ran("patch.edit", "--release", "0.31")
    assert (code, "--id is missing; known: " in err) == (2, True)


def test_what_is_missing_is_named_by_its_flag(ran: Ran, tmp_path: Path) -> None:
    code, _, err = ran("patch.port", "gfx942-index-topk-pin")
    assert (code, "--to is missing; known: " in err) == (2, True)
    (tmp_path / "x.diff").touch()
    code, _, err = ran("patch.new", "--from", str(tmp_path / "x.diff"))
    assert (code, "✗ --id is missing: the name of the new patch\n" in err) == (2, True)
