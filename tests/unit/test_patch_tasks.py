from __future__ import annotations

import base64
import hashlib
import json
import sys
from typing import TYPE_CHECKING

import pytest

from kiln import __version__, catalog, errors, git
from kiln.errors import Finding
from kiln.patching.outcomes import FileReport, Outcome, PatchReport, SeriesReport
from kiln.tasks import namespace, program, show_patch
from kiln.trees import Answer
from kiln.upstream import wheel

if TYPE_CHECKING:
    from pathlib import Path

PATH = "vllm/toy.py"
BEFORE = b"# one\n# two\n# three\nWORD = 'before'\n# five\n# six\n# seven\n"
AFTER = BEFORE.replace(b"before", b"after")
TARGET = ("--variant", "mxfp8", "--arch", "gfx942")


class Ran:
    """Runs the program in this process: (exit code, stdout, stderr)."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str) -> tuple[int, str, str]:
        made = program.KilnProgram(name="Kiln", binary="kiln", version=__version__, namespace=namespace())
        code: object = 0
        try:
            made.run(["kiln", *argv])
        except SystemExit as end:
            code = end.code
        assert isinstance(code, int)
        return code, *self._capsys.readouterr()


@pytest.fixture
def ran(toy_catalog: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Run in the toy's catalog: canonical, with its probe, its pristine file at hand."""
    monkeypatch.chdir(toy_catalog)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)  # Invoke changes it
    (toy_catalog / "patches/toy/probe.py").write_text("")
    (toy_catalog / "patches/toy/tests").mkdir()
    edition, described = toy_catalog / "patches/toy/0.31.0.patch", toy_catalog / "patches/toy/patch.yaml"
    old, new = edition.read_bytes(), git.diff({PATH: BEFORE}, {PATH: AFTER})
    edition.write_bytes(new)
    described.write_text(
        described.read_text().replace(hashlib.sha256(old).hexdigest(), hashlib.sha256(new).hexdigest())
    )
    loaded = catalog.load(toy_catalog)
    pin = loaded.releases.releases["0.31.0"].wheel
    wheel.keep(pin, PATH, BEFORE, cache=loaded.state / "wheels")
    return Ran(capsys)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site-packages that holds the toy."""
    folder, info = tmp_path / "venv/lib/python3.12/site-packages", "vllm-0.31.0.dist-info"
    files = {PATH: BEFORE, f"{info}/METADATA": b"Metadata-Version: 2.4\nName: vllm\nVersion: 0.31.0\n\n"}
    rows = []
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
        rows.append(f"{path},sha256={digest},{len(data)}\n")
    (folder / info / "RECORD").write_text("".join([*rows, f"{info}/RECORD,,\n"]))
    return folder


def test_apply_twice_verify_revert_on_a_venv(ran: Ran, site: Path) -> None:
    root = ("--root", str(site.parents[2]))
    lines = [f"{{:<16}} toy\n{{:<16}}   {PATH}\n", f"vllm 0.31.0 in {site}: "]

    def told(outcome: str) -> str:
        return lines[0].format(outcome, outcome) + lines[1] + outcome + "\n"

    assert ran("patch.apply", *root, *TARGET) == (0, told("APPLIED"), "")
    assert ran("patch.apply", *root, *TARGET) == (0, told("ALREADY_APPLIED"), "")
    assert ran("patch.verify", *root) == (0, told("ALREADY_APPLIED"), "")
    assert ran("patch.status", *root, *TARGET) == (0, told("ALREADY_APPLIED"), "")
    assert ran("patch.revert", *root) == (0, told("REVERTED"), "")
    assert (site / PATH).read_bytes() == BEFORE


def test_json_is_the_engines_report_and_nothing_else(ran: Ran, site: Path) -> None:
    code, out, err = ran("patch.status", "--root", str(site), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["report"]["outcome"] == "UNKNOWN"
    code, out, err = ran("patch.verify", "--root", str(site), "--json")
    assert code == 5
    assert json.loads(out)["exit_code"] == 5
    assert err.startswith(f"✗ vllm 0.31.0 in {site}: UNKNOWN\n  next: ")


def test_a_tampered_file_is_exit_code_5(ran: Ran, site: Path) -> None:
    root = ("--root", str(site))
    assert ran("patch.apply", *root, *TARGET)[0] == 0
    (site / PATH).write_bytes(AFTER + b"#\n")
    code, out, err = ran("patch.verify", *root)
    assert code == 5
    assert f"TARGET_MODIFIED    {PATH}\n" in out
    assert f"expected: {hashlib.sha256(AFTER).hexdigest()}\n" in out
    assert err.startswith(f"✗ vllm 0.31.0 in {site}: TARGET_MODIFIED\n")


def test_no_tree_is_exit_code_2_and_names_the_choices(ran: Ran) -> None:
    for verb in ("apply", "verify", "revert", "status"):
        code, out, err = ran(f"patch.{verb}", *TARGET)
        assert (code, out) == (2, "")
        assert err.startswith("✗ which tree? --root DIR (a venv or its site-packages), --container NAME")


def test_writing_to_an_image_is_exit_code_2_and_says_build(ran: Ran) -> None:
    code, out, err = ran("patch.apply", "--image", "x", *TARGET)
    assert (code, out) == (2, "")
    assert err.endswith("  next: build an image that holds the series: ./inv build --variant VARIANT --arch ARCH\n")


def test_pack(ran: Ran, tmp_path: Path, site: Path) -> None:
    out = tmp_path / "kiln"
    code, text, err = ran("patch.pack", *TARGET, "--out", str(out))
    assert (code, err) == (0, "")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*")) == [
        "kiln-patch.pyz",
        "series",
        "series/series.json",
        "series/toy.patch",
    ]
    assert text.splitlines()[1:] == [
        "  series  toy",
        f"  use     python3 {out}/kiln-patch.pyz apply --series {out}/series && exec vllm serve ...",
    ]
    assert ran("patch.apply", "--root", str(site), "--series", str(out / "series"))[0] == 0
    code, text, _ = ran("patch.pack", *TARGET, "--out", str(out), "--json")
    assert (code, json.loads(text)["patches"]) == (0, ["toy"])
    assert ran("patch.pack", *TARGET)[0] == 2


def test_an_empty_pack_says_so(ran: Ran, tmp_path: Path) -> None:
    _, text, _ = ran("patch.pack", *TARGET, "--release", "0.33.0", "--out", str(tmp_path / "kiln"))
    assert text.splitlines()[1] == "  series  empty: no patch is needed"


def test_lint_finds_nothing_then_everything_at_once(ran: Ran, toy_catalog: Path) -> None:
    clean = "nothing found: 1 patches, every edition as git makes it from the release's files\n"
    assert ran("patch.lint") == (0, clean, "")
    assert ran("lint") == (0, "the catalog holds together: 1 patches, 168 targets\n", "")
    assert ran("lint", "--json") == (0, "[]\n", "")
    (toy_catalog / "patches/toy/probe.py").unlink()
    (toy_catalog / "patches/toy/extra").touch()
    expected = (
        "patches/toy/extra: is none of the files of a patch\n"
        "  next: known: 0.31.0.patch, EVIDENCE.md, patch.yaml, probe.py, tests\n"
        "patches/toy/probe.py: is missing\n"
        "  next: write one that is red without the patch and shows: nothing\n"
    )
    for task in ("lint", "patch.lint"):
        assert ran(task) == (6, expected, "✗ 2 findings\n")
    code, out, err = ran("patch.lint", "--json")
    assert (code, err) == (6, "✗ 2 findings\n")
    assert [row["where"] for row in json.loads(out)] == ["patches/toy/extra", "patches/toy/probe.py"]


def test_a_finding_without_a_hint_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.Findings, match=r"^1 finding$"):
        show_patch.show_findings([Finding(where="a", problem="is b")], "", json=False)
    assert capsys.readouterr().out == "a: is b\n"


# explain


def evidence(root: Path, name: str, patch_id: str, sha256: str, *, passed: bool) -> None:
    folder = root / "build" / "a-target"
    folder.mkdir(parents=True, exist_ok=True)
    series = [{"id": patch_id, "edition_sha256": sha256}]
    data = {"series": series, "passed": passed, "image_digest": "sha256:1"}
    (folder / f"{name}-evidence.json").write_text(json.dumps(data))


def test_explain(ran: Ran, toy_catalog: Path) -> None:
    described = toy_catalog / "patches/toy/patch.yaml"
    text = described.read_text()
    for old, new in (
        ("{status: not-reported}", "{status: merged, links: [https://a/1, https://a/2]}\nupstream_since: 0.33.0"),
        ('{releases: "==0.31.0"}', '{variants: [mxfp8], arches: [gfx942], releases: ">=0.31.0"}'),
    ):
        text = text.replace(old, new)
    described.write_text(text)
    edition = catalog.load(toy_catalog).patches["toy"].editions["0.31.0"].sha256
    evidence(toy_catalog, "twin", "toy", edition, passed=True)
    evidence(toy_catalog, "r", "toy", "0" * 64, passed=False)
    evidence(toy_catalog, "cuda", "other", edition, passed=True)
    code, out, err = ran("patch.explain", "--id", "toy")
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == [
        "what                value",
        "patch               toy",
        "title               One word",
        "why                 to be applied",
        "lost without it     nothing",
        "needed on models    every one",
        "needed on variants  mxfp8",
        "needed on arches    gfx942",
        "needed on releases  >=0.31.0",
        "editions            0.31.0",
        "no edition for      0.32.0, 0.33.0: targets that need it there are refused",
        "requires            no other patch",
        "conflicts with      no other patch",
        "upstream            merged, in vLLM since 0.33.0",
        "link                https://a/1",
        "link                https://a/2",
        "drop when           never",
        "probe               patches/toy/probe.py, needs source: nothing",
        "used by             minimax-m3-mxfp8-gfx942 with 0.31.0",
        "refused             minimax-m3-mxfp8-gfx942 with 0.32.0, 0.33.0",
        "evidence            build/a-target/r-evidence.json: FAILED, of another edition, sha256:1",
        "                    build/a-target/twin-evidence.json: passed, sha256:1",
    ]
    code, out, err = ran("patch.explain", "--id", "toy", "--json")
    assert (code, err) == (0, "")
    data = json.loads(out)
    assert (data["id"], data["missing_editions"]) == ("toy", ["0.32.0", "0.33.0"])
    assert (len(data["targets"]), len(data["refused"])) == (1, 2)
    assert [(row["passed"], row["current"]) for row in data["evidence"]] == [(False, False), (True, True)]


def test_explain_without_evidence_says_where_it_comes_from(ran: Ran) -> None:
    assert "evidence            none under build/: ./inv smoke makes it\n" in ran("patch.explain", "--id", "toy")[1]


def test_a_bare_word_is_the_id_and_help_stays_help(ran: Ran) -> None:
    named = ran("patch.explain", "--id", "toy", "--json")
    assert named[0] == 0
    assert ran("patch.explain", "toy", "--json") == named
    assert ran("patch.explain", "tyo") == (2, "", "✗ unknown patch 'tyo'; did you mean 'toy'?\n")
    assert "Docstring:" in ran("patch.explain", "--help")[1]
    assert ran("patch.lint", "toy")[0] == 2


def test_explain_of_a_patch_that_is_not_there(ran: Ran) -> None:
    assert ran("patch.explain", "--id", "tyo") == (2, "", "✗ unknown patch 'tyo'; did you mean 'toy'?\n")
    assert ran("patch.explain") == (2, "", "✗ --id is missing; known: toy\n")


@pytest.mark.parametrize("text", ["{", "[]", '{"series": [{}]}', '{"series": [{"id": "a", "edition_sha256": "b"}]}'])
def test_an_evidence_file_that_is_none_is_named(ran: Ran, toy_catalog: Path, text: str) -> None:
    evidence(toy_catalog, "twin", "toy", "", passed=True)
    (toy_catalog / "build/a-target/twin-evidence.json").write_text(text)
    code, out, err = ran("patch.explain", "--id", "toy")
    assert (code, out) == (2, "")
    assert "a-target/twin-evidence.json: not an evidence file: " in err


# what an answer looks like


def told(outcome: Outcome, exit_code: int, *patches: PatchReport, files: tuple[FileReport, ...] = ()) -> Answer:
    report = SeriesReport(outcome, patches, files, "the hint")
    return Answer(tree="t", distribution="vllm", version="1", root="/r", exit_code=exit_code, report=report, text="{}")


def test_hunks_hints_and_files_of_no_patch_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    bad = FileReport("a.py", Outcome.CONFLICT, "line 1: x", "line 1: y", hunk=2, hint="look")
    row = FileReport("RECORD", Outcome.TARGET_MODIFIED)
    answer = told(Outcome.CONFLICT, 5, PatchReport("p", Outcome.CONFLICT, (bad,), "why"), files=(row,))
    with pytest.raises(errors.NotApplied) as caught:
        show_patch.show_answer(answer, json=False)
    assert (caught.value.message, caught.value.hint) == ("vllm 1 in t: CONFLICT", "the hint")
    assert capsys.readouterr().out.splitlines() == [
        "CONFLICT         p: why",
        "CONFLICT           a.py, hunk 2",
        "                     expected: line 1: x",
        "                     found:    line 1: y",
        "                     next:     look",
        "TARGET_MODIFIED    RECORD",
    ]


def test_the_exit_code_is_the_engines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(errors.BadInput):
        show_patch.show_answer(told(Outcome.UNKNOWN, 2), json=True)
    assert capsys.readouterr().out == "{}\n"
    show_patch.show_answer(told(Outcome.UNKNOWN, 0), json=False)
    assert capsys.readouterr().out == "vllm 1 in t: UNKNOWN; the hint\n"
