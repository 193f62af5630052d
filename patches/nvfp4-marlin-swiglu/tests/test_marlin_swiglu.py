"""What reaches the activation between the two GEMMs of the Marlin experts, in their three ways to run.

The release's own experts run on the CPU. Stand-ins take the place of the compiled GEMM, whose first call returns given
gate and up columns, and of the activation kernels, which record their arguments and compute in fp32.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0
MODEL = {"swiglu_alpha": ALPHA, "swiglu_beta": BETA, "swiglu_limit": LIMIT}
EXPERTS, TOKENS, SIZE = 2, 64, 32
TOLERANCE = 1e-6
PATHS = ("plain", "lora", "batched")


def swiglu_oai(columns: Any, limit: float, alpha: float, beta: float) -> Any:
    """Return the clamped SwiGLU of [gate | up]; alpha 1 and beta 0 make it the clamped SwiGLU of a SiLU model."""
    gate, up = columns.chunk(2, dim=-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * (alpha * gate).sigmoid() * (up + beta)


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return what the stand-ins see: gate_up goes in, activated comes out, and calls are (kernel, arguments)."""
    import torch
    import vllm.model_executor.layers.fused_moe.experts.marlin_moe as marlin

    generator = torch.Generator().manual_seed(0)
    seen = SimpleNamespace(calls=[], activated=[], gate_up=torch.randn(EXPERTS * TOKENS, 2 * SIZE, generator=generator))

    def gemm(columns: Any, output: Any, *_: Any, **__: Any) -> Any:
        if output.size(-1) == 2 * SIZE:
            return seen.gate_up[: len(output)]
        seen.activated.append(columns.clone())
        return torch.zeros_like(output)

    def with_clamp(output: Any, columns: Any, *parameters: float) -> None:
        seen.calls.append(("silu_and_mul_with_clamp", parameters))
        output.copy_(swiglu_oai(columns, *parameters))

    for kernel in ("silu_and_mul", "gelu_and_mul", "swigluoai_and_mul"):

        def record(output: Any, _: Any, *parameters: float, kernel: str = kernel) -> None:
            seen.calls.append((kernel, parameters))
            output.zero_()

        monkeypatch.setattr(torch.ops._C, kernel, record, raising=False)  # noqa: SLF001
    monkeypatch.setattr(torch.ops._C, "silu_and_mul_with_clamp", with_clamp, raising=False)  # noqa: SLF001
    monkeypatch.setattr(marlin.ops, "moe_wna16_marlin_gemm", gemm)
    monkeypatch.setattr(marlin.ops, "moe_sum", lambda *_: None)
    monkeypatch.setattr(marlin, "marlin_make_workspace_new", lambda *_: None)
    for align in ("moe_align_block_size", "batched_moe_align_block_size"):
        monkeypatch.setattr(marlin, align, lambda *_, **__: (None, None, None))
    return seen


def moe_config(activation: str, **fields: Any) -> Any:
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType

    return FusedMoEConfig(
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
        **fields,
    )


def quant_config(limit: float | None = None) -> Any:
    """Return the configuration that the release makes for NVFP4 weights on Marlin."""
    import torch
    from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend, make_nvfp4_moe_quant_config

    scales = torch.ones(EXPERTS)
    return make_nvfp4_moe_quant_config(NvFp4MoeBackend.MARLIN, scales, scales, scales, scales, None, None, limit)


def run(path: str, config: Any, quant: Any) -> None:
    """Run the Marlin experts once: alone, with a LoRA adapter, or on tokens batched by expert."""
    import torch
    import vllm.model_executor.layers.fused_moe.experts.marlin_moe as marlin

    rows = TOKENS if path != "batched" else EXPERTS * TOKENS
    if path == "batched":
        experts = marlin.BatchedMarlinExperts(config, quant, max_num_tokens=TOKENS, num_dispatchers=1)
    else:
        experts = marlin.MarlinExperts(config, quant)
    if path == "lora":
        experts.set_lora_context(object())
        experts.apply_w13_lora = lambda *_, **__: (None, None, None, None)
        experts.apply_w2_lora = lambda *_, **__: None
    # the cache of activated columns is given in fp32, so that comparing them needs no bf16 tolerance
    activated, columns = torch.empty(rows, SIZE), torch.empty(rows, 2 * SIZE)
    batched = path == "batched"
    hidden = torch.zeros(EXPERTS * TOKENS, SIZE, dtype=torch.bfloat16).view(EXPERTS, TOKENS, SIZE)
    experts.apply(
        output=torch.zeros_like(hidden if batched else hidden[0]),
        hidden_states=hidden if batched else hidden[0],
        w1=torch.zeros(EXPERTS, SIZE // 16, 4 * SIZE, dtype=torch.int32),
        w2=torch.zeros(EXPERTS, SIZE // 16, 2 * SIZE, dtype=torch.int32),
        topk_weights=torch.ones(TOKENS, 1),
        topk_ids=torch.zeros(TOKENS, 1, dtype=torch.int32),
        activation=config.activation,
        global_num_experts=EXPERTS,
        expert_map=None,
        a1q_scale=None,
        a2_scale=None,
        workspace13=columns if batched else activated,
        workspace2=activated if batched else columns,
        expert_tokens_meta=SimpleNamespace(expert_num_tokens=torch.full((EXPERTS,), TOKENS)),
        apply_router_weight_on_input=False,
    )


@pytest.mark.rule("X3-1")
@pytest.mark.parametrize("path", PATHS)
def test_the_activation_gets_the_models_alpha_and_beta_and_the_limit(kernels: Any, path: str) -> None:
    run(path, moe_config("SWIGLUOAI_UNINTERLEAVE", **MODEL), quant_config(LIMIT))
    assert kernels.calls == [("silu_and_mul_with_clamp", (LIMIT, ALPHA, BETA))]


@pytest.mark.rule("X3-2")
@pytest.mark.parametrize("path", PATHS)
def test_a_limit_that_the_quant_config_lacks_is_the_models(kernels: Any, path: str) -> None:
    run(path, moe_config("SWIGLUOAI_UNINTERLEAVE", **MODEL), quant_config())
    assert kernels.calls == [("silu_and_mul_with_clamp", (LIMIT, ALPHA, BETA))]


@pytest.mark.rule("X3-2")
@pytest.mark.parametrize("own", ["gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit"])
def test_each_value_of_the_quant_config_goes_before_the_models(kernels: Any, own: str) -> None:
    quant = quant_config()
    setattr(quant, own, 0.0)
    run("plain", moe_config("SWIGLUOAI_UNINTERLEAVE", **MODEL), quant)
    model = {"gemm1_clamp_limit": LIMIT, "gemm1_alpha": ALPHA, "gemm1_beta": BETA}
    assert kernels.calls == [("silu_and_mul_with_clamp", tuple((model | {own: 0.0}).values()))]


def test_without_any_values_the_activation_is_a_silu(kernels: Any) -> None:
    run("plain", moe_config("SWIGLUOAI_UNINTERLEAVE"), quant_config(LIMIT))
    assert kernels.calls == [("silu_and_mul_with_clamp", (LIMIT, 1.0, 0.0))]


@pytest.mark.usefixtures("kernels")
def test_without_any_limit_swiglu_oai_is_refused() -> None:
    with pytest.raises(AssertionError, match="requires clamp_limit"):
        run("plain", moe_config("SWIGLUOAI_UNINTERLEAVE", swiglu_alpha=ALPHA), quant_config())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("activation", "limit", "call"),
    [
        ("SILU", None, ("silu_and_mul", ())),
        ("SILU", LIMIT, ("silu_and_mul_with_clamp", (LIMIT, 1.0, 0.0))),
        ("GELU", None, ("gelu_and_mul", ())),
        ("SWIGLUOAI", LIMIT, ("swigluoai_and_mul", ())),
    ],
)
def test_other_activations_take_nothing_from_the_model(
    kernels: Any, path: str, activation: str, *, limit: float | None, call: tuple[str, tuple[float, ...]]
) -> None:
    run(path, moe_config(activation, **MODEL), quant_config(limit))
    assert kernels.calls == [call]


@pytest.mark.rule("X3-3")
@pytest.mark.parametrize("path", PATHS)
def test_the_experts_compute_swiglu_oai_and_not_a_silu(kernels: Any, path: str) -> None:
    run(path, moe_config("SWIGLUOAI_UNINTERLEAVE", **MODEL), quant_config(LIMIT))
    (found,) = (columns.double() for columns in kernels.activated)
    columns = kernels.gate_up[: len(found)].double()
    expected = swiglu_oai(columns, LIMIT, ALPHA, BETA)
    silu = swiglu_oai(columns, LIMIT, 1.0, 0.0)
    far = ((silu - expected).norm() / expected.norm()).item()
    assert far > 0.5  # noqa: PLR2004 - what losing alpha and beta costs on unit normal columns
    assert ((found - expected).norm() / expected.norm()).item() < TOLERANCE
