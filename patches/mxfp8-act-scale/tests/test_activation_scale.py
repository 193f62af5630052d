"""The three quantisers for MXFP8 activations: plain torch, Triton, and Triton fused with the activation function.

Triton's interpreter casts to fp8 wrongly, so its two kernels store fp32 here and torch casts.
"""

from __future__ import annotations

import ast
import importlib.util
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

UTILS = "vllm/model_executor/layers/quantization/utils/mxfp8_utils.py"
SWIGLU = "vllm/models/minimax_m3/amd/ops/swiglu_oai.py"
FUNCTIONS = {
    "torch": (UTILS, "_mxfp8_e4m3_quantize_torch"),
    "triton": (UTILS, "_kernel"),
    "fused": (SWIGLU, "_swiglu_oai_quant_kernel"),
}
# the last release whose own quantiser has the old rule
LAST = {"torch": (0, 26, 0), "triton": (0, 28, 0), "fused": (0, 30, 0)}
BLOCK, LARGEST, BIAS = 32, 448.0, 127


class Wide:
    """The module torch, except that a tensor made for fp8 is fp32."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)

    def empty(self, *shape: Any, dtype: torch.dtype, **more: Any) -> torch.Tensor:
        import torch

        return torch.empty(*shape, dtype=torch.float32 if dtype == torch.float8_e4m3fn else dtype, **more)


class Quantisers:
    """The release's quantisers: [M, K] to what is stored, [M, K] fp8 or fp32 before the cast, and its scale bytes."""

    def __init__(self, tree: Path, patch: pytest.MonkeyPatch) -> None:
        import vllm.model_executor.layers.quantization.utils.mxfp8_utils as utils
        import vllm.platforms
        import vllm.triton_utils  # first: it asks the platform which devices are visible

        rocm = SimpleNamespace(is_rocm=lambda: True, has_device_capability=lambda _: False)
        patch.setattr(vllm.platforms, "current_platform", rocm)
        spec = importlib.util.spec_from_file_location("swiglu_oai", tree / SWIGLU)
        assert spec
        assert spec.loader
        self.swiglu = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.swiglu)
        self.utils, self.patch = utils, patch

    def torch(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.utils._mxfp8_e4m3_quantize_torch(x)  # noqa: SLF001

    def triton(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantise through the function that ROCm uses."""
        with self.patch.context() as patch:
            patch.setattr(self.utils, "torch", Wide())
            return self.utils._mxfp8_e4m3_quantize_impl(x)  # noqa: SLF001

    def fused(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Quantise what the activation function makes of gate 2x and up 0 with alpha 0 and beta 1: x itself."""
        import torch

        return self.activated(torch.cat([2 * x, torch.zeros_like(x)], -1), alpha=0.0, beta=1.0, limit=None)

    def activated(self, gate_up: torch.Tensor, **numbers: float | None) -> tuple[torch.Tensor, torch.Tensor]:
        with self.patch.context() as patch:
            patch.setattr(self.swiglu, "torch", Wide())
            return self.swiglu.swiglu_oai_quantize_mxfp8(gate_up, **numbers)

    def each(self, x: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        for name in FUNCTIONS:
            yield name, *getattr(self, name)(x)


@pytest.fixture
def quantisers(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Quantisers:
    return Quantisers(tree, monkeypatch)


@pytest.fixture
def changed(release: str) -> list[str]:
    """Return the quantisers that this release's edition changes."""
    number = tuple(map(int, release.split(".")))
    return [name for name, last in LAST.items() if number <= last]


def byte_of(largest: float) -> int:
    """Return the byte of the smallest power of two that keeps `largest` at or below 448 = 0.875 * 2**9."""
    mantissa, exponent = math.frexp(largest)
    return exponent - 9 + (mantissa > LARGEST / 2**9) + BIAS


def scaled(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return values [M, K] times the powers of two that the bytes [M, K // 32] stand for."""
    import torch

    powers = torch.exp2(scales.double() - BIAS)
    return (values.double().unflatten(-1, (-1, BLOCK)) * powers.unsqueeze(-1)).flatten(-2).float()


def rows(*largest: float) -> torch.Tensor:
    """Return one block for each of `largest`: it, and fractions of it with few digits."""
    import torch

    ramp = torch.linspace(0, 1, BLOCK).mul(64).round().div(64)
    return torch.tensor(largest).unsqueeze(-1) * ramp * torch.tensor([1.0, -1.0] * 15 + [-1.0, 1.0])


def normal(blocks: int = 4096) -> torch.Tensor:
    import torch

    random = torch.Generator().manual_seed(0)
    return torch.randn((64, blocks * BLOCK // 64), generator=random).bfloat16()


FACTORS = (1.0, 1.25, 1.5, 1.75, 1.7578125, 1.99, 1.9921875)


@pytest.mark.rule("X5-1")
@pytest.mark.parametrize("power", [-60, -14, -1, 0, 1, 8, 9, 40])
def test_the_largest_value_of_a_block_lands_at_the_top(quantisers: Quantisers, power: int) -> None:
    largest = [factor * 2.0**power for factor in FACTORS]
    for name, values, scales in quantisers.each(rows(*largest)):
        assert scales.flatten().tolist() == [byte_of(value) for value in largest], name
        for value, byte, stored in zip(largest, scales.flatten().tolist(), values.float().abs().amax(-1), strict=True):
            assert LARGEST / 2 < value * 2.0 ** (BIAS - byte) <= LARGEST, name
            assert LARGEST / 2 <= stored <= LARGEST, name  # 225 is rounded to 224


@pytest.mark.rule("X5-2")
def test_nothing_is_cut_off(quantisers: Quantisers) -> None:
    """Also not the 1.99 * 2**k that the next larger power of two is for."""
    import torch

    x = rows(*(factor * 2.0**power for factor in FACTORS for power in (-3, 0, 5)))
    for name, values, scales in quantisers.each(x):
        stored = values if values.dtype == torch.float8_e4m3fn else values.to(torch.float8_e4m3fn)
        inverse = (BIAS - scales.float()) + BIAS
        assert stored.float().equal(scaled(x, inverse).to(torch.float8_e4m3fn).float()), name
        error = (scaled(stored.float(), scales) - x).abs().amax(-1) / x.abs().amax(-1)
        assert error.max() <= 2**-4, name
        assert (stored.float().abs().amax(-1) >= LARGEST / 2).all(), name


@pytest.mark.rule("X5-3")
def test_all_quantisers_choose_the_same_scales(quantisers: Quantisers) -> None:
    x = normal(512)
    wanted = [[byte_of(block.abs().max().item()) for block in row.float().split(BLOCK)] for row in x]
    for name, _, scales in quantisers.each(x):
        assert scales.tolist() == wanted, name


@pytest.mark.rule("X5-4")
def test_small_values_keep_their_digits(quantisers: Quantisers) -> None:
    """A value of a 256th of the largest is a normal number of the format: its error is that of three binary digits."""
    import torch

    x = normal()
    x[:, ::BLOCK] = torch.where(x[:, ::BLOCK] < 0, -4.0, 4.0)
    small = (x.abs() > 4 / 256) & (x.abs() < 4 / 64)
    assert small.sum() > 1000  # noqa: PLR2004
    for name, values, scales in quantisers.each(x):
        back = scaled(values.to(torch.float8_e4m3fn).float(), scales)
        error = ((back - x.float()).abs() / x.float().abs())[small]
        assert error.max() <= 2**-4, name


@pytest.mark.rule("X5-5")
def test_blocks_with_an_outlier_are_stored_five_times_as_exactly(quantisers: Quantisers) -> None:
    """The outlier is 256 times the others' deviation; the error is over the others: 0.027, before 0.144."""
    import torch

    x = normal()
    x[:, ::BLOCK] = 256.0
    rest = x.float() != 256.0  # noqa: PLR2004
    for name, values, scales in quantisers.each(x):
        back = scaled(values.to(torch.float8_e4m3fn).float(), scales)
        error = ((back - x.float())[rest].norm() / x.float()[rest].norm()).item()
        assert error < 0.03, name  # noqa: PLR2004


@pytest.mark.rule("X5-9")
def test_values_of_a_normal_distribution_are_not_lost(quantisers: Quantisers) -> None:
    """Six of a million become zero, before 1400; the mean relative error is 0.0225, before 0.0254."""
    import torch

    x = normal()
    present = x != 0
    for name, values, scales in quantisers.each(x):
        back = scaled(values.to(torch.float8_e4m3fn).float(), scales)[present]
        error = (back - x[present].float()).abs() / x[present].float().abs()
        assert (back == 0).float().mean() < 1e-4, name  # noqa: PLR2004
        assert error.mean() < 0.024, name  # noqa: PLR2004


@pytest.mark.rule("X5-6")
def test_the_fused_quantiser_quantises_the_activation(quantisers: Quantisers) -> None:
    """With the parameters of MiniMax-M3, against the release's own unfused activation kernel in fp32."""
    import torch

    random = torch.Generator().manual_seed(1)
    gate_up = (4 * torch.randn((67, 6 * BLOCK), generator=random)).bfloat16()
    numbers = {"alpha": 1.702, "beta": 1.0, "limit": 7.0}
    activation = quantisers.swiglu.swiglu_oai_split(gate_up, **numbers, out_dtype=torch.float32)
    values, scales = quantisers.activated(gate_up, **numbers)
    assert scaled(values, scales).equal(activation)
    wanted = [[byte_of(block.abs().max().item()) for block in row.split(BLOCK)] for row in activation]
    assert scales.tolist() == wanted


@pytest.mark.rule("X5-7")
def test_values_are_multiplied_by_the_inverse_scale(tree: Path, changed: list[str]) -> None:
    """CDNA makes zero of the subnormal scale 2**-127, its inverse is a normal number."""
    assert changed
    for name in changed:
        file, function = FUNCTIONS[name]
        nodes = list(ast.walk(ast.parse((tree / file).read_text(encoding="utf-8"))))
        body = next(node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == function)
        operations = [node for node in ast.walk(body) if isinstance(node, ast.BinOp)]
        divided = [ast.unparse(node.left) for node in operations if isinstance(node.op, ast.Div)]
        assert divided == ["amax"], name


@pytest.mark.rule("X5-8")
def test_a_block_of_zeros_stays_zero_where_subnormals_are_flushed(quantisers: Quantisers, changed: list[str]) -> None:
    import torch

    x = rows(0.0, 1.0, 2.0**-126, 0.0)
    assert torch.set_flush_denormal(True)
    try:
        found = {name: getattr(quantisers, name)(x) for name in changed}
    finally:
        torch.set_flush_denormal(False)
    for name, (values, scales) in found.items():
        assert not values.float().isnan().any(), name
        assert not values[0].float().any(), name
        assert not values[3].float().any(), name
        assert scales.max() < 255, name  # noqa: PLR2004 - 255 is NaN
        assert scales[1].item() == byte_of(1.0), name


def test_zeros_rows_beyond_the_last_tile_and_both_float_types(quantisers: Quantisers) -> None:
    import torch

    for dtype in (torch.bfloat16, torch.float16):
        x = torch.zeros((65, 2 * BLOCK), dtype=dtype)  # the kernels' tiles have 64 rows
        x[64] = 3.0
        for name, values, scales in quantisers.each(x):
            assert values.shape == x.shape
            assert scales.shape == (65, 2)
            assert scales.dtype == torch.uint8
            assert scaled(values.float(), scales).equal(x.float()), name
