"""What is kept of a layer's checkpoint weights, through vLLM's own layer, quantisation method and reload."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
WEIGHTS = ("w13_weight", "w2_weight")
M3_LAYERS = range(3, 60)
MINUS_ZERO, NANS = 0x80, (0x7F, 0xFF)  # codes of E4M3FN


def snapshot(layer: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


def as_bf16(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return what the release's own load-time emulation makes of checkpoint weights."""
    from vllm.model_executor.layers.quantization.utils.mxfp8_utils import dequant_mxfp8_to_bf16

    return dequant_mxfp8_to_bf16(values, scales)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def assert_native(layer: Any, before: dict[str, torch.Tensor]) -> None:
    """Check FNUZ weights and packed scales that mean what the checkpoint meant."""
    for name in WEIGHTS:
        weight, packed = getattr(layer, name).data, getattr(layer, f"{name}_scale").data
        assert weight.dtype == FNUZ
        assert packed.is_contiguous()
        experts, rows, groups = before[f"{name}_scale"].shape
        assert packed.shape == (experts, groups, rows)
        meant = weight.float().unflatten(-1, (groups, 32)) * torch.exp2(packed.transpose(1, 2).float() - 127)[..., None]
        assert torch.equal(meant.flatten(-2).bfloat16(), as_bf16(before[name], before[f"{name}_scale"]))


def assert_bf16(layer: Any, before: dict[str, torch.Tensor], suffix: str) -> None:
    for name in WEIGHTS:
        copy = getattr(layer, name + suffix)
        assert copy.dtype == torch.bfloat16
        assert torch.equal(copy, as_bf16(before[name], before[f"{name}_scale"]))


def size(layer: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in layer.parameters())


@pytest.mark.rule("P1.7-9")
def test_a_hybrid_layer_keeps_fp8_and_bf16_of_the_same_checkpoint(experts: Any) -> None:
    layer = experts.layer(experts.small())
    before = snapshot(layer)
    experts.processed(layer)
    assert_native(layer, before)
    assert_bf16(layer, before, "_bf16")


@pytest.mark.rule("P1.7-1")
def test_negative_zeros_and_every_finite_code_keep_their_value(experts: Any) -> None:
    layer = experts.layer(experts.small())
    codes = torch.tensor([code for code in range(256) if code not in NANS], dtype=torch.uint8)
    for name in WEIGHTS:
        weight = bits(getattr(layer, name).data)
        weight.copy_(codes.repeat(weight.numel() // codes.numel() + 1)[: weight.numel()].view(weight.shape))
    before = snapshot(layer)
    experts.processed(layer)
    assert_native(layer, before)
    assert not any((bits(getattr(layer, name).data) == MINUS_ZERO).any() for name in WEIGHTS)


@pytest.mark.rule("P1.7-11")
def test_eleven_of_m3s_57_layers_keep_only_bf16_for_a_long_context(experts: Any) -> None:
    alone = []
    for index in M3_LAYERS:
        layer = experts.layer(experts.small(max_model_len=4097), index, seed=index)
        before = snapshot(layer)
        experts.processed(layer)
        if layer.w13_weight.dtype == torch.bfloat16:
            alone.append(index)
            assert_bf16(layer, before, "")
            assert set(dict(layer.named_parameters())) == set(before)
            assert size(layer) == 2 * sum(before[name].numel() for name in WEIGHTS)
        else:
            assert_native(layer, before)
            assert_bf16(layer, before, "_bf16")
    assert alone == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55]


@pytest.mark.rule("P1.7-11")
def test_a_short_context_keeps_both_copies_everywhere(experts: Any) -> None:
    for index in (5, 6, 55):
        layer = experts.layer(experts.small(max_model_len=4096), index)
        before = snapshot(layer)
        experts.processed(layer)
        assert_native(layer, before)
        assert_bf16(layer, before, "_bf16")


@pytest.mark.rule("P1.7-13")
@pytest.mark.parametrize("why", ["native mode", "not eligible"])
def test_fp8_alone_needs_no_byte_more_than_the_checkpoint(experts: Any, why: str) -> None:
    if why == "native mode":
        experts.patch.setenv("KILN_MXFP8_MOE", "native")
    config = experts.small()
    if why == "not eligible":
        from vllm.model_executor.layers.fused_moe import mxfp8_cdna3

        experts.patch.setattr(mxfp8_cdna3, "hybrid_eligible", lambda **_: False)
    layer = experts.layer(config, index=5)
    before = snapshot(layer)
    checkpoint = size(layer)
    experts.processed(layer)
    assert_native(layer, before)
    assert set(dict(layer.named_parameters())) == set(before)
    assert size(layer) == checkpoint


@pytest.mark.rule("P1.7-14")
def test_packed_scales_are_logged_once(experts: Any) -> None:
    for index in (6, 7, 8):
        experts.processed(experts.layer(experts.small(), index))
    assert experts.logged.count("Packed gfx94x MXFP8 MoE weight scales") == 1
    assert len([line for line in experts.logged if "hybrid: BF16 copies" in line]) == 1


@pytest.mark.rule("P1.7-2")
@pytest.mark.parametrize(("code", "value"), [("scale", 254), ("scale", 255), ("weight", 0x7F), ("weight", 0xFF)])
def test_a_value_that_fnuz_cannot_hold_names_the_layer(experts: Any, code: str, value: int) -> None:
    layer = experts.layer(experts.small(), index=7)
    target = layer.w2_weight_scale if code == "scale" else layer.w2_weight
    bits(target.data)[-1, -1, -1] = value
    with pytest.raises(ValueError, match=r"layers\.7\.block_sparse_moe\.experts\.w2_weight"):
        experts.processed(layer)


@pytest.mark.rule("P1.7-11")
@pytest.mark.parametrize("name", ["model.experts", "model.layers.5.blocks.6.experts"])
def test_a_layer_without_one_index_is_refused(experts: Any, name: str) -> None:
    layer = experts.layer(experts.small())
    layer.layer_name = name
    with pytest.raises(ValueError, match="layer index"):
        experts.processed(layer)


@pytest.mark.rule("P1.9-6")
def test_the_emulation_knob_changes_nothing_here(experts: Any) -> None:
    experts.patch.setenv("VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD", "0")
    layer = experts.layer(experts.small())
    before = snapshot(layer)
    experts.processed(layer)
    assert_native(layer, before)
    assert_bf16(layer, before, "_bf16")


def test_emulated_experts_still_become_bf16(experts: Any) -> None:
    layer = experts.layer(experts.small(ep_size=2, num_experts=8, local_experts=4))
    before = snapshot(layer)
    experts.processed(layer)
    assert_bf16(layer, before, "")
    assert set(dict(layer.named_parameters())) == set(before)


# A second time.


@pytest.mark.rule("P1.9-6")
def test_processing_twice_changes_nothing(experts: Any) -> None:
    layer = experts.layer(experts.small())
    experts.processed(layer)
    once = snapshot(layer)
    experts.processed(layer)
    assert layer.w13_weight.dtype == FNUZ
    assert all(torch.equal(bits(once[name]), bits(parameter)) for name, parameter in layer.named_parameters())


@pytest.mark.rule("P1.9-6")
@pytest.mark.parametrize("index", [5, 7])
def test_converted_weights_are_never_converted_again(experts: Any, index: int) -> None:
    layer = experts.layer(experts.small(), index)
    made = experts.processed(layer)
    once = snapshot(layer)
    with pytest.raises(RuntimeError, match="converted already"):
        made.process_weights_after_loading(layer)
    del layer._already_called_process_weights_after_loading  # noqa: SLF001
    with pytest.raises(ValueError, match="dtype"):
        experts.processed(layer)
    assert all(torch.equal(bits(once[name]), bits(parameter)) for name, parameter in layer.named_parameters())


@pytest.mark.rule("P1.9-6")
@pytest.mark.parametrize("index", [5, 7])
def test_checkpoint_weights_are_not_loaded_over_converted_ones(experts: Any, index: int) -> None:
    layer = experts.layer(experts.small(), index)
    experts.processed(layer)
    for name in ("w13_weight", "w2_weight", "w13_weight_scale", "w2_weight_scale"):
        parameter = getattr(layer, name)
        with pytest.raises(RuntimeError, match="reload_weights"):
            parameter.weight_loader(parameter, torch.zeros(64, 64), name, shard_id="w2", expert_id=0)


def load(layer: Any, checkpoint: dict[str, torch.Tensor]) -> None:
    """Load per-expert tensors as MiniMax-M3's load_weights does: through each parameter's own loader."""
    for name, tensor in checkpoint.items():
        for expert, rows in enumerate(tensor):
            halves = {"w1": rows[: len(rows) // 2], "w3": rows[len(rows) // 2 :]} if "w13" in name else {"w2": rows}
            for shard, half in halves.items():
                parameter = getattr(layer, name)
                parameter.weight_loader(parameter, half, name, shard_id=shard, expert_id=expert, return_success=True)


@pytest.mark.rule("P1.9-6")
@pytest.mark.parametrize("both", [True, False], ids=["both copies", "bf16 alone"])
def test_reload_weights_converts_the_new_checkpoint_into_the_old_memory(experts: Any, *, both: bool) -> None:
    """A captured graph holds addresses: vLLM's layerwise reload must put the new weights there."""
    from vllm.model_executor.model_loader.reload import layerwise

    config = experts.small()
    layer = experts.layer(config, index=7 if both else 5)
    read = [*WEIGHTS, *((f"{name}{suffix}" for name in WEIGHTS for suffix in ("_scale", "_bf16")) if both else ())]
    new = snapshot(experts.layer(config, seed=1))
    model = torch.nn.ModuleList([layer])
    layerwise.record_metadata_for_reloading(model)
    experts.processed(layer)
    old, addresses = snapshot(layer), {name: getattr(layer, name).data_ptr() for name in read}

    layerwise.initialize_layerwise_reload(model)
    load(layer, new)
    layerwise.finalize_layerwise_processing(model, SimpleNamespace(dtype=torch.bfloat16))

    assert {name: getattr(layer, name).data_ptr() for name in read} == addresses
    assert not torch.equal(bits(old["w13_weight"]), bits(layer.w13_weight))
    if both:
        assert_native(layer, new)
    assert_bf16(layer, new, "_bf16" if both else "")
    assert layer.quant_method.moe_kernel.fused_experts.layer is layer
