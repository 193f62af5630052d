"""The gate: an edition that is not fitted, clean and proven is not written, and nothing else is either."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from authoring_support import (
    BEFORE,
    BOTH,
    FIRST,
    PATH,
    PROBE,
    QUIET,
    RELEASE,
    SECOND,
    SOURCES,
    add,
    found,
    give,
    hold,
    load,
    probed,
    snapshot,
)

from kiln import catalog, errors, files, git, lint
from kiln.authoring import drafts, gate
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.errors import Finding
    from kiln.proof.cases import Case
    from kiln.proof.prove import Proof

THREE = SECOND.replace(b"second():\n    total = 1", b"second():\n    total = 0 + 1")
OTHER = "vllm/sub/other.py"
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


@pytest.fixture
def two(toy: Catalog) -> Catalog:
    """The toy, and a later patch of the first of the twins, on top of it."""
    loaded = add(toy.root, "later", git.diff({PATH: SECOND}, {PATH: BOTH}), SECOND)
    (toy.root / "patches/later/probe.py").write_text(PROBE.replace("second", "first"))
    return loaded


def test_a_later_patch_on_the_same_file_is_made_again_with_it(two: Catalog, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(two.root)
    tell = Reporter()
    assert gate.accept(two, "toy", RELEASE, RIGHT, reporter=tell, prove=probed, dry_run=True) == ()
    assert "patches/later/0.31.0.patch would be made again on top of it" in capsys.readouterr().err
    assert snapshot(two.root) == before
    assert gate.accept(two, "toy", RELEASE, RIGHT, reporter=tell, prove=probed) == ()
    assert "patches/later/0.31.0.patch was made again on top of it" in capsys.readouterr().err
    both = THREE.replace(b"first():\n    total = 0", b"first():\n    total = 1")
    wanted = git.diff({PATH: THREE}, {PATH: both})
    assert (two.root / "patches/later/0.31.0.patch").read_bytes() == wanted
    made = catalog.load(two.root)
    assert made.patches["later"].editions == {RELEASE: drafts.record("later", wanted, {PATH: THREE})}
    changed = {path for path, data in snapshot(two.root).items() if before[path] != data}
    assert changed == {f"patches/{each}/{name}" for each in ("toy", "later") for name in ("0.31.0.patch", "patch.yaml")}
    assert list(lint.editions(made, RELEASE)) == []


def test_a_later_patch_that_is_red_on_top_of_it_lets_nothing_through(two: Catalog) -> None:
    probe = two.root / "patches/later/probe.py"
    probe.write_text(
        PROBE.replace('at["second"]() == 4', 'at["first"]() == 4 and "0 + 1" not in open(at["__file__"]).read()')
    )
    before = snapshot(two.root)
    findings = accept(two, RIGHT)
    assert {finding.where for finding in findings} == {"patches/later on 0.31.0"}
    assert snapshot(two.root) == before


def test_a_later_patch_that_cannot_be_made_again_is_named_with_a_way_out_that_works(two: Catalog) -> None:
    wider = BOTH.replace(b"total = 1\n    for n in range(3):", b"total = 3 - 2\n    for n in range(3):")
    replaced = BEFORE.replace(
        b"second():\n    total = 0\n    for n in range(3):",
        b"second():\n    total = 1\n    for m in (n for n in range(3)):",
    ).replace(b"total += n\n    return total\n\n\nEND", b"total += m\n    return total\n\n\nEND")
    give(two.root, "later", git.diff({PATH: SECOND}, {PATH: wider}), SECOND)
    loaded, earlier = catalog.load(two.root), git.diff({PATH: BEFORE}, {PATH: replaced})
    before = snapshot(two.root)
    (finding,) = accept(loaded, earlier)
    assert finding.where == "patches/later/0.31.0.patch"
    assert "comes after toy and cannot be made again on top of it: vllm/twins.py" in finding.problem
    assert "list 0.31.0 under unported" in finding.hint
    assert snapshot(two.root) == before
    described = two.root / "patches/later/patch.yaml"
    (two.root / "patches/later/0.31.0.patch").unlink()
    described.write_text(described.read_text().partition("editions:")[0] + 'unported: ["0.31.0"]\n')
    assert accept(catalog.load(two.root), earlier) == ()
    again = git.diff({PATH: replaced}, {PATH: replaced.replace(b"first():\n    total = 0", b"first():\n    total = 1")})
    assert gate.accept(catalog.load(two.root), "later", RELEASE, again, reporter=QUIET, prove=probed) == ()


def test_a_later_patch_stands_on_what_the_earlier_one_leaves(two: Catalog) -> None:
    late = gate.accept(two, "later", RELEASE, git.diff({PATH: BEFORE}, {PATH: BOTH}), reporter=QUIET, prove=probed)
    assert late[0].problem.startswith("CONFLICT")


@pytest.mark.parametrize("alone", [True, False])
def test_a_module_that_can_no_longer_be_imported_is_found(toy: Catalog, *, alone: bool) -> None:
    """Its probe does not see it: it reads the text."""
    (toy.root / "patches/toy/probe.py").write_text(
        "import sys\ntext = open(sys.argv[1] + '/vllm/twins.py').read()\ngood = 'total = 1' in text\n"
        "print('green: 1' if good else 'red: 0')\nsys.exit(not good)\n"
    )
    if not alone:
        beside = {"vllm/sub/other.py": SOURCES["vllm/sub/other.py"]}
        data = git.diff(beside, {path: text + b"# more\n" for path, text in beside.items()})
        add(toy.root, "beside", data, of=beside)
    loaded = catalog.load(toy.root)
    before = snapshot(toy.root)
    broken = git.diff({PATH: BEFORE}, {PATH: b"import no_such_module_at_all\n" + SECOND})
    (finding,) = accept(loaded, broken)
    assert "red: vllm.twins cannot be imported when all patches are applied: ModuleNotFoundError" in finding.problem
    assert snapshot(toy.root) == before


def test_a_file_that_an_edition_deletes_is_not_imported(toy: Catalog) -> None:
    data = git.diff({PATH: BEFORE, OTHER: SOURCES[OTHER]}, {PATH: SECOND})
    assert accept(toy, data) == ()


def test_findings_name_the_files_of_the_catalog(toy: Catalog) -> None:
    def prove(made: Catalog, cases: Sequence[Case], reporter: Reporter) -> tuple[Proof, ...]:
        root = made.root
        text = f"{root}/patches/toy/probe.py:3: no; ../../{root.name}/patches/toy/tests/test_x.py::test_y"
        return found(text)(made, cases, reporter)

    (finding,) = accept(toy, RIGHT, prove=prove)
    assert finding.problem == "patches/toy/probe.py:3: no; patches/toy/tests/test_x.py::test_y"


def test_a_series_that_breaks_is_found_by_its_hashes(toy: Catalog) -> None:
    add(toy.root, "later", git.diff({PATH: BEFORE}, {PATH: FIRST}), BEFORE)
    add(
        toy.root,
        "narrow",
        git.diff({OTHER: SOURCES[OTHER]}, {OTHER: SOURCES[OTHER] + b"# x\n"}),
        of={OTHER: SOURCES[OTHER]},
    )
    described = toy.root / "patches/narrow/patch.yaml"
    described.write_text(described.read_text().replace('"==0.31.0"}', '"==0.31.0", variants: [nvfp4]}'))
    clashes = list(gate.clashes(catalog.load(toy.root), "toy", RELEASE))
    assert {clash.where for clash in clashes} == {"patches/later/0.31.0.patch"}
    assert len(clashes) == 1, "once, not for each target"
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
