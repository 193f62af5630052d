"""The probe on a release as it is, and on copies whose builder demands more, or looks at nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).parent.parent / "probe.py"
BUNDLED = Path("vllm/third_party/fmha_sm100/cute")
FILES = ("sparse_index_utils.py", "src/sm100/prepare_k2q_csr.py")
RANK = "if q2k_indices.ndim != 3:"


def probe(root: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, str(PROBE), str(root)], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def copy(tree: Path, tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / BUNDLED / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / BUNDLED / name).write_text((tree / BUNDLED / name).read_text(encoding="utf-8"), encoding="utf-8")
    return tmp_path


def change(copy: Path, name: str, old: str, new: str) -> None:
    path = copy / BUNDLED / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_release_takes_a_slice(tree: Path) -> None:
    code, said = probe(tree)
    assert (code, said[:7]) == (0, "green: "), said


@pytest.mark.parametrize("name", FILES)
def test_builder_that_demands_contiguity_is_red(copy: Path, name: str) -> None:
    change(copy, name, RANK, "if q2k_indices.ndim != 3 or not q2k_indices.is_contiguous():")
    code, said = probe(copy)
    assert code == 1
    assert said.startswith(f"red: a slice is refused by {name}: ")


def test_builder_that_looks_at_no_stride_is_red(copy: Path) -> None:
    change(copy, FILES[1], "q2k_indices.stride(2) != 1", "False")
    assert probe(copy) == (1, "red: nothing looks at the strides of a slice before it is read\n")
