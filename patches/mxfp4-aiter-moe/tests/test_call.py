"""What AITER is called with, recorded under the release's own experts and custom operation."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import QuarkLayer, World


@pytest.mark.rule("P3-8")
def test_aiter_is_called_once_with_separate_halves(world: World, quark: Callable[..., QuarkLayer]) -> None:
    layer = quark(intermediate_pad=0)
    layer.forward()
    (call,) = world.calls
    assert call["activation"].name == "Swiglu"  # in AITER this means alpha 1.702, beta 1 and, unless told, limit 7
    assert not call.get("swiglu_limit")
    assert call["gate_mode"] == "separated"
    assert call["quant_type"].name == "per_1x32"
    assert call["w1"].is_shuffled
    assert call["w2"].is_shuffled
    assert call["w1_scale"].data_ptr() == layer.weights.w13_weight_scale.data_ptr()
    assert call["w2_scale"].data_ptr() == layer.weights.w2_weight_scale.data_ptr()
    assert call["a1_scale"] is call["a2_scale"] is call["bias1"] is call["bias2"] is None


@pytest.mark.rule("P3-9")
@pytest.mark.parametrize("given", [0, 64, 192])
def test_given_padding_replaces_the_inferred(world: World, given: int) -> None:
    world.probe.run_experts(world.config(intermediate_pad=given))
    assert world.calls[0]["intermediate_pad"] == given


@pytest.mark.rule("P3-10")
def test_without_a_given_padding_it_is_inferred(world: World) -> None:
    world.probe.run_experts(world.config())
    assert world.calls[0]["intermediate_pad"] == world.inferred_padding


@pytest.mark.rule("P3-11")
@pytest.mark.usefixtures("gfx950")
def test_layer_hands_the_padding_to_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.fused_moe import layer

    configuration = MagicMock(side_effect=InterruptedError)
    monkeypatch.setattr(layer, "FusedMoEConfig", configuration)
    for name in ("get_current_vllm_config", "make_parallel_config", "ExpertMapManager"):
        monkeypatch.setattr(layer, name, MagicMock())
    sizes = {"num_experts": 4, "top_k": 2, "hidden_size": 64, "intermediate_size": 64, "router": MagicMock()}
    for given in ({"intermediate_pad": 0}, {"intermediate_pad": 64}, {}):
        with pytest.raises(InterruptedError):
            layer.FusedMoE(**sizes, **given)
    assert [call.kwargs["intermediate_pad"] for call in configuration.call_args_list] == [0, 64, None]


@pytest.mark.rule("P3-12")
def test_minimax_m3_reports_no_padding(tree: Path) -> None:
    source = (tree / "vllm/models/minimax_m3/amd/model.py").read_text(encoding="utf-8")
    (moe,) = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "MiniMaxM3MoE")
    (call,) = (node for node in ast.walk(moe) if isinstance(node, ast.Call) and ast.unparse(node.func) == "FusedMoE")
    passed = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert passed["intermediate_pad"] == "0"
    assert passed["activation"] == "'swigluoai_uninterleave'"


@pytest.mark.parametrize(("activation", "method"), [("SILU", "Silu"), ("GELU", "Gelu"), ("SWIGLUOAI", "Swiglu")])
def test_calls_for_other_activations_are_unchanged(world: World, activation: str, method: str) -> None:
    world.probe.run_experts(world.config(activation))
    (call,) = world.calls
    assert call["activation"].name == method
    assert "gate_mode" not in call
    assert call["intermediate_pad"] == world.inferred_padding


def fused_experts(config: Any, **options: Any) -> None:
    from vllm.model_executor.layers.fused_moe.experts.rocm_aiter_moe import rocm_aiter_fused_experts

    x, w = torch.zeros(2, config.hidden_dim, dtype=torch.bfloat16), torch.zeros(1)
    rocm_aiter_fused_experts(
        x, w, w, torch.ones(2, 2), torch.zeros(2, 2), moe_config=config, activation=config.activation, **options
    )


def test_weight_only_call_of_gpt_oss_is_unchanged(world: World) -> None:
    from vllm.model_executor.layers.fused_moe.config import mxfp4_w4a16_moe_quant_config

    names = ("w1_scale", "w2_scale", "w1_bias", "w2_bias")
    quant = mxfp4_w4a16_moe_quant_config(**{name: torch.zeros(1) for name in names})
    fused_experts(world.config("SWIGLUOAI", swiglu_alpha=None, swiglu_beta=None), quant_config=quant)
    (call,) = world.calls
    assert (call["gate_mode"], call["activation"].name) == ("interleave", "Swiglu")
    assert call["intermediate_pad"] == world.inferred_padding
    assert call["bias1"] is not None


@pytest.mark.usefixtures("own")
def test_unquantised_experts_still_refuse_the_activation(world: World) -> None:
    with pytest.raises(ValueError, match="Unsupported activation"):
        fused_experts(world.config())
    assert world.calls == []
