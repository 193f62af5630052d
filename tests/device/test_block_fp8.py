"""The requantisation of MXFP8 experts to 128x128 block FP8 on a real GPU, as it ships, on both FP8 flavours.

NVIDIA computes with FN only, but stores and casts FNUZ, which is all that the requantisation needs. What multiplies the
weights is vLLM's own Triton kernel; here the product is formed in float32 from the same bytes and scales.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.gpu

EDITION = Path(__file__).resolve().parents[2] / "patches" / "blockfp8-moe-gfx942" / "0.24.0.patch"
FILE = "vllm/model_executor/layers/quantization/utils/mxfp8_block_fp8.py"
FLAVOURS = ["float8_e4m3fn", "float8_e4m3fnuz"]
ACTIVATION_MAX = {"float8_e4m3fn": 448.0, "float8_e4m3fnuz": 224.0}  # what vLLM quantises activations to
ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0
HIDDEN = 6144
WEIGHT_BOUND, MOE_BOUND = 0.04, 0.09


@pytest.fixture(scope="module")
def requant(gpu: Any) -> ModuleType:  # noqa: ARG001 - without torch it cannot be imported
    """Return the new file of the edition as a module."""
    _, _, rest = EDITION.read_text(encoding="utf-8").partition(f"+++ b/{FILE}\n")
    added = rest.partition("diff --git ")[0].splitlines()[1:]
    assert added
    assert all(line.startswith("+") for line in added)
    module = ModuleType("mxfp8_block_fp8")
    exec("\n".join(line[1:] for line in added), module.__dict__)  # noqa: S102
    return module


def mxfp8(torch: Any, *shape: int) -> tuple[Any, Any, Any]:
    """Return normal weights [E, N, K] as FN, their scale bytes [E, N, K // 32], and the float32 values."""
    torch.manual_seed(sum(shape))
    groups = torch.randn(*shape).mul_(0.02).unflatten(-1, (-1, 32))
    exponent = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True))) - 7
    weight = (groups / torch.exp2(exponent)).to(torch.float8_e4m3fn)
    values = (weight.float() * torch.exp2(exponent)).flatten(-2)
    return weight.flatten(-2), (exponent.squeeze(-1) + 127).to(torch.uint8), values


def dequantised(weight: Any, scale: Any) -> Any:
    return weight.float() * scale.repeat_interleave(128, 1).repeat_interleave(128, 2)


def relative(found: Any, expected: Any) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_gpu_makes_the_bytes_and_scales_that_the_cpu_makes(gpu: Any, requant: ModuleType, flavour: str) -> None:
    dtype = getattr(gpu, flavour)
    weight, scale, values = mxfp8(gpu, 4, 768, HIDDEN)
    on_cpu = requant.requant_mxfp8_to_block_fp8(weight.to("cpu", copy=True), scale.cpu(), dtype)
    made, scales = requant.requant_mxfp8_to_block_fp8(weight, scale, dtype)
    assert gpu.equal(scales.cpu(), on_cpu[1])
    assert gpu.equal(made.view(gpu.uint8).cpu(), on_cpu[0].view(gpu.uint8))
    assert relative(dequantised(made, scales), values) < WEIGHT_BOUND


@pytest.mark.parametrize(
    "shape", [(128, 768, HIDDEN), (128, HIDDEN, 384), (16, HIDDEN, HIDDEN)], ids=["TP8 w13", "TP8 w2", "EP8 w13"]
)
def test_full_layers_take_two_float32_experts_of_memory(
    gpu: Any, requant: ModuleType, shape: tuple[int, int, int]
) -> None:
    experts, n, k = shape
    weight = gpu.randint(0, 0x70, shape, dtype=gpu.uint8).view(gpu.float8_e4m3fn)
    scale = gpu.randint(118, 124, (experts, n, k // 32), dtype=gpu.uint8)
    gpu.cuda.synchronize()
    gpu.cuda.reset_peak_memory_stats()
    before = gpu.cuda.memory_allocated()
    made, scales = requant.requant_mxfp8_to_block_fp8(weight, scale, gpu.float8_e4m3fnuz)
    peak = gpu.cuda.max_memory_allocated() - before
    assert made.data_ptr() == weight.data_ptr()
    assert peak < scales.nbytes + 2.5 * 4 * n * k
    assert gpu.isfinite(scales).all()


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_whole_moe_is_within_the_bound(gpu: Any, requant: ModuleType, flavour: str) -> None:
    dtype, largest, inner = getattr(gpu, flavour), ACTIVATION_MAX[flavour], 384

    def activations(x: Any) -> Any:
        groups = x.float().unflatten(-1, (-1, 128))
        scale = groups.abs().amax(-1, keepdim=True) / largest
        return ((groups / scale).to(dtype).float() * scale).flatten(-2)

    def swiglu(packed: Any) -> Any:
        gate, up = packed.chunk(2, -1)
        gate, up = gate.clamp(max=LIMIT), up.clamp(-LIMIT, LIMIT)
        return (gate * gpu.sigmoid(ALPHA * gate) * (up + BETA)).bfloat16()

    w13, s13, exact13 = mxfp8(gpu, 4, 2 * inner, HIDDEN)
    w2, s2, exact2 = mxfp8(gpu, 4, HIDDEN, inner)
    block13 = dequantised(*requant.requant_mxfp8_to_block_fp8(w13, s13, dtype))
    block2 = dequantised(*requant.requant_mxfp8_to_block_fp8(w2, s2, dtype))
    x = gpu.randn(64, HIDDEN).bfloat16()
    for expert in range(4):
        expected = swiglu(x.float() @ exact13[expert].T).float() @ exact2[expert].T
        hidden = swiglu((activations(x) @ block13[expert].T).bfloat16().float())
        error = relative(activations(hidden) @ block2[expert].T, expected)
        print(f"{flavour}: relative error of expert {expert}: {error:.4f}")
        assert error < MOE_BOUND
