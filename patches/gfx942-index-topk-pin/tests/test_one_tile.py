"""The autotuned kernels of the index top-k module that ROCm imports have one tile, which compiles for gfx942."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMON = "vllm.models.minimax_m3.common.ops.index_topk"
AMD = "vllm.models.minimax_m3.amd.ops.index_topk"
# the kernels that the releases tune, by the module that holds them
KERNELS = ["_topk_index_kernel", "_topk_index_partial_kernel"]


def imported_on_rocm(indexer: ast.Module) -> str:
    """Return the module that the indexer takes its kernels from on ROCm."""

    def source(nodes: list[ast.stmt]) -> str | None:
        names = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module in {COMMON, AMD}]
        return names[0] if names else None

    choice = [node for node in indexer.body if isinstance(node, ast.If) and "is_rocm()" in ast.unparse(node.test)]
    found = source(indexer.body) or source(choice[0].body)
    assert found
    return found


@pytest.fixture(scope="module")
def path(tree: Path) -> Path:
    indexer = tree / "vllm/models/minimax_m3/common/indexer.py"
    module = imported_on_rocm(ast.parse(indexer.read_text(encoding="utf-8")))
    return tree / (module.replace(".", "/") + ".py")


@pytest.fixture(scope="module")
def kernels(path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return each autotuned kernel's tiles, and the code objects that they compile to."""
    environment = {name: value for name, value in os.environ.items() if name not in {"TRITON_INTERPRET", "PYTHONPATH"}}
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("compile_gfx942.py")), str(path)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_rocm_has_kernels_of_its_own_from_0_25_on(path: Path, release: str) -> None:
    assert ("amd" in path.parts) == (release != "0.24.0")


@pytest.mark.rule("X9-1")
def test_every_autotuned_kernel_has_one_tile(kernels: dict[str, dict[str, Any]]) -> None:
    assert kernels
    for name, kernel in kernels.items():
        assert kernel["tiles"] == [{"BLOCK_SIZE_K": 64, "num_warps": 2, "num_stages": 2}], name


def test_the_prefill_kernel_is_among_them(kernels: dict[str, dict[str, Any]], release: str) -> None:
    wanted = KERNELS if tuple(map(int, release.split("."))) < (0, 30, 0) else KERNELS[:1]
    assert list(kernels) == wanted


@pytest.mark.rule("X9-2")
def test_what_can_run_on_gfx942_compiles_and_is_one_code_object(kernels: dict[str, dict[str, Any]]) -> None:
    for name, kernel in kernels.items():
        assert kernel["compiled"] == [{"arch": "gfx942", "num_warps": 2, "spilled": 0}], name
