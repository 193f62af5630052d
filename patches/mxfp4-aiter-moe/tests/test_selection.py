"""Which experts run MXFP4 weights, asked of the release's own oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import QuarkLayer, World

AITER = ("AITER_MXFP4_MXFP4", "AiterExperts")
EMULATION = ("EMULATION", "OCP_MXQuantizationEmulationTritonExperts")
SWITCHES = ("VLLM_ROCM_USE_AITER=1", "VLLM_ROCM_USE_AITER_MOE=1")
OTHER_SWIGLU = [{"swiglu_alpha": 1.5}, {"swiglu_beta": 0.0}, {"swiglu_limit": 10.0}, {"swiglu_limit": None}]
GPT_OSS = {"activation": "SWIGLUOAI", "swiglu_alpha": None, "swiglu_beta": None}


@pytest.mark.rule("P3-1")
def test_w4a4_runs_on_aiter_by_itself(world: World, quark: Callable[..., QuarkLayer]) -> None:
    assert world.select() == AITER
    assert quark().method.mxfp4_backend.name == AITER[0]
    assert world.warnings == []


@pytest.mark.rule("P3-2")
@pytest.mark.parametrize("name", ["aiter", "aiter_mxfp4_mxfp4"])
def test_w4a4_runs_on_aiter_when_asked_for(world: World, name: str) -> None:
    assert world.select(moe_backend=name) == AITER


@pytest.mark.rule("P3-3")
@pytest.mark.usefixtures("aiter_off")
def test_without_aiter_w4a4_is_emulated(world: World) -> None:
    assert world.select() == EMULATION


@pytest.mark.rule("P3-3")
@pytest.mark.usefixtures("own", "aiter_off")
def test_without_aiter_the_log_says_why(world: World) -> None:
    world.select()
    (warning,) = world.warnings
    assert all(text in warning for text in (AITER[0], "emulation", *SWITCHES))


@pytest.mark.rule("P3-4")
@pytest.mark.usefixtures("aiter_off")
def test_emulation_quantises_activations_and_keeps_the_swiglu_parameters(quark: Callable[..., QuarkLayer]) -> None:
    method = quark().method
    experts = method.moe_kernel.fused_experts
    assert type(experts).__name__ == EMULATION[1]
    assert experts.quant_dtype == "mxfp4"
    config = method.moe_quant_config
    assert (config.gemm1_alpha, config.gemm1_beta, config.gemm1_clamp_limit) == (1.702, 1.0, 7.0)


@pytest.mark.rule("P3-5")
@pytest.mark.usefixtures("on_gfx942")
def test_where_aiter_has_no_w4a4_it_is_emulated(world: World) -> None:
    assert world.select() == EMULATION


@pytest.mark.rule("P3-6")
@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("changes", OTHER_SWIGLU, ids=str)
def test_swiglu_parameters_that_aiter_cannot_take_are_emulated(world: World, changes: dict[str, Any]) -> None:
    assert world.select(**changes) == EMULATION
    assert str(next(iter(changes.values()))) in world.warnings[0]
    with pytest.raises(ValueError, match=r"SwiGLU \(alpha, beta, limit\)"):
        world.select(moe_backend="aiter", **changes)


@pytest.mark.rule("P3-7")
@pytest.mark.usefixtures("own", "aiter_without_gate_mode")
def test_aiter_that_knows_only_interleaved_gates_is_not_used(world: World) -> None:
    assert world.select() == EMULATION
    assert "0.1.16.post2" in world.warnings[0]
    with pytest.raises(ValueError, match="gate_mode"):
        world.select(moe_backend="aiter")


@pytest.mark.usefixtures("aiter_off")
def test_asking_for_aiter_that_is_off_is_an_error_that_names_the_switches(world: World) -> None:
    with pytest.raises(ValueError, match="AITER MoE is not enabled") as refusal:
        world.select(moe_backend="aiter")
    assert all(switch in str(refusal.value) for switch in SWITCHES)


@pytest.mark.parametrize("name", ["triton", "triton_unfused", "marlin"])
def test_weight_only_kernels_stay_refused_for_w4a4(world: World, name: str) -> None:
    with pytest.raises(ValueError, match="does not support activation"):
        world.select(moe_backend=name)


def test_gpt_oss_selection_is_unchanged(world: World) -> None:
    assert world.select(None, **GPT_OSS) == ("AITER_MXFP4_BF16", "AiterExperts")
    assert world.select(**GPT_OSS) == AITER
    assert world.warnings == []


@pytest.mark.usefixtures("own", "aiter_off")
@pytest.mark.parametrize("key", [None, "kFp8StaticTensorSym"])
def test_gpt_oss_selection_without_aiter_is_unchanged(world: World, key: str | None) -> None:
    assert world.select(key, **GPT_OSS)[0].startswith("TRITON")
    assert world.warnings == []


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("weights", "activations"),
    [
        (None, None),
        ("kMxfp4Static", None),
        ("kFp8Static128BlockSym", "kFp8Dynamic128Sym"),
        ("kFp8StaticTensorSym", "kFp8StaticTensorSym"),
    ],
)
def test_other_quantisations_of_the_model_do_not_come_to_aiter(
    world: World, weights: str | None, activations: str | None
) -> None:
    from vllm.model_executor.layers.fused_moe.experts.rocm_aiter_moe import AiterExperts
    from vllm.model_executor.layers.quantization.utils import quant_utils

    keys = [name and getattr(quant_utils, name) for name in (weights, activations)]
    supported, reason = AiterExperts.is_supported_config(
        AiterExperts, world.config(), *keys, AiterExperts.activation_format()
    )
    assert not supported
    assert reason
