"""The release's own backend choice and MoE layer, from checkpoint to output, on a faked gfx942."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from .conftest import ALPHA, BETA, LIMIT, Layers, dequantized, relative

if TYPE_CHECKING:
    from collections.abc import Callable

MOE_BOUND = 0.09
WEIGHT_BOUND = 0.04
MARKER = "Using Triton block FP8 MoE"
NAMES = ("w13_weight", "w13_weight_scale", "w2_weight", "w2_weight_scale")


def select(config: Any, **options: Any) -> tuple[str, str]:
    from vllm.model_executor.layers.fused_moe.oracle.mxfp8 import select_mxfp8_moe_backend

    backend, experts = select_mxfp8_moe_backend(config, **options)
    return backend.value, experts.__name__


BLOCK = ("TRITON", "TritonExperts")
EMULATION = ("EMULATION", "Mxfp8EmulationTritonExperts")


@pytest.mark.rule("P1b-6")
@pytest.mark.parametrize("ep", [1, 8])
def test_gfx942_selects_the_triton_experts_when_the_caller_requantises(layers: Layers, ep: int) -> None:
    assert select(layers.config(ep=ep), allow_block_fp8=True) == BLOCK
    assert select(layers.config(ep=ep)) == EMULATION


@pytest.mark.rule("P1b-6")
def test_other_devices_choose_as_released(layers: Layers, on: Callable[[str], None]) -> None:
    chosen = {}
    for arch in ("gfx950:sramecc+:xnack-", "gfx90a:sramecc+:xnack-", "cuda"):
        on(arch)
        chosen[arch[:6]] = select(layers.config(), allow_block_fp8=True)
        assert chosen[arch[:6]] == select(layers.config())
    assert chosen["gfx950"] == ("NATIVE_MXFP8", "Mxfp8NativeTritonExperts")
    assert chosen["gfx90a"] == EMULATION
    assert chosen["cuda"] == ("MARLIN", "MarlinExperts")


@pytest.mark.rule("P1b-6")
def test_requested_backend_is_never_replaced(layers: Layers, on: Callable[[str], None]) -> None:
    for name in ("flashinfer_trtllm", "deep_gemm", "marlin", "xpu", "triton", "aiter"):
        with pytest.raises(ValueError, match="MXFP8"):
            select(layers.config(moe_backend=name), allow_block_fp8=True)
    on("cuda")
    assert select(layers.config(moe_backend="marlin"), allow_block_fp8=True) == ("MARLIN", "MarlinExperts")


@pytest.mark.rule("P1b-6")
def test_batched_activations_stay_on_emulation_and_say_why(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    config = layers.config()
    monkeypatch.setattr(
        type(config.moe_parallel_config), "use_batched_activation_format", property(lambda _: True), raising=False
    )
    assert select(config, allow_block_fp8=True) == EMULATION
    assert any("not requantized to block FP8: kernel does not support ('batched_experts'" in line for line in log)
    assert not any(MARKER in line for line in log)


@pytest.mark.rule("P1b-7")
def test_only_modelopt_checkpoints_are_requantised(layers: Layers) -> None:
    from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe import (
        compressed_tensors_moe_w8a8_mxfp8 as compressed,
    )
    from vllm.model_executor.layers.quantization.online.mxfp8 import Mxfp8OnlineMoEMethod

    config = layers.config()
    online = Mxfp8OnlineMoEMethod(layer=SimpleNamespace(moe_config=config))
    tensors = compressed.CompressedTensorsW8A8Mxfp8MoEMethod(config)
    for method in (online, tensors):
        assert (method.fp8_backend.value, method.experts_cls.__name__) == EMULATION
        assert method.weight_block_size == [1, 32]
    method = layers.empty().quant_method
    assert (method.mxfp8_backend.value, method.experts_cls.__name__) == BLOCK


@pytest.mark.rule("P1b-7")
def test_layers_of_other_devices_keep_their_checkpoint_format(layers: Layers, on: Callable[[str], None]) -> None:
    on("gfx950:sramecc+:xnack-")
    layer = layers.loaded()
    assert layer.weight_block_size == [1, 32]
    assert torch.equal(layer.w2_weight.view(torch.uint8), layers.checkpoint["w2"].weight.view(torch.uint8))
    assert torch.equal(layer.w2_weight_scale, layers.checkpoint["w2"].scale)
    on("gfx942:sramecc+:xnack-")
    assert layers.loaded().weight_block_size == [128, 128]


@pytest.mark.rule("P1b-2")
def test_layer_whose_gate_and_up_share_a_tile_is_refused_before_loading(layers: Layers) -> None:
    with pytest.raises(ValueError, match="per-rank intermediate size divisible by 128, got 192"):
        layers.empty(intermediate_size=192)


@pytest.mark.rule("P1b-1")
def test_loaded_layer_holds_block_fp8_of_the_checkpoint(layers: Layers) -> None:
    layer = layers.loaded()
    experts, hidden, intermediate = layers.experts, layers.hidden, layers.intermediate
    assert layer.w13_weight.shape == (experts, 2 * intermediate, hidden)
    assert layer.w2_weight.shape == (experts, hidden, intermediate)
    assert layer.w13_weight_scale.shape == (experts, 2 * intermediate // 128, hidden // 128)
    assert layer.w2_weight_scale.shape == (experts, hidden // 128, intermediate // 128)
    assert {layer.w13_weight.dtype, layer.w2_weight.dtype} == {torch.float8_e4m3fnuz}
    values = {name: tensors.values for name, tensors in layers.checkpoint.items()}
    pairs = {"w13": torch.cat([values["w1"], values["w3"]], 1), "w2": values["w2"]}
    for name, expected in pairs.items():
        found = dequantized(getattr(layer, f"{name}_weight"), getattr(layer, f"{name}_weight_scale"))
        assert relative(found, expected) < WEIGHT_BOUND


@pytest.mark.rule("P1b-3")
def test_swiglu_parameters_reach_the_fp8_quant_config(layers: Layers) -> None:
    layer = layers.loaded()
    config = layer.quant_method.moe_quant_config
    assert (config.gemm1_alpha, config.gemm1_beta, config.gemm1_clamp_limit) == (ALPHA, BETA, LIMIT)
    assert (config.quant_dtype, config.block_shape) == (torch.float8_e4m3fnuz, [128, 128])
    assert config.use_fp8_w8a8
    assert config.w1_scale is layer.w13_weight_scale
    assert config.w2_scale is layer.w2_weight_scale


@pytest.mark.rule("P1b-5")
@pytest.mark.parametrize("tokens", [1, 24], ids=["one block per token", "sorted by expert"])
def test_moe_through_the_triton_kernel_is_within_the_bound(layers: Layers, tokens: int) -> None:
    error = relative(layers.run(layers.loaded(), tokens), layers.expected(tokens))
    print(f"MoE of {tokens} tokens: relative error {error:.4f}")
    assert error < MOE_BOUND


@pytest.mark.rule("P1b-5")
def test_bound_catches_dropped_swiglu_parameters_and_misplaced_scales(layers: Layers) -> None:
    expected = layers.expected(24)
    assert relative(layers.run(layers.loaded(swiglu=(None, None)), 24), expected) > MOE_BOUND
    assert relative(layers.run(layers.loaded(swiglu=(ALPHA, None)), 24), expected) > MOE_BOUND
    layer = layers.loaded()
    layer.w13_weight_scale.data.copy_(layer.w13_weight_scale.flip(1))
    assert relative(layers.run(layer, 24), expected) > MOE_BOUND
    assert relative(layers.run(layers.loaded(), 24), expected) < MOE_BOUND


@pytest.mark.rule("P1b-6")
@pytest.mark.parametrize("with_aiter", [False, True])
def test_expert_parallel_ranks_add_up_to_the_whole(layers: Layers, *, with_aiter: bool) -> None:
    parts = [layers.run(layers.loaded(ep=2, rank=rank, with_aiter=with_aiter), 24) for rank in (0, 1)]
    assert relative(parts[0] + parts[1], layers.expected(24)) < MOE_BOUND
    assert all(part.norm() > 0 for part in parts)


@pytest.mark.rule("P1b-8")
def test_marker_is_logged_once_and_only_after_requantisation(
    layers: Layers, on: Callable[[str], None], log: list[str]
) -> None:
    layer = layers.empty()
    layers.load(layer)
    on("gfx950:sramecc+:xnack-")
    layers.loaded()
    on("gfx942:sramecc+:xnack-")
    assert not any(MARKER in line for line in log)
    layer.quant_method.process_weights_after_loading(layer)
    layers.loaded()
    marked = [line for line in log if MARKER in line]
    assert marked == [f"{MARKER}: MXFP8 experts requantized to 128x128 tiles of torch.float8_e4m3fnuz."]
    assert not any("dequant" in line for line in log)


@pytest.mark.rule("P1b-9")
def test_processing_twice_changes_nothing(layers: Layers) -> None:
    layer = layers.loaded()
    before = {name: getattr(layer, name).clone() for name in NAMES}
    layer.quant_method.process_weights_after_loading(layer)
    assert layer.w13_weight.dtype == torch.float8_e4m3fnuz
    for name, tensor in before.items():
        assert torch.equal(getattr(layer, name).view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.rule("P1b-9")
def test_loading_over_requantised_experts_is_refused(layers: Layers) -> None:
    layer = layers.loaded()
    for name in NAMES:
        parameter = getattr(layer, name)
        with pytest.raises(RuntimeError, match="requantized to block FP8"):
            parameter.weight_loader(parameter, torch.zeros(1), f"experts.{name}", "w1", 0)


@pytest.mark.rule("P1b-9")
def test_reload_requantises_into_the_same_memory(layers: Layers) -> None:
    from vllm.model_executor.model_loader.reload import layerwise

    layer = layers.empty()
    layerwise.record_metadata_for_reloading(layer)
    layers.load(layer)
    layer.quant_method.process_weights_after_loading(layer)
    addresses = {name: getattr(layer, name).data_ptr() for name in NAMES}

    for seed in (50, 60):
        layers.checkpoint = layers.weights(seed)
        layerwise.initialize_layerwise_reload(layer)
        layers.load(layer)
        layerwise.finalize_layerwise_reload(layer, SimpleNamespace(dtype=torch.bfloat16))

        fresh = layers.loaded()
        for name in NAMES:
            assert getattr(layer, name).data_ptr() == addresses[name]
            assert torch.equal(getattr(layer, name).view(torch.uint8), getattr(fresh, name).view(torch.uint8))
        assert layer.w13_weight.dtype == torch.float8_e4m3fnuz
        assert relative(layers.run(layer, 24), layers.expected(24)) < MOE_BOUND
    with pytest.raises(RuntimeError, match="requantized to block FP8"):
        layers.load(layer)
