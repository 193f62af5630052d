"""Red unless the Marlin experts hand MiniMax-M3's alpha, beta and clamp limit to the activation, for NVFP4 weights.

Builds both kinds of the release's own Marlin experts with the configuration that the release makes for NVFP4 weights,
and reads what their functions pass on to the activation. Needs an importable vllm, but no GPU.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0
EXPERTS, TOKENS, SIZE = 2, 4, 32
# activation, limit of the quant config -> (kernel, its parameters)
EXPECTED = {
    ("SWIGLUOAI_UNINTERLEAVE", LIMIT): ("silu_and_mul_with_clamp", (LIMIT, ALPHA, BETA)),
    ("SWIGLUOAI_UNINTERLEAVE", None): ("silu_and_mul_with_clamp", (LIMIT, ALPHA, BETA)),
}


def stand_in(marlin: Any) -> list[tuple[str, tuple[float, ...]]]:
    """Take the compiled kernels away and return the list that calls of the activation are added to."""
    import torch

    calls: list[tuple[str, tuple[float, ...]]] = []
    for kernel in ("silu_and_mul", "silu_and_mul_with_clamp"):

        def record(_output: Any, _columns: Any, *parameters: float, kernel: str = kernel) -> None:
            calls.append((kernel, parameters))

        setattr(torch.ops._C, kernel, record)  # noqa: SLF001 - the compiled kernels of vLLM
    marlin.ops.moe_wna16_marlin_gemm = lambda _columns, output, *_, **__: output
    marlin.ops.moe_sum = lambda *_: None
    marlin.marlin_make_workspace_new = lambda *_: None
    marlin.moe_align_block_size = lambda *_, **__: (None, None, None)
    marlin.batched_moe_align_block_size = lambda *_, **__: (None, None, None)
    return calls


def configs(activation: str, limit: float | None) -> tuple[Any, Any]:
    """Return the configuration of MiniMax-M3's experts and the one of their NVFP4 weights on Marlin."""
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType
    from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend, make_nvfp4_moe_quant_config

    scales = torch.ones(EXPERTS)
    model = FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=1,
        hidden_dim=SIZE,
        intermediate_size=SIZE,
        num_local_experts=EXPERTS,
        num_logical_experts=EXPERTS,
        activation=MoEActivation[activation],
        device="cpu",
        routing_method=RoutingMethodType.MiniMax2,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
        swiglu_alpha=ALPHA,
        swiglu_beta=BETA,
        swiglu_limit=LIMIT,
    )
    backend = NvFp4MoeBackend.MARLIN
    return model, make_nvfp4_moe_quant_config(backend, scales, scales, scales, scales, None, None, limit)


def run(experts: Any, *, batched: bool) -> None:
    """Run these experts once."""
    import torch

    hidden = torch.zeros(EXPERTS, TOKENS, SIZE, dtype=torch.bfloat16)
    rows = EXPERTS * TOKENS if batched else TOKENS
    columns, activated = torch.empty(rows, 2 * SIZE), torch.empty(rows, SIZE)
    experts.apply(
        output=torch.zeros_like(hidden if batched else hidden[0]),
        hidden_states=hidden if batched else hidden[0],
        w1=torch.zeros(EXPERTS, SIZE // 16, 4 * SIZE, dtype=torch.int32),
        w2=torch.zeros(EXPERTS, SIZE // 16, 2 * SIZE, dtype=torch.int32),
        topk_weights=torch.ones(TOKENS, 1),
        topk_ids=torch.zeros(TOKENS, 1, dtype=torch.int32),
        activation=experts.moe_config.activation,
        global_num_experts=EXPERTS,
        expert_map=None,
        a1q_scale=None,
        a2_scale=None,
        workspace13=columns if batched else activated,
        workspace2=activated if batched else columns,
        expert_tokens_meta=SimpleNamespace(expert_num_tokens=torch.full((EXPERTS,), TOKENS)),
        apply_router_weight_on_input=False,
    )


def main() -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import vllm.model_executor.layers.fused_moe.experts.marlin_moe as marlin

    calls, red = stand_in(marlin), 0
    for (activation, limit), expected in EXPECTED.items():
        pair = configs(activation, limit)
        plain = marlin.MarlinExperts(*pair)
        batched = marlin.BatchedMarlinExperts(*pair, max_num_tokens=TOKENS, num_dispatchers=1)
        for experts in (plain, batched):
            case = f"{type(experts).__name__}, {activation}, limit {limit} in the quant config"
            try:
                run(experts, batched=experts is batched)
                found: Any = calls.pop()
            except AssertionError as error:
                found = repr(error)
            if found != expected:
                red += 1
                print(f"red: {case}: the activation is called as {found}, expected {expected}")
    if red:
        return 1
    print("green: both kinds of Marlin experts pass alpha, beta and the clamp limit on")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.exit(main())
