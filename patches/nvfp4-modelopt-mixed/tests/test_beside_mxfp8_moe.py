"""mxfp8-moe-gfx942 edits other classes of modelopt.py: the order in which the two patches are applied is free."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

PATCHES = Path(__file__).parents[2]
SHARED = "vllm/model_executor/layers/quantization/modelopt.py"


def apply(root: Path, patch: str, release: str, *options: str) -> None:
    """Apply the shared file's part of the patch's edition to the tree at root."""
    edition = PATCHES / patch / f"{release}.patch"
    subprocess.run(
        ["git", "apply", "--whitespace=nowarn", f"--include={SHARED}", *options, str(edition)],  # noqa: S607
        cwd=root,
        env=os.environ | {"GIT_CEILING_DIRECTORIES": str(root.parent)},
        check=True,
    )


@pytest.fixture
def released(tree: Path, release: str, tmp_path: Path) -> Path:
    """Return a tree with the shared file as the release has it."""
    root = tmp_path / "released"
    (root / SHARED).parent.mkdir(parents=True)
    shutil.copyfile(tree / SHARED, root / SHARED)
    apply(root, "nvfp4-modelopt-mixed", release, "--reverse")
    return root


def test_the_order_of_the_two_patches_does_not_matter(released: Path, release: str, tmp_path: Path) -> None:
    pair = ("mxfp8-moe-gfx942", "nvfp4-modelopt-mixed")
    results = []
    for index, order in enumerate((pair, pair[::-1])):
        root = tmp_path / str(index)
        shutil.copytree(released, root)
        for patch in order:
            before = (root / SHARED).read_bytes()
            apply(root, patch, release)
            assert (root / SHARED).read_bytes() != before, patch
        results.append((root / SHARED).read_bytes())
    assert results[0] == results[1]
