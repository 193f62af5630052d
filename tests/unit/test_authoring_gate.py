"""The gate: an edition that is not fitted, clean and proven is not written, and nothing else is either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from authoring_support import (
    BEFORE,
    BOTH,
    FIRST,
    PATH,
    QUIET,
    RELEASE,
    SECOND,
    SOURCES,
    add,
    found,
    hold,
    load,
    probed,
    snapshot,
)

from kiln import catalog, errors, files, git
from kiln.authoring import drafts, gate

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.errors import Finding

THREE = SECOND.replace(b"second():\n    total = 1", b"second():\n    total = 0 + 1")
RIGHT = git.diff({PATH: BEFORE}, {PATH: THREE})


@pytest.fixture
def toy(toy_catalog: Path) -> Catalog:
    return load(toy_catalog)


def accept(loaded: Catalog, data: bytes, *, prove: gate.Prover = probed, dry_run: bool = False) -> tuple[Finding, ...]:
    return gate.accept(loaded, "toy", RELEASE, data, reporter=QUIET, prove=prove, dry_run=dry_run)


def test_a_proven_edition_is_written_with_its_record(toy: Catalog) -> None:
    text = (toy.root / "patches/toy/patch.yaml").read_text()
    before = snapshot(toy.root)
    assert accept(toy, RIGHT, dry_run=True) == ()
    assert snapshot(toy.root) == before
    assert accept(toy, RIGHT) == ()
    assert (toy.root / "patches/toy/0.31.0.patch").read_bytes() == RIGHT
    made = catalog.load(toy.root).patches["toy"]
    assert made.editions[RELEASE] == drafts.record("toy", RIGHT, {PATH: BEFORE})
    assert (toy.root / "patches/toy/patch.yaml").read_text().partition("editions:")[0] == text.partition("editions:")[0]
    assert snapshot(toy.root).keys() == before.keys()


def test_a_new_edition_takes_its_release_from_unported(toy: Catalog) -> None:
    described = toy.root / "patches/toy/patch.yaml"
    wider = described.read_text().replace('"==0.31.0"}', '">=0.31.0,<0.33.0"}\nunported: [0.32.0]')
    described.write_text(wider)
    hold(toy.root, SOURCES, "0.32.0")
    loaded = catalog.load(toy.root)
    assert gate.accept(loaded, "toy", "0.32.0", RIGHT, reporter=QUIET, prove=probed) == ()
    made = catalog.load(toy.root).patches["toy"]
    assert (list(made.editions), made.unported) == (["0.31.0", "0.32.0"], ())


WRONG = {
    "a twin function": (git.diff({PATH: BEFORE}, {PATH: FIRST}), "its probe is not green: exit code 1"),
    "no effect": (git.diff({PATH: BEFORE}, {PATH: BEFORE + b"# more\n"}), "its probe is not green: exit code 1"),
    "shifted": (git.diff({PATH: b"#\n" + BEFORE}, {PATH: b"#\n" + SECOND}), "OFFSET: expected line"),
    "of other files": (git.diff({PATH: BOTH}, {PATH: FIRST}), "CONFLICT: expected line"),
    "not canonical": (RIGHT.replace(b"@@ def", b"@@ xyz"), "is not canonical: line 5"),
    "does not compile": (git.diff({PATH: BEFORE}, {PATH: BEFORE + b"def\n"}), "expected a module that compiles"),
    "outside": (git.diff({}, {"tests/test_x.py": b"x = 1\n"}), "touches tests/test_x.py, outside of vllm/"),
    "no diff": (b"<html>\n", "this is HTML or XML"),
    "cut off": (RIGHT[:-20], "cut off"),
    "absent": (git.diff({"vllm/no.py": BEFORE}, {"vllm/no.py": FIRST}), "CONFLICT: expected the file"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_and_nothing_is_written(toy: Catalog, name: str) -> None:
    data, problem = WRONG[name]
    before = snapshot(toy.root)
    findings = accept(toy, data)
    assert findings, name
    assert any(problem in finding.problem for finding in findings), findings
    assert snapshot(toy.root) == before


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("red: second is not 4", "red: this probe is not written yet", "is still the skeleton"),
        ('at["second"]() == 4', "True", "without the patch its probe is not red"),
        ("import runpy, sys", "import runpy, syss", "without the patch its probe is not red"),
    ],
)
def test_a_probe_that_shows_nothing_lets_nothing_through(toy: Catalog, old: str, new: str, problem: str) -> None:
    probe = toy.root / "patches/toy/probe.py"
    probe.write_text(probe.read_text().replace(old, new).replace('sys.exit(at["second"]() != 4)', "sys.exit(1)"))
    before = snapshot(toy.root)
    assert any(problem in finding.problem for finding in accept(toy, RIGHT))
    assert snapshot(toy.root) == before


def test_a_patch_without_a_probe_lets_nothing_through(toy: Catalog) -> None:
    described = toy.root / "patches/toy/patch.yaml"
    described.write_text(described.read_text().replace("probe: {needs: source, shows: nothing}\n", ""))
    (toy.root / "patches/toy/probe.py").unlink()
    findings = accept(catalog.load(toy.root), RIGHT)
    assert findings[0].where == "patches/toy/probe.py"


def test_a_prover_that_finds_something_or_says_nothing_lets_nothing_through(toy: Catalog) -> None:
    before = snapshot(toy.root)
    assert [finding.problem for finding in accept(toy, RIGHT, prove=found("stays red"))] == ["stays red"]
    assert [finding.problem for finding in accept(toy, RIGHT, prove=lambda *_: ())] == ["was not proven"]
    assert snapshot(toy.root) == before


def test_a_later_patch_on_the_same_file_is_named(toy: Catalog) -> None:
    loaded = add(toy.root, "later", git.diff({PATH: SECOND}, {PATH: BOTH}), SECOND)
    before = snapshot(toy.root)
    findings = accept(loaded, RIGHT)
    assert {finding.where.partition(":")[0] for finding in findings} == {"patches/later/patch.yaml"}
    assert snapshot(toy.root) == before
    late = gate.accept(loaded, "later", RELEASE, git.diff({PATH: BEFORE}, {PATH: BOTH}), reporter=QUIET, prove=probed)
    assert late[0].problem.startswith("CONFLICT")


def test_a_series_that_breaks_is_found_by_its_hashes(toy: Catalog) -> None:
    add(toy.root, "later", git.diff({PATH: BEFORE}, {PATH: FIRST}), BEFORE)
    clashes = list(gate.clashes(catalog.load(toy.root), "toy", RELEASE))
    assert {clash.where for clash in clashes} == {"patches/later/0.31.0.patch"}
    assert clashes[0].hint == "make it again on top of toy: ./inv patch.edit later --release 0.31.0"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), errors.Missing("no torch")])
def test_an_interrupt_or_a_missing_tool_leaves_everything_as_it_was(toy: Catalog, error: BaseException) -> None:
    def prove(*_: object) -> tuple[()]:
        raise error

    before = snapshot(toy.root)
    with pytest.raises(type(error)):
        accept(toy, RIGHT, prove=prove)
    assert snapshot(toy.root) == before


def test_an_interrupt_between_the_two_files_takes_the_first_back(toy: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write

    def interrupted(path: Path, data: bytes | str) -> Path:
        if path == toy.root / "patches/toy/patch.yaml" and interrupts.pop():
            raise KeyboardInterrupt
        return write(path, data)

    interrupts = [False, True]
    monkeypatch.setattr(files, "write", interrupted)
    before = snapshot(toy.root)
    with pytest.raises(KeyboardInterrupt):
        accept(toy, RIGHT)
    assert snapshot(toy.root) == before


def test_a_patch_yaml_that_is_edited_meanwhile_is_not_written_over(toy: Catalog) -> None:
    described = toy.root / "patches/toy/patch.yaml"

    def prove(catalog: Catalog, cases: object, reporter: object) -> object:
        described.write_text("# mine\n" + described.read_text())
        return probed(catalog, cases, reporter)  # type: ignore[arg-type]

    with pytest.raises(errors.BadInput, match="was changed meanwhile"):
        accept(toy, RIGHT, prove=prove)  # type: ignore[arg-type]
    assert described.read_text().startswith("# mine\n")
    assert (toy.root / "patches/toy/0.31.0.patch").read_bytes() != RIGHT


def test_old_findings_of_the_patch_do_not_stand_in_the_way(toy: Catalog) -> None:
    described = toy.root / "patches/toy/patch.yaml"
    described.write_text(described.read_text().replace("reason: to be applied", "reason: 'TODO: say why'"))
    assert accept(catalog.load(toy.root), RIGHT) == ()


def test_unknown_names_are_listed_at_once(toy: Catalog) -> None:
    with pytest.raises(errors.BadInput) as caught:
        gate.accept(toy, "tyo", "0.31", RIGHT, reporter=QUIET, prove=probed)
    assert caught.value.message.splitlines()[0] == "unknown patch 'tyo'; did you mean 'toy'?"
