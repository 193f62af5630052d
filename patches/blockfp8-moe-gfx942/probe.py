"""Red unless a MiniMax-M3 expert layer on gfx942 runs its MXFP8 weights as block FP8, one byte each.

Fakes gfx942's answers and builds the release's own MXFP8 expert layer: which backend and experts it chooses, what its
weights become and stand for, and whether its SwiGLU parameters get through. Needs an importable vllm.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import torch

EXPERTS, HIDDEN, INTERMEDIATE = 2, 256, 128
SWIGLU = (1.702, 1.0, 7.0)  # alpha, beta, limit
WEIGHT_BOUND = 0.04  # relative norm; one float32 scale for 128x128 values costs 0.03


def fake_gfx942() -> None:
    from vllm.platforms import current_platform

    class Gfx942(type(current_platform)):
        def is_rocm(self) -> bool:
            return True

        def is_cuda_alike(self) -> bool:
            return True

        def supports_fp8(self) -> bool:
            return True

        def supports_mx(self) -> bool:
            return False

        def is_fp8_fnuz(self) -> bool:
            return True

        def fp8_dtype(self) -> torch.dtype:
            return torch.float8_e4m3fnuz

        def has_device_capability(self, *_: object, **__: object) -> bool:
            return False

    current_platform.__class__ = Gfx942


def make_method():  # noqa: ANN201 - vllm's types are not importable where this file is checked
    """Return the release's method for MXFP8 experts of MiniMax-M3's kind, with small sizes."""
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
    from vllm.model_executor.layers.quantization.modelopt import ModelOptMxFp8FusedMoE

    alpha, beta, limit = SWIGLU
    config = FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=1,
        hidden_dim=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_local_experts=EXPERTS,
        num_logical_experts=EXPERTS,
        activation=MoEActivation.SWIGLUOAI_UNINTERLEAVE,
        device="cpu",
        routing_method=RoutingMethodType.Renormalize,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
        swiglu_alpha=alpha,
        swiglu_beta=beta,
        swiglu_limit=limit,
    )
    fake_gfx942()
    return ModelOptMxFp8FusedMoE(SimpleNamespace(is_checkpoint_mxfp8_serialized=True), config)


def make_layer() -> torch.nn.Module:
    """Return a layer with random MXFP8 weights: float8_e4m3fn values, a scale byte for each 32 of them."""
    torch.manual_seed(0)
    layer = torch.nn.Module()
    for name, n, k in (("w13", 2 * INTERMEDIATE, HIDDEN), ("w2", HIDDEN, INTERMEDIATE)):
        weight = torch.randn(EXPERTS, n, k).mul(64).to(torch.float8_e4m3fn)
        scale = torch.randint(118, 121, (EXPERTS, n, k // 32), dtype=torch.uint8)
        layer.register_parameter(f"{name}_weight", torch.nn.Parameter(weight, requires_grad=False))
        layer.register_parameter(f"{name}_weight_scale", torch.nn.Parameter(scale, requires_grad=False))
    layer.orig_dtype = torch.bfloat16
    layer.swiglu_alpha, layer.swiglu_beta, layer.swiglu_limit = SWIGLU
    layer._expert_routing_tables = lambda: None  # noqa: SLF001
    return layer


def parameters(layer: torch.nn.Module, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return getattr(layer, f"{name}_weight").data, getattr(layer, f"{name}_weight_scale").data


def values(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return what weights stand for, with E8M0 scales of 32 columns or float32 scales of 128x128 tiles."""
    if scale.dtype == torch.uint8:
        return weight.float() * torch.exp2(scale.float() - 127).repeat_interleave(32, -1)
    return weight.float() * scale.repeat_interleave(128, 1).repeat_interleave(128, 2)


def faults(method, layer: torch.nn.Module) -> list[str]:  # noqa: ANN001
    """Process the layer's weights and return what is wrong with them."""
    found = []
    given = {name: values(*parameters(layer, name)) for name in ("w13", "w2")}
    method.process_weights_after_loading(layer)
    for name, expected in given.items():
        weight, scale = parameters(layer, name)
        if weight.dtype != torch.float8_e4m3fnuz or scale.dtype != torch.float32:
            found.append(f"{name} is held as {weight.dtype} with scales of {scale.dtype}")
            continue
        error = float((values(weight, scale) - expected).norm() / expected.norm())
        if not error < WEIGHT_BOUND:
            found.append(f"{name} is off by {error:.3f} of its norm")
    config = method.moe_quant_config
    if (config.gemm1_alpha, config.gemm1_beta, config.gemm1_clamp_limit) != SWIGLU:
        found.append("the SwiGLU parameters do not reach the quantisation config")
    if config.block_shape != [128, 128] or config.quant_dtype != torch.float8_e4m3fnuz:
        found.append(f"activations are quantised as {config.quant_dtype} in blocks of {config.block_shape}")
    return found


def main() -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    method = make_method()
    found = []
    if method.experts_cls.__name__ != "TritonExperts":
        found.append(f"the experts run as {method.experts_cls.__name__}, backend {method.mxfp8_backend.value}")
    found += faults(method, make_layer())
    for fault in found:
        print(f"red: {fault}")
    if found:
        return 1
    print("green: the experts stay one byte per weight and run as block FP8")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.exit(main())
