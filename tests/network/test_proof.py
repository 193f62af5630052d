"""Patches proven on a release's real files in the environment with torch and Triton; each broken one is found."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, errors, git
from kiln.proof import cases, kernels, prove
from kiln.report import Reporter

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.proof.prove import Proof

DATA = b"WORD = 'patched'\n"
PROBE = """\
import sys
from pathlib import Path

there = Path(sys.argv[1], "vllm/NAME.py").exists()
print("green: it is there" if there else "red: it is not there")
sys.exit(not there)
"""
TEST = """\
import pytest


@pytest.mark.rule("toy")
def test_the_module_says_patched(tree):
    assert "patched" in (tree / "vllm/NAME.py").read_text()


def test_torch_and_triton_are_here():
    import torch
    import triton
"""
# id -> what is broken in probe.py or in the tests, and what is found
BROKEN = {
    "always-green": (("if there", "if True"), "without the patch its probe is not red: exit code 1"),
    "weak-rule": (("assert", "assert True or"), "a test that is marked as a rule passes"),
    "no-rule": (('@pytest.mark.rule("toy")', ""), "a test that is marked as a rule passes, or there is"),
    "failing": (("import triton", "import tritone"), "with the patch, tests fail"),
    "skipping": (
        ("    assert", "    pytest.skip('x') if tree.name != 'x' else None\n    assert"),
        "a rule passes, or there is",
    ),
}


def add(root: Path, patch_id: str, old: str = "", new: str = "", *, pre: str = "") -> None:
    """Add a patch that adds one file to 0.31.0, with `old` replaced in its probe and tests."""
    name = patch_id.replace("-", "_")
    path = f"vllm/{name}.py"
    edition = git.diff({}, {path: DATA})
    folder = root / "patches" / patch_id
    (folder / "tests").mkdir(parents=True)
    (folder / "0.31.0.patch").write_bytes(edition)
    for file, text in (("probe.py", PROBE), ("tests/test_toy.py", TEST)):
        (folder / file).write_text(text.replace("NAME", name).replace(old or "\0", new))
    (folder / "patch.yaml").write_text(
        f"id: {patch_id}\ntitle: A file\nreason: to be there\nlost_without: nothing\ndrop_when: never\n"
        'upstream: {status: not-reported}\napplies: {releases: "==0.31.0"}\nprobe: {needs: source, shows: it}\n'
        f"editions:\n  0.31.0:\n    sha256: {hashlib.sha256(edition).hexdigest()}\n"
        f"    files: {{{path}: {{{pre}post: {hashlib.sha256(DATA).hexdigest()}}}}}\n"
    )
    order = root / "patches/series.yaml"
    order.write_text(order.read_text().replace("]", f"{patch_id}, ]"))


@pytest.fixture
def root(catalog_copy: Path) -> Path:
    """A catalog without patches."""
    for other in (catalog_copy / "patches").glob("*/patch.yaml"):
        shutil.rmtree(other.parent)
    (catalog_copy / "patches/series.yaml").write_text("order: []\n")
    shutil.copy(catalog.find_root() / kernels.LOCK, catalog_copy)
    return catalog_copy


def proven(root: Path) -> dict[str, Proof]:
    """Prove every patch with the caches of this checkout."""
    loaded = replace(catalog.load(root), state=catalog.state_of(catalog.find_root()))
    return {proof.case.patch: proof for proof in prove.run(loaded, cases.plan(loaded), Reporter())}


def test_a_patch_is_proven_and_each_broken_one_is_a_finding(root: Path) -> None:
    add(root, "right")
    for patch_id, (edit, _) in BROKEN.items():
        add(root, patch_id, *edit)
    found = proven(root)
    right = found.pop("right")
    assert (right.rules, right.unready, right.tests, right.skipped, right.findings) == (1, 0, 2, (), ())
    problems = {patch_id: [finding.problem for finding in proof.findings] for patch_id, proof in found.items()}
    for patch_id, (_, problem) in BROKEN.items():
        assert len(problems[patch_id]) == 1, problems
        assert problem in problems[patch_id][0]


def test_an_edition_that_does_not_fit_is_refused_with_its_file(root: Path) -> None:
    add(root, "right", pre=f"pre: {'a' * 64}, ")
    with pytest.raises(errors.NotApplied) as caught:
        proven(root)
    assert "vllm/right.py" in caught.value.message
