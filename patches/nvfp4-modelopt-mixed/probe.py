"""Red unless a mixed ModelOpt checkpoint of MiniMax-M3 gets MXFP8 projections and SwiGLU-OAI on the TRTLLM experts.

Asks the release's own configuration for the method of fused projections, and looks at what its TRTLLM experts pass to
a stand-in of the FlashInfer kernels: alpha as the model has it, beta and the clamp limit divided by the scale of the
first GEMM, once. Needs an importable vllm, but no GPU and no FlashInfer.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import enum
import os
import sys
import types
from typing import Any

ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0
EXPERTS, HIDDEN, TOKENS, TOP_K = 4, 256, 2, 2
TOLERANCE = 1e-6
SCALES = [0.5, 0.03, 0.002, 1.5]
SHARDS = {
    "a.o_proj": ("a.o_proj",),
    "a.qkv_proj": ("a.q_proj", "a.k_proj", "a.v_proj"),
    "a.gate_up_proj": ("a.gate_proj", "a.up_proj"),
}
PROJECTIONS = {
    ("a.o_proj", ("MXFP8",)): "ModelOptMxFp8LinearMethod",
    ("a.qkv_proj", ("MXFP8", "MXFP8", "MXFP8")): "ModelOptMxFp8LinearMethod",
    ("a.qkv_proj", ("MXFP8", "MXFP8", "NVFP4")): "an error",
    ("a.gate_up_proj", ("NVFP4", "NVFP4")): "ModelOptNvFp4LinearMethod",
}


def linear_problems() -> list[str]:
    """Return what is wrong with the methods of MiniMax-M3's projections."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear
    from vllm.model_executor.layers.quantization import modelopt

    modelopt.init_mxfp8_linear_kernel = lambda *_, **__: None
    modelopt.init_nvfp4_linear_kernel = lambda *_, **__: None
    problems = []
    for (name, algos), expected in PROJECTIONS.items():
        layers = {shard: {"quant_algo": algo} for shard, algo in zip(SHARDS[name], algos, strict=True)}
        config = modelopt.ModelOptMixedPrecisionConfig.from_config(
            {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
        )
        try:
            found = type(config.get_quant_method(ColumnParallelLinear.__new__(ColumnParallelLinear), name)).__name__
        except ValueError:
            found = "an error"
        if found != expected:
            problems.append(f"{name} of {', '.join(algos)} gets {found}, expected {expected}")
    return problems


def stand_in() -> list[dict[str, Any]]:
    """Put a stand-in for FlashInfer in place and return the list that its calls are added to."""
    calls: list[dict[str, Any]] = []

    def record(**arguments: Any) -> list[None]:
        calls.append(arguments)
        return [None]

    core = types.ModuleType("flashinfer.fused_moe.core")
    core.ActivationType = enum.Enum("ActivationType", ["Silu", "Gelu", "Swiglu", "Geglu", "Relu2"])
    moe = types.ModuleType("flashinfer.fused_moe")
    moe.core, moe.trtllm_fp4_block_scale_moe, moe.trtllm_fp4_block_scale_routed_moe = core, record, record
    flashinfer = types.ModuleType("flashinfer")
    flashinfer.fused_moe = moe
    sys.modules |= {module.__name__: module for module in (flashinfer, moe, core)}
    return calls


def call(cls: Any) -> Any:
    """Process the weights of these experts, run them once and return their layer."""
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import (
        FusedMoEConfig,
        FusedMoEParallelConfig,
        RoutingMethodType,
        nvfp4_moe_quant_config,
    )

    activation = MoEActivation.SWIGLUOAI_UNINTERLEAVE
    config = FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=TOP_K,
        hidden_dim=HIDDEN,
        intermediate_size=HIDDEN,
        num_local_experts=EXPERTS,
        num_logical_experts=EXPERTS,
        activation=activation,
        device="cpu",
        routing_method=RoutingMethodType.MiniMax2,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
        swiglu_alpha=ALPHA,
        swiglu_beta=BETA,
        swiglu_limit=LIMIT,
    )
    layer = torch.nn.Module()
    for name in ("w13_weight_scale_2", "w2_weight_scale_2", "w13_input_scale", "w2_input_scale"):
        layer.register_parameter(name, torch.nn.Parameter(torch.tensor(SCALES), requires_grad=False))
    block_scales = torch.ones(EXPERTS, 4, dtype=torch.float8_e4m3fn)
    experts = cls(
        config,
        nvfp4_moe_quant_config(
            g1_alphas=layer.w13_weight_scale_2,
            g2_alphas=layer.w2_weight_scale_2,
            a1_gscale=1.0 / layer.w13_input_scale,
            a2_gscale=1.0 / layer.w2_input_scale,
            w1_scale=block_scales,
            w2_scale=block_scales,
        ),
    )
    experts.process_weights_after_loading(layer)
    common = {
        "hidden_states": torch.zeros(TOKENS, HIDDEN // 2, dtype=torch.uint8),
        "w1": torch.empty(0),
        "w2": torch.empty(0),
        "activation": activation,
        "global_num_experts": EXPERTS,
        "expert_map": None,
        "a1q_scale": torch.zeros(TOKENS, HIDDEN // 16, dtype=torch.uint8),
        "apply_router_weight_on_input": False,
    }
    if cls.is_monolithic():
        experts.apply(router_logits=torch.zeros(TOKENS, EXPERTS), **common)
        return layer
    names = ("topk_weights", "topk_ids", "workspace13", "workspace2", "expert_tokens_meta", "a2_scale")
    experts.apply(output=torch.zeros(TOKENS, HIDDEN), **common, **dict.fromkeys(names, torch.zeros(TOKENS, TOP_K)))
    return layer


def argument_problems(layer: Any, arguments: dict[str, Any]) -> list[str]:
    """Return which parameters of the activation are not what the kernel must get."""
    import torch

    scale = arguments["output1_scale_gate_scalar"].data.double()
    expected = {"gemm1_alpha": ALPHA + 0 * scale, "gemm1_beta": BETA / scale, "gemm1_clamp_limit": LIMIT / scale}
    problems = []
    for name, value in expected.items():
        found = arguments[name]
        if found is None:
            problems.append(f"{name} is not passed")
        elif found is not getattr(layer, name, None):
            problems.append(f"{name} is not a parameter of the layer, so load balancing would not move it")
        elif found.dtype != torch.float32 or not torch.allclose(found.data.double(), value, rtol=TOLERANCE, atol=0):
            problems.append(f"{name} is {found.tolist()}, expected {value.tolist()}")
    return problems


def expert_problems() -> list[str]:
    """Return what is wrong with the TRTLLM experts."""
    import torch
    import vllm.model_executor.layers.fused_moe.experts.trtllm_nvfp4_moe as trtllm

    torch.accelerator.current_device_index = lambda: torch.device("cpu")
    trtllm.trtllm_moe_pack_topk_ids_weights = lambda ids, _weights: ids
    calls = stand_in()
    problems = []
    for cls in (trtllm.TrtLlmNvFp4ExpertsMonolithic, trtllm.TrtLlmNvFp4ExpertsModular):
        try:
            layer = call(cls)
        except (AssertionError, KeyError) as error:
            problems.append(f"{cls.__name__} refuses the activation: {error!r}")
            continue
        problems += [f"{cls.__name__}: {problem}" for problem in argument_problems(layer, calls.pop())]
    return problems


def main() -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    problems = linear_problems() + expert_problems()
    for problem in problems:
        print(f"red: {problem}")
    if problems:
        return 1
    print("green: fused projections take their shards' algorithm, and both kernels get alpha, beta and the clamp limit")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.exit(main())
