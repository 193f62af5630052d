"""A layer's forward pass through vLLM's modular kernel: which branch runs, with what, and how exact it is."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from types import ModuleType

KERNEL = "vllm.model_executor.layers.fused_moe.mxfp8_cdna3"
TRITON_EXPERTS = "vllm.model_executor.layers.fused_moe.experts.triton_moe"
FNUZ = torch.float8_e4m3fnuz
NATIVE_BOUND, BF16_BOUND = 6e-2, 6e-3


@dataclass
class Batch:
    hidden: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor

    @classmethod
    def make(cls, layer: Any, tokens: int, top_k: int = 2) -> Batch:
        """Return a normal batch in fp32: the interpreter gets bf16 products wrong."""
        random = torch.Generator().manual_seed(tokens)
        rows, _, hidden = layer.w13_weight.shape
        weights, ids = torch.randn((tokens, rows), generator=random).topk(top_k, dim=-1)
        return cls(torch.randn((tokens, hidden), generator=random), torch.sigmoid(weights), ids.int())


def forward(layer: Any, batch: Batch, **changes: Any) -> torch.Tensor:
    """Run the layer's modular kernel as its quantisation method does, with `changes` to the arguments."""
    arguments = {
        "activation": layer.activation,
        "global_num_experts": layer.global_num_experts,
        "expert_map": None,
        "apply_router_weight_on_input": False,
    }
    kernel = layer.quant_method.moe_kernel
    return kernel.apply(
        batch.hidden, layer.w13_weight, layer.w2_weight, batch.weights, batch.ids, **arguments | changes
    )


@pytest.fixture
def calls(experts: Any, reference: ModuleType) -> Any:
    return experts.replace_ops(reference)


def checkpoint(layer: Any) -> list[torch.Tensor]:
    names = ("w13_weight", "w13_weight_scale", "w2_weight", "w2_weight_scale")
    return [getattr(layer, name).detach().clone() for name in names]


def wanted(reference: ModuleType, weights: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Return the layer's output in fp32 from its checkpoint weights."""
    w13, w2 = reference.decode(*weights[:2]).float(), reference.decode(*weights[2:]).float()
    return reference.moe(batch.hidden, w13, w2, weights=batch.weights, ids=batch.ids)


def record_branches(experts: Any) -> list[str]:
    """Replace both branches' work and return the list that the ones that run are added to."""
    ran: list[str] = []
    kernel = importlib.import_module(KERNEL)
    triton_experts = importlib.import_module(TRITON_EXPERTS).TritonExperts
    experts.patch.setattr(kernel, "fused_experts", lambda *_, **__: ran.append("native"))
    experts.patch.setattr(triton_experts, "apply", lambda *_, **__: ran.append("bf16"))
    return ran


def branches(layer: Any, ran: list[str], tokens: tuple[int, ...]) -> list[str]:
    ran.clear()
    for count in tokens:
        forward(layer, Batch.make(layer, count))
    return list(ran)


@pytest.mark.rule("P1.7-9")
@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("prefill", [1024, 832])
def test_a_hybrid_layer_changes_branch_at_both_edges(experts: Any, prefill: int) -> None:
    experts.patch.setenv("KILN_MXFP8_MOE_PREFILL_TOKENS", str(prefill))
    layer = experts.layer(experts.small(hidden_dim=32))
    experts.processed(layer)
    ran = record_branches(experts)
    tokens = (1, 8, 9, prefill - 1, prefill, 4096)
    assert branches(layer, ran, tokens) == ["bf16", "bf16", "native", "native", "bf16", "bf16"]


@pytest.mark.rule("P1.7-9")
@pytest.mark.usefixtures("calls")
def test_the_decode_edge_is_a_setting_too(experts: Any) -> None:
    experts.patch.setenv("KILN_MXFP8_MOE_DECODE_TOKENS", "0")
    layer = experts.layer(experts.small())
    experts.processed(layer)
    assert branches(layer, record_branches(experts), (1, 8, 9)) == ["native"] * 3


@pytest.mark.rule("P1.7-10")
@pytest.mark.usefixtures("calls")
def test_a_layer_of_bf16_alone_runs_in_bf16(experts: Any) -> None:
    layer = experts.layer(experts.small(), index=5)
    experts.processed(layer)
    assert branches(layer, record_branches(experts), (1, 8, 9, 1023, 1024)) == ["bf16"] * 5


@pytest.mark.rule("P1.7-13")
@pytest.mark.usefixtures("calls")
def test_native_mode_runs_every_token_count_in_fp8(experts: Any) -> None:
    experts.patch.setenv("KILN_MXFP8_MOE", "native")
    layer = experts.layer(experts.small(), index=5)
    experts.processed(layer)
    assert branches(layer, record_branches(experts), (1, 8, 9, 1023, 1024)) == ["native"] * 5


@pytest.mark.rule("P1.7-13")
@pytest.mark.parametrize("mode", ["native", "hybrid"])
def test_native_mode_reserves_no_room_for_the_bf16_branch(experts: Any, mode: str) -> None:
    experts.patch.setenv("KILN_MXFP8_MOE", mode)
    layer = experts.layer(experts.small())
    made = experts.processed(layer)
    rows, columns, hidden = layer.w13_weight.shape
    shapes = made.workspace_shapes(64, columns, hidden, 2, rows, rows, None, layer.activation)
    assert type(made).__name__ == "Mxfp8Cdna3Experts"
    assert shapes[2] == (64, hidden)
    assert [len(shape) for shape in shapes[:2]] == ([1, 1] if mode == "native" else [3, 3])
    assert (shapes[0] == (0,)) == (mode == "native")


@pytest.mark.rule("P1.7-12")
@pytest.mark.usefixtures("calls")
def test_only_the_token_count_decides(experts: Any) -> None:
    layer = experts.layer(experts.small())
    experts.processed(layer)
    ran = record_branches(experts)
    for tokens, branch in ((8, "bf16"), (9, "native")):
        batch = Batch.make(layer, tokens)
        for ids in (batch.ids, torch.zeros_like(batch.ids), batch.ids.flip(0)):
            forward(layer, Batch(batch.hidden, batch.weights, ids))
        assert ran == [branch] * 3
        ran.clear()


# What reaches the kernels.


def arguments(experts: Any, layer: Any, tokens: int, **changes: Any) -> dict[str, Any]:
    """Return the arguments of fused_experts in a forward pass, its positional ones as "args"."""
    seen: dict[str, Any] = {}
    kernel = importlib.import_module(KERNEL)
    experts.patch.setattr(kernel, "fused_experts", lambda *args, **kwargs: seen.update(kwargs, args=args))
    forward(layer, Batch.make(layer, tokens), **changes)
    return seen


@pytest.mark.rule("P1.7-16")
def test_the_models_swiglu_parameters_reach_both_branches(experts: Any, calls: Any) -> None:
    layer = experts.layer(experts.small(swiglu_alpha=1.25, swiglu_beta=0.5, swiglu_limit=6.0))
    experts.processed(layer)
    seen = arguments(experts, layer, 9)
    assert (seen["alpha"], seen["beta"], seen["limit"]) == (1.25, 0.5, 6.0)
    forward(layer, Batch.make(layer, 8))
    assert [args for name, args in calls if name == "silu_and_mul_with_clamp"] == [(1.25, 0.5, 6.0)]


@pytest.mark.rule("P1.7-16")
def test_parameters_that_the_model_leaves_open_are_those_of_the_releases_emulation(experts: Any, calls: Any) -> None:
    from vllm.model_executor.layers.fused_moe.experts.mxfp8_emulation_moe import Mxfp8EmulationTritonExperts

    layer = experts.layer(experts.small(swiglu_alpha=None, swiglu_beta=None))
    experts.processed(layer)
    method = layer.quant_method
    emulation = Mxfp8EmulationTritonExperts(method.moe, method.get_fused_moe_quant_config(layer))
    emulation.activation(layer.activation, torch.empty(1, 32), torch.zeros(1, 64))
    seen = arguments(experts, layer, 9)
    forward(layer, Batch.make(layer, 8))
    activations = [args for name, args in calls if name == "silu_and_mul_with_clamp"]
    assert activations == [(seen["alpha"], seen["beta"], seen["limit"])] * 2


@pytest.mark.rule("P1.7-16")
@pytest.mark.usefixtures("calls")
def test_the_kernel_gets_the_layers_weights_and_packed_scales(experts: Any) -> None:
    layer = experts.layer(experts.small())
    experts.processed(layer)
    output, hidden, *weights = arguments(experts, layer, 9)["args"][:6]
    assert output.shape == hidden.shape
    assert hidden.dtype == torch.float32  # vLLM's prepare step has not quantised it
    expected = (layer.w13_weight, layer.w13_weight_scale, layer.w2_weight, layer.w2_weight_scale)
    assert all(tensor is parameter for tensor, parameter in zip(weights, expected, strict=True))


@pytest.mark.rule("P1.7-18")
@pytest.mark.parametrize("tokens", [9, 40])
def test_experts_that_are_not_here_never_reach_the_kernel(
    experts: Any, calls: Any, reference: ModuleType, tokens: int
) -> None:
    layer = experts.layer(experts.small())
    weights = checkpoint(layer)
    experts.processed(layer)
    here = torch.tensor([2, -1, 0, -1], dtype=torch.int32)
    batch = Batch.make(layer, tokens)
    output = forward(layer, batch, expert_map=here)
    align = next(args for name, args in calls if name == "moe_align_block_size")
    assert align[1] == layer.global_num_experts
    assert align[6] is here  # ignore_invalid_experts
    local = Batch(batch.hidden, batch.weights, here[batch.ids.long()])
    assert reference.relative(output, wanted(reference, weights, local)) < NATIVE_BOUND


@pytest.mark.rule("P1.7-18")
def test_without_an_expert_map_every_expert_is_aligned(experts: Any, calls: Any) -> None:
    layer = experts.layer(experts.small())
    experts.processed(layer)
    assert layer.w13_weight.dtype == FNUZ
    forward(layer, Batch.make(layer, 9))
    align = next(args for name, args in calls if name == "moe_align_block_size")
    assert (align[1], align[6]) == (4, None)


@pytest.mark.rule("P1.7-16")
def test_the_top_k_rows_are_added_up_by_the_releases_op(experts: Any, calls: Any) -> None:
    layer = experts.layer(experts.small())
    experts.processed(layer)
    output = forward(layer, Batch.make(layer, 9))
    parts, summed, *more = next(args for name, args in calls if name == "moe_sum")
    assert parts.shape == (9, 2, 64)
    assert parts.dtype == torch.bfloat16
    assert torch.equal(summed, output)
    assert not any(argument is not None for argument in more)


# How exact it is.


@pytest.mark.rule("P1.8-1")
@pytest.mark.usefixtures("calls")
def test_every_branch_is_as_exact_as_its_weights(experts: Any, reference: ModuleType) -> None:
    experts.patch.setenv("KILN_MXFP8_MOE_PREFILL_TOKENS", "33")
    layer = experts.layer(experts.small(hidden_dim=128, intermediate_size=64))
    weights = checkpoint(layer)
    experts.processed(layer)
    errors = {}
    for tokens in (1, 8, 9, 32, 33):
        batch = Batch.make(layer, tokens)
        right = wanted(reference, weights, batch)
        output = forward(layer, batch)
        errors[tokens] = reference.relative(output, right)
        assert reference.cosine(output, right) > 0.998  # noqa: PLR2004 - cosine of the whole layer
    assert all(errors[tokens] < BF16_BOUND for tokens in (1, 8, 33)), errors
    assert all(BF16_BOUND < errors[tokens] < NATIVE_BOUND for tokens in (9, 32)), errors


@pytest.mark.rule("P1.8-1")
@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("tokens", [8, 9])
def test_a_router_weight_on_the_input_is_applied_once(experts: Any, reference: ModuleType, tokens: int) -> None:
    """On the input and in GEMM2 would square it; the activation is not linear, so it matters which."""
    layer = experts.layer(experts.small(experts_per_token=1))
    weights = checkpoint(layer)
    experts.processed(layer)
    assert layer.w13_weight.dtype == FNUZ
    batch = Batch.make(layer, tokens, top_k=1)
    output = forward(layer, batch, apply_router_weight_on_input=True)
    scaled = Batch(batch.hidden * batch.weights, torch.ones_like(batch.weights), batch.ids)
    assert reference.relative(output, wanted(reference, weights, scaled)) < NATIVE_BOUND


@pytest.mark.rule("P1.9-2")
@pytest.mark.usefixtures("calls")
@pytest.mark.parametrize("tokens", [8, 9])
def test_a_shared_expert_in_the_last_row_is_computed(
    experts: Any, reference: ModuleType, release: str, tokens: int
) -> None:
    if release == "0.24.0" and tokens == 8:  # noqa: PLR2004
        experts.patch.setenv("KILN_MXFP8_MOE", "native")  # this release fuses none, and its BF16 experts cannot
    layer = experts.layer(experts.small(local_experts=5))
    weights = checkpoint(layer)
    experts.processed(layer)
    assert layer.w13_weight.dtype == FNUZ
    batch = Batch.make(layer, tokens)
    batch.ids[:, -1] = 4
    batch.ids[:, 0] = torch.arange(tokens) % 4
    assert reference.relative(forward(layer, batch), wanted(reference, weights, batch)) < NATIVE_BOUND


@pytest.mark.rule("P1.9-6")
@pytest.mark.usefixtures("calls")
def test_weights_that_were_never_converted_are_refused(experts: Any) -> None:
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import make_fp8_moe_kernel

    layer = experts.layer(experts.small())
    method = layer.quant_method
    method.moe_kernel = make_fp8_moe_kernel(
        moe_quant_config=method.get_fused_moe_quant_config(layer),
        moe_config=method.moe,
        experts_cls=method.experts_cls,
        fp8_backend=method.mxfp8_backend,
    )
    with pytest.raises(RuntimeError, match="process_weights_after_loading"):
        forward(layer, Batch.make(layer, 9))


@pytest.mark.rule("P1.4-0")
@pytest.mark.usefixtures("calls")
def test_the_bf16_branch_asks_for_tiles_by_a_name_without_a_dtype(experts: Any) -> None:
    layer = experts.layer(experts.small(intermediate_size=160))
    experts.processed(layer)
    assert layer.w13_weight.dtype == FNUZ
    batch = Batch.make(layer, 8)
    batch.hidden = batch.hidden.bfloat16()
    forward(layer, batch)
    looked_up = [line for line in experts.logged if "Config file not found" in line]
    assert len(looked_up) == 1
    assert "E=4,N=160,device_name=AMD_Instinct_MI300X.json" in looked_up[0]
