"""The probe on a release as it is, and on copies that lack one part of the change."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = Path("vllm/models/minimax_m3/amd/model.py")
PROBE = Path(__file__).parent.parent / "probe.py"
BEFORE = "aux_hidden_states = self._maybe_add_hidden_state([], 0, hidden_states, residual)"
AFTER = "self._maybe_add_hidden_state(aux_hidden_states, idx + 1, hidden_states, residual)"
# what is taken away: (pattern in the normalised source, what it becomes, what the probe must name)
MISSING = {
    "mixin": (r"(class MiniMaxM3Model\(nn\.Module), EagleModelMixin", r"\1", "MiniMaxM3Model does not declare"),
    "text model": (
        r"(class MiniMaxM3SparseForCausalLM\(.*), SupportsEagle3",
        r"\1",
        "MiniMaxM3SparseForCausalLM does not declare",
    ),
    "outer model": (
        r"(class MiniMaxM3SparseForConditionalGeneration\(.*), SupportsEagle3",
        r"\1",
        "MiniMaxM3SparseForConditionalGeneration does not declare",
    ),
    "first state": (re.escape(BEFORE), "aux_hidden_states = []", "(0,) wanted"),
    "later states": (re.escape(AFTER), "pass", "(1, 3) wanted"),
    "index off by one": (re.escape(AFTER), AFTER.replace("idx + 1", "idx"), "(1, 3) wanted"),
    "residual": (re.escape(AFTER), AFTER.replace("residual", "None"), "(1, 3) wanted"),
    "states in the answer": (r"return \(hidden_states, aux_hidden_states\)", "return hidden_states", "(0,) wanted"),
    "plain answer": (r"if len\(aux_hidden_states\) > 0:", "if True:", "() wanted"),
}


def probe(root: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(PROBE), str(root)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    """Return a root that holds the release's model only, with its source normalised so that one pattern fits all."""
    (tmp_path / MODEL).parent.mkdir(parents=True)
    source = (tree / MODEL).read_text(encoding="utf-8")
    (tmp_path / MODEL).write_text(ast.unparse(ast.parse(source)), encoding="utf-8")
    return tmp_path


def test_release_has_the_change(tree: Path, copy: Path) -> None:
    for root in (tree, copy):
        code, said = probe(root)
        assert (code, said[:7]) == (0, "green: "), said


@pytest.mark.parametrize("part", MISSING)
def test_release_without_one_part_is_red(copy: Path, part: str) -> None:
    pattern, replacement, named = MISSING[part]
    source = (copy / MODEL).read_text(encoding="utf-8")
    changed, count = re.subn(pattern, replacement, source)
    assert count
    (copy / MODEL).write_text(changed, encoding="utf-8")
    code, said = probe(copy)
    assert code == 1, said
    assert all(line.startswith("red: ") for line in said.splitlines()), said
    assert named in said


def test_every_loop_over_the_layers_must_offer_its_states(copy: Path) -> None:
    source = (copy / MODEL).read_text(encoding="utf-8")
    loops = source.count(AFTER)
    assert loops
    for index in range(loops):
        parts = source.split(AFTER)
        changed = AFTER.join(parts[: index + 1]) + "pass" + AFTER.join(parts[index + 1 :])
        (copy / MODEL).write_text(changed, encoding="utf-8")
        code, said = probe(copy)
        assert code == 1, said
        assert "red: forward" in said
