"""The Triton quantiser on a CPU that flushes subnormals as CDNA does, in the interpreter.

The interpreter casts to fp8 wrongly, so the kernel stores fp32 here.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

UTILS = "vllm/model_executor/layers/quantization/utils/mxfp8_utils.py"
BLOCK, BIAS, TINY = 32, 127, 2.0**-126


class Wide:
    """The module torch, except that a tensor made for fp8 is fp32."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)

    def empty(self, *shape: Any, dtype: torch.dtype, **more: Any) -> torch.Tensor:
        import torch

        return torch.empty(*shape, dtype=torch.float32 if dtype == torch.float8_e4m3fn else dtype, **more)


@contextmanager
def flushing() -> Iterator[None]:
    import torch

    assert torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module, on what it takes for a ROCm GPU."""
    import vllm.model_executor.layers.quantization.utils.mxfp8_utils as utils
    import vllm.platforms
    import vllm.triton_utils  # first: it asks the platform which devices are visible

    rocm = SimpleNamespace(is_rocm=lambda: True, has_device_capability=lambda _: False)
    monkeypatch.setattr(vllm.platforms, "current_platform", rocm)
    monkeypatch.setattr(utils, "torch", Wide())
    return utils


def quantised(utils: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what is stored [M, K], as fp32 before the cast, and the bytes [M, K // 32]."""
    with flushing():
        return utils._mxfp8_e4m3_quantize_impl(x)  # noqa: SLF001


@pytest.mark.rule("X6-1")
def test_a_block_of_zeros_stays_zero(utils: Any) -> None:
    import torch

    x = torch.randn(65, 4 * BLOCK, generator=torch.Generator().manual_seed(0)).bfloat16()
    x[3, :BLOCK] = 0.0
    x[64] = 0.0
    x[64, BLOCK] = 1.0
    values, scales = quantised(utils, x)
    assert values.isfinite().all()
    assert not values[3, :BLOCK].any()
    assert not values[64, :BLOCK].any()
    assert scales.max() < 255  # noqa: PLR2004 - 255 is NaN


@pytest.mark.rule("X6-2")
def test_the_smallest_normal_numbers_stay_finite(utils: Any) -> None:
    import torch

    x = torch.zeros(3, BLOCK)
    x[0, 0], x[1, 1], x[2, 2] = TINY, 128 * TINY, -448 * TINY
    values, scales = quantised(utils, x)
    assert scales.flatten().tolist() == [0, 0, 1]
    # numpy's 2**127 is one digit off
    assert [values[0, 0], values[1, 1], values[2, 2]] == pytest.approx([2.0, 256.0, -448.0], rel=1e-6)
    assert values.count_nonzero() == 3  # noqa: PLR2004


@pytest.mark.rule("X6-3")
def test_values_are_multiplied_by_the_inverse_scale(tree: Path) -> None:
    nodes = ast.walk(ast.parse((tree / UTILS).read_text(encoding="utf-8")))
    kernel = next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "_kernel")
    operations = [node for node in ast.walk(kernel) if isinstance(node, ast.BinOp)]
    assert [ast.unparse(node.left) for node in operations if isinstance(node.op, ast.Div)] == ["amax"]


def test_other_blocks_are_stored_as_before(utils: Any) -> None:
    """Division by a power of two and multiplication by its inverse are the same."""
    import torch

    x = torch.randn(8, 4 * BLOCK, generator=torch.Generator().manual_seed(1)) * torch.exp2(torch.arange(-64.0, 64.0))
    values, scales = quantised(utils, x)
    largest = x.unflatten(-1, (-1, BLOCK)).abs().amax(-1)
    assert scales.equal((torch.ceil(torch.log2(largest / 448)) + BIAS).to(torch.uint8))
    assert values.equal((x.unflatten(-1, (-1, BLOCK)) / torch.exp2(scales - 127.0).unsqueeze(-1)).flatten(-2))


def test_the_kernel_compiles_for_cdna(tree: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"TRITON_INTERPRET", "PYTHONPATH"}}
    script = Path(__file__).with_name("compile_cdna.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tree)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["gfx950"]
