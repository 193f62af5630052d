"""MiniMax-M3 NVFP4 on Blackwell: mixed ModelOpt checkpoints, and SwiGLU-OAI on the FlashInfer TRTLLM experts.

The release's own modules run on the CPU. The platform pretends to be a GPU, and FlashInfer is a fake that records what
its kernels are called with.
"""

from __future__ import annotations

import enum
import sys
import types
from typing import Any

import pytest

ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0
TOLERANCE = 1e-6
SWIGLU = {"swiglu_alpha": ALPHA, "swiglu_beta": BETA, "swiglu_limit": LIMIT}
EXPERTS, HIDDEN, INTERMEDIATE, TOKENS, TOP_K = 4, 256, 128, 3, 2
LAYER = "language_model.model.layers.3"
EXPERTS_LAYER = f"{LAYER}.block_sparse_moe.experts"
QKV = ("q_proj", "k_proj", "v_proj")
CHECKPOINT = {
    **{f"{LAYER}.self_attn.{shard}": "MXFP8" for shard in QKV},
    f"{LAYER}.self_attn.o_proj": "MXFP8",
    f"{LAYER}.mlp.gate_proj": "NVFP4",
    f"{LAYER}.mlp.up_proj": "NVFP4",
    f"{LAYER}.mlp.down_proj": "FP8",
    f"{EXPERTS_LAYER}.0.w1": "NVFP4",
}


@pytest.fixture(autouse=True)
def flashinfer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the recording fake of FlashInfer: calls maps a kernel to the arguments of its calls."""
    import vllm.model_executor.layers.quantization.modelopt  # noqa: F401 - looks for FlashInfer when imported

    core = types.ModuleType("flashinfer.fused_moe.core")
    core.ActivationType = enum.Enum("ActivationType", ["Silu", "Gelu", "Swiglu", "Geglu", "Relu2"])
    moe = types.ModuleType("flashinfer.fused_moe")
    moe.core = core
    fake = types.ModuleType("flashinfer")
    fake.fused_moe = moe
    fake.calls = {}
    for kernel in ("trtllm_fp4_block_scale_moe", "trtllm_fp4_block_scale_routed_moe"):

        def record(kernel: Any = kernel, **arguments: Any) -> Any:
            fake.calls.setdefault(kernel, []).append(arguments)
            return ["result"]

        setattr(moe, kernel, record)
    for module in (fake, moe, core):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the platform look like a GPU of this compute capability, say 100."""
    import torch
    import vllm.model_executor.layers.fused_moe.experts.trtllm_nvfp4_moe as trtllm
    from vllm.platforms import current_platform

    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: torch.device("cpu"))
    monkeypatch.setattr(trtllm, "has_flashinfer_trtllm_fused_moe", lambda: True)
    monkeypatch.setattr(trtllm, "trtllm_moe_pack_topk_ids_weights", lambda ids, _weights: ids)

    def become(capability: int) -> None:
        major, minor = divmod(capability, 10)
        for name, answer in {
            "is_cuda": lambda: True,
            "is_cuda_alike": lambda: True,
            "is_device_capability": lambda c, *_: c in (capability, (major, minor)),
            "is_device_capability_family": lambda c, *_: c // 10 == major,
            "has_device_capability": lambda c, *_: (c if isinstance(c, int) else c[0] * 10 + c[1]) <= capability,
        }.items():
            monkeypatch.setattr(current_platform, name, answer, raising=False)

    return become


def mixed_config(layers: dict[str, str]) -> Any:
    from vllm.model_executor.layers.quantization.modelopt import ModelOptMixedPrecisionConfig

    return ModelOptMixedPrecisionConfig.from_config(
        {
            "quantization": {
                "quant_algo": "MIXED_PRECISION",
                "quantized_layers": {name: {"quant_algo": algo} for name, algo in layers.items()},
            }
        }
    )


def moe_config(activation: str = "SWIGLUOAI_UNINTERLEAVE", local: int = EXPERTS, **fields: Any) -> Any:
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.config import FusedMoEConfig, FusedMoEParallelConfig, RoutingMethodType

    return FusedMoEConfig(
        num_experts=EXPERTS,
        experts_per_token=TOP_K,
        hidden_dim=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_local_experts=local,
        num_logical_experts=EXPERTS,
        activation=MoEActivation[activation],
        device="cpu",
        routing_method=RoutingMethodType.MiniMax2,
        moe_parallel_config=FusedMoEParallelConfig.make_no_parallel(),
        in_dtype=torch.bfloat16,
        **fields,
    )


@pytest.fixture
def linear_method(monkeypatch: pytest.MonkeyPatch, gpu: Any) -> Any:
    """Return a function from a configuration and a name to the class of the method that a linear layer gets."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear
    from vllm.model_executor.layers.quantization import modelopt

    gpu(100)
    for make in ("init_fp8_linear_kernel", "init_nvfp4_linear_kernel", "init_mxfp8_linear_kernel"):
        monkeypatch.setattr(modelopt, make, lambda *_, **__: object())
    monkeypatch.setattr(modelopt.ModelOptFp8LinearMethod, "__init__", lambda *_: None)
    layer = ColumnParallelLinear.__new__(ColumnParallelLinear)
    return lambda config, name: type(config.get_quant_method(layer, name)).__name__


def experts_layer(quant_config: Any, config: Any, **fields: Any) -> Any:
    """Return the release's own layer of routed experts."""
    import torch
    from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    manager = ExpertMapManager(
        max_num_batched_tokens=64,
        top_k=TOP_K,
        global_num_experts=EXPERTS,
        num_redundant_experts=0,
        num_expert_group=None,
        moe_parallel_config=config.moe_parallel_config,
        placement_strategy="linear",
        enable_eplb=False,
    )
    return RoutedExperts(EXPERTS_LAYER, torch.bfloat16, config, quant_config, manager, **fields)


def load(layer: Any, seed: int = 0) -> None:
    """Give the layer new weights, as a (re)load of a checkpoint does."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    layer.quant_method.create_weights(
        layer,
        num_experts=EXPERTS,
        hidden_size=HIDDEN,
        intermediate_size_per_partition=INTERMEDIATE,
        params_dtype=torch.bfloat16,
        global_num_experts=EXPERTS,
        weight_loader=layer.weight_loader,
    )
    for parameter in layer.parameters():
        parameter.data.view(torch.uint8).zero_()
    for name in ("w13_weight_scale_2", "w2_weight_scale_2", "w13_input_scale", "w2_input_scale"):
        parameter = getattr(layer, name)
        values = torch.rand(EXPERTS, generator=generator) * 0.05 + 0.01
        parameter.data.copy_(values if parameter.dim() == 1 else values[:, None])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, gpu: Any) -> Any:
    """Return a function that makes a layer of NVFP4 experts with weights in kernel format."""
    import vllm.model_executor.layers.quantization.utils.flashinfer_fp4_moe as prepare
    from vllm.distributed import parallel_state
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    gpu(100)
    monkeypatch.setattr(parallel_state, "_TP", types.SimpleNamespace(rank_in_group=0, world_size=1))

    def keep_order(w13: Any, w2: Any, w13_scale: Any, w2_scale: Any, **_: Any) -> Any:
        return w13, w13_scale, w2, w2_scale

    monkeypatch.setattr(prepare, "prepare_static_weights_for_trtllm_fp4_moe", keep_order)
    monkeypatch.setattr(RoutedExperts, "weight_loader", lambda *_: None)

    def make(activation: str = "SWIGLUOAI_UNINTERLEAVE", *, modular: bool = False, **fields: Any) -> Any:
        config = moe_config(activation, **fields)
        config.moe_parallel_config.enable_eplb = modular
        layer = experts_layer(mixed_config(CHECKPOINT), config, **fields)
        assert layer.quant_method.nvfp4_backend.value == "FLASHINFER_TRTLLM"
        load(layer)
        layer.quant_method.process_weights_after_loading(layer)
        return layer

    return make


@pytest.fixture
def any_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the TRTLLM experts take every activation, so that a test sees what they do with its parameters."""
    import vllm.model_executor.layers.fused_moe.experts.trtllm_nvfp4_moe as trtllm

    monkeypatch.setattr(trtllm.TrtLlmNvFp4ExpertsBase, "_supports_activation", staticmethod(lambda _: True))
    monkeypatch.setattr(trtllm, "activation_to_flashinfer_int", lambda activation: activation.name)


def run(layer: Any, flashinfer: Any) -> Any:
    """Run the experts of the layer once and return the arguments that the kernel got."""
    import torch

    experts = layer.quant_method.moe_kernel.fused_experts
    common = {
        "hidden_states": torch.zeros(TOKENS, HIDDEN // 2, dtype=torch.uint8),
        "w1": layer.w13_weight,
        "w2": layer.w2_weight,
        "activation": layer.activation,
        "global_num_experts": EXPERTS,
        "expert_map": None,
        "a1q_scale": torch.zeros(TOKENS, HIDDEN // 16, dtype=torch.uint8),
        "apply_router_weight_on_input": False,
    }
    if experts.is_monolithic():
        experts.apply(router_logits=torch.zeros(TOKENS, EXPERTS), **common)
    else:
        experts.apply(
            output=torch.zeros(TOKENS, HIDDEN, dtype=torch.bfloat16),
            topk_weights=torch.ones(TOKENS, TOP_K),
            topk_ids=torch.zeros(TOKENS, TOP_K, dtype=torch.int32),
            a2_scale=None,
            workspace13=torch.empty(0),
            workspace2=torch.empty(0),
            expert_tokens_meta=None,
            **common,
        )
    kernel = "trtllm_fp4_block_scale_moe" if experts.is_monolithic() else "trtllm_fp4_block_scale_routed_moe"
    assert list(flashinfer.calls) == [kernel]
    return flashinfer.calls[kernel].pop()


@pytest.mark.rule("P2-1")
def test_projections_get_the_method_of_their_algorithm(linear_method: Any) -> None:
    config = mixed_config(CHECKPOINT)
    assert config.mxfp8_config.get_name() == "modelopt_mxfp8"
    assert linear_method(config, f"{LAYER}.self_attn.o_proj") == "ModelOptMxFp8LinearMethod"
    assert linear_method(config, f"{LAYER}.mlp.down_proj") == "ModelOptFp8LinearMethod"
    assert linear_method(config, f"{LAYER}.mlp.up_proj") == "ModelOptNvFp4LinearMethod"
    assert linear_method(config, f"{LAYER}.unlisted") == "UnquantizedLinearMethod"


@pytest.mark.rule("P2-1")
def test_expert_groups_get_the_method_of_their_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
    from vllm.model_executor.layers.quantization import modelopt

    made = {}
    for name in ("ModelOptMxFp8FusedMoE", "ModelOptNvFp4FusedMoE", "ModelOptFp8MoEMethod"):
        monkeypatch.setattr(modelopt, name, lambda name=name, **configs: (name, configs["quant_config"]))
    layer = RoutedExperts.__new__(RoutedExperts)
    layer.__dict__["moe_config"] = moe_config()
    for algo in ("MXFP8", "NVFP4", "FP8", "OTHER"):
        config = mixed_config({f"{EXPERTS_LAYER}.0.w1": algo})
        made[algo] = config.get_quant_method(layer, EXPERTS_LAYER)
        if algo == "MXFP8":
            assert made[algo] == ("ModelOptMxFp8FusedMoE", config.mxfp8_config)
    assert made["NVFP4"][0] == "ModelOptNvFp4FusedMoE"
    assert made["FP8"][0] == "ModelOptFp8MoEMethod"
    assert made["OTHER"] is None


@pytest.mark.rule("P2-2")
def test_a_fused_projection_takes_the_algorithm_that_its_shards_share(linear_method: Any) -> None:
    config = mixed_config(CHECKPOINT)
    assert linear_method(config, f"{LAYER}.self_attn.qkv_proj") == "ModelOptMxFp8LinearMethod"
    assert linear_method(config, f"{LAYER}.mlp.gate_up_proj") == "ModelOptNvFp4LinearMethod"
    assert linear_method(config, f"{LAYER}.elsewhere.qkv_proj") == "UnquantizedLinearMethod"
    assert linear_method(config, f"{LAYER}.elsewhere.gate_up_proj") == "UnquantizedLinearMethod"


@pytest.mark.rule("P2-2")
@pytest.mark.parametrize("algo", ["FP8", None])
def test_shards_that_differ_are_refused_by_name(linear_method: Any, algo: Any) -> None:
    layers = CHECKPOINT | {f"{LAYER}.self_attn.k_proj": algo}
    config = mixed_config({name: algo for name, algo in layers.items() if algo})
    with pytest.raises(ValueError, match="qkv_proj") as refused:
        linear_method(config, f"{LAYER}.self_attn.qkv_proj")
    for shard in QKV:
        assert f"{LAYER}.self_attn.{shard}" in str(refused.value)


@pytest.mark.rule("P2-3")
def test_shards_are_looked_up_last_and_under_both_prefixes(linear_method: Any) -> None:
    swapped = LAYER.replace("language_model.model", "model.language_model")
    for inside, outside in ((LAYER, swapped), (swapped, LAYER)):
        config = mixed_config({f"{outside}.attn.{shard}": "MXFP8" for shard in QKV})
        assert linear_method(config, f"{inside}.attn.qkv_proj") == "ModelOptMxFp8LinearMethod"
    shards = {f"{LAYER}.attn.{shard}": "MXFP8" for shard in QKV}
    assert linear_method(mixed_config(shards | {f"{LAYER}.attn.qkv_proj": "FP8"}), f"{LAYER}.attn.qkv_proj") == (
        "ModelOptFp8LinearMethod"
    )


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        (f"{LAYER}.mlp.down_proj", f"{LAYER}.mlp.down_proj"),
        (f"{EXPERTS_LAYER}.0.w1", EXPERTS_LAYER),
        (f"{LAYER}.block_sparse_moe.gate_proj", EXPERTS_LAYER),
        ("model.language_model.layers.3.mlp.down_proj", f"{LAYER}.mlp.down_proj"),
        ("model.language_model.layers.3.block_sparse_moe.experts.0.w1", EXPERTS_LAYER),
        (f"{LAYER}.mlp.down_proj", "model.language_model.layers.3.mlp.down_proj"),
        ("lm_head", "language_model.lm_head"),
    ],
)
def test_earlier_lookups_still_find_their_layer(linear_method: Any, listed: str, name: str) -> None:
    assert linear_method(mixed_config({listed: "nvfp4"}), name) == "ModelOptNvFp4LinearMethod"


def test_a_model_that_declares_its_fused_projections_is_resolved_as_before(linear_method: Any) -> None:
    config = mixed_config({f"{LAYER}.attn.q_proj": "FP8", f"{LAYER}.attn.other": "NVFP4"})
    config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "both": ["q_proj", "other"]}
    assert linear_method(config, f"{LAYER}.attn.qkv_proj") == "ModelOptFp8LinearMethod"
    with pytest.raises(ValueError, match="Mixed quant_algo"):
        linear_method(config, f"{LAYER}.attn.both")


@pytest.mark.rule("P2-4")
def test_trtllm_experts_take_packed_swiglu_oai_as_swiglu() -> None:
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation
    from vllm.model_executor.layers.fused_moe.experts.trtllm_nvfp4_moe import TrtLlmNvFp4ExpertsBase
    from vllm.model_executor.layers.quantization.utils.flashinfer_utils import activation_to_flashinfer_type

    supported = {a.name for a in MoEActivation if TrtLlmNvFp4ExpertsBase._supports_activation(a)}  # noqa: SLF001
    assert supported == {"SILU", "RELU2_NO_MUL", "GELU", "GELU_TANH", "SWIGLUOAI_UNINTERLEAVE"}
    assert activation_to_flashinfer_type(MoEActivation.SWIGLUOAI_UNINTERLEAVE).name == "Swiglu"
    assert activation_to_flashinfer_type(MoEActivation.SILU).name == "Swiglu"
    assert activation_to_flashinfer_type(MoEActivation.GELU).name == "Geglu"


@pytest.mark.rule("P2-4")
@pytest.mark.parametrize(("eplb", "experts"), [(False, "Monolithic"), (True, "Modular")])
def test_m3_experts_are_given_to_trtllm_on_blackwell_and_to_marlin_on_hopper(
    gpu: Any, *, eplb: bool, experts: str
) -> None:
    from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import select_nvfp4_moe_backend
    from vllm.model_executor.layers.quantization.utils.quant_utils import kNvfp4Dynamic, kNvfp4Static

    config = moe_config(**SWIGLU)
    config.moe_parallel_config.enable_eplb = eplb
    gpu(90)
    assert select_nvfp4_moe_backend(config, kNvfp4Static, kNvfp4Dynamic)[0].value == "MARLIN"
    for capability in (100, 103):
        gpu(capability)
        backend, cls = select_nvfp4_moe_backend(config, kNvfp4Static, kNvfp4Dynamic)
        assert (backend.value, cls.__name__) == ("FLASHINFER_TRTLLM", f"TrtLlmNvFp4Experts{experts}")


@pytest.mark.rule("P2-5")
@pytest.mark.parametrize("own", [{}, {"gemm1_alpha": 2.0, "gemm1_beta": 0.5, "gemm1_clamp_limit": 3.0}])
def test_each_local_expert_gets_the_parameters_of_the_quant_config_or_else_of_the_model(
    gpu: Any, own: dict[str, float]
) -> None:
    import torch
    from vllm.model_executor.layers.fused_moe.config import nvfp4_moe_quant_config
    from vllm.model_executor.layers.fused_moe.experts.trtllm_nvfp4_moe import TrtLlmNvFp4ExpertsModular

    gpu(100)
    local = EXPERTS // 2
    quant_config = nvfp4_moe_quant_config(
        *(torch.ones(local) for _ in range(4)), torch.ones(local, 1), torch.ones(local, 1)
    )
    for name, value in own.items():
        setattr(quant_config, name, value)
    experts = TrtLlmNvFp4ExpertsModular(moe_config(local=local, **SWIGLU), quant_config)
    expected = own or {"gemm1_alpha": ALPHA, "gemm1_beta": BETA, "gemm1_clamp_limit": LIMIT}
    for name, value in expected.items():
        tensor = getattr(experts, name)
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, torch.full((local,), value)), name


def kernel_model(gate: Any, up: Any, arguments: Any) -> Any:
    """Return what the TRTLLM kernel makes of the raw GEMM1 columns, [experts, n] each, with these arguments."""
    gate_scale, scale, alpha, beta, limit = (
        arguments[name].double()[:, None]
        for name in (
            "output1_scale_gate_scalar",
            "output1_scale_scalar",
            "gemm1_alpha",
            "gemm1_beta",
            "gemm1_clamp_limit",
        )
    )
    gate, up = gate.minimum(limit), up.maximum(-limit).minimum(limit)
    gate = gate * gate_scale
    return gate * (alpha * gate).sigmoid() * (up + beta) * scale


@pytest.mark.rule("P2-6")
@pytest.mark.usefixtures("any_activation")
@pytest.mark.parametrize("modular", [False, True])
def test_the_kernel_computes_swiglu_oai_of_the_scaled_gemm_output(
    loaded: Any, flashinfer: Any, *, modular: bool
) -> None:
    import torch

    layer = loaded(modular=modular, **SWIGLU)
    arguments = run(layer, flashinfer)
    scale = arguments["output1_scale_gate_scalar"].double()[:, None]
    gate, up = (torch.randn(EXPERTS, 512, dtype=torch.float64) * 8 / scale for _ in range(2))
    found = kernel_model(gate, up, arguments) * layer.w2_input_scale.double()[:, None]
    gate, up = (gate * scale).clamp(max=LIMIT), (up * scale).clamp(-LIMIT, LIMIT)
    expected = gate * (ALPHA * gate).sigmoid() * (up + BETA)
    assert ((found - expected).norm() / expected.norm()).item() < TOLERANCE


@pytest.mark.rule("P2-6")
@pytest.mark.usefixtures("any_activation")
def test_beta_and_limit_are_folded_with_the_final_scale_and_alpha_is_not(loaded: Any) -> None:
    import torch

    layer = loaded(**SWIGLU)
    load(layer)
    g1_alphas = layer.w13_weight_scale_2[:, 0] * layer.w13_input_scale.max()
    layer.quant_method.process_weights_after_loading(layer)
    torch.testing.assert_close(layer.w13_weight_scale_2.data, g1_alphas, rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(layer.gemm1_beta.data, BETA / g1_alphas, rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(layer.gemm1_clamp_limit.data, LIMIT / g1_alphas, rtol=TOLERANCE, atol=0)
    assert torch.equal(layer.gemm1_alpha.data, torch.full((EXPERTS,), ALPHA))


@pytest.mark.rule("P2-6")
@pytest.mark.usefixtures("any_activation")
@pytest.mark.parametrize("again", ["experts", "experts with new scales", "layer"])
def test_processing_again_folds_once_with_the_scale_of_that_time(loaded: Any, flashinfer: Any, again: str) -> None:
    import torch

    layer = loaded(**SWIGLU)
    method = layer.quant_method
    if again == "layer":
        load(layer, seed=1)
        method.process_weights_after_loading(layer)
    else:
        if again == "experts with new scales":
            layer.w13_weight_scale_2.data.copy_(torch.tensor([0.5, 0.25, 2.0, 1.0]))
        method.moe_kernel.fused_experts.process_weights_after_loading(layer)
    arguments = run(layer, flashinfer)
    scale = arguments["output1_scale_gate_scalar"].data
    assert scale is layer.w13_weight_scale_2.data or torch.equal(scale, layer.w13_weight_scale_2.data)
    for name, value in (("gemm1_beta", BETA), ("gemm1_clamp_limit", LIMIT)):
        torch.testing.assert_close(arguments[name].data * scale, torch.full((EXPERTS,), value), rtol=TOLERANCE, atol=0)
    assert torch.equal(arguments["gemm1_alpha"].data, torch.full((EXPERTS,), ALPHA))


@pytest.mark.rule("P2-7")
@pytest.mark.parametrize("modular", [False, True])
def test_both_kernels_get_the_tensors_that_load_balancing_moves(loaded: Any, flashinfer: Any, *, modular: bool) -> None:
    layer = loaded(modular=modular, **SWIGLU)
    arguments = run(layer, flashinfer)
    moved = {weight.data_ptr() for weight in layer.get_expert_weights()}
    for name in ("gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit"):
        assert arguments[name] is layer.get_parameter(name)
        assert not arguments[name].requires_grad
        assert arguments[name].data_ptr() in moved
    assert arguments["activation_type"] == sys.modules["flashinfer.fused_moe.core"].ActivationType.Swiglu.value


@pytest.mark.rule("P2-8")
@pytest.mark.usefixtures("any_activation")
@pytest.mark.parametrize("modular", [False, True])
def test_plain_silu_gets_none_of_them_while_swiglu_oai_does(loaded: Any, flashinfer: Any, *, modular: bool) -> None:
    plain, oai = loaded("SILU", modular=modular), loaded(modular=modular, **SWIGLU)
    silu, swiglu = run(plain, flashinfer), run(oai, flashinfer)
    parameters = {"gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit"}
    assert {name for name in parameters if silu[name] is None} == parameters
    assert {name for name in parameters if swiglu[name] is None} == set()
    assert dict(oai.named_parameters()).keys() - dict(plain.named_parameters()).keys() == parameters


@pytest.mark.parametrize("modular", [False, True])
def test_silu_takes_only_the_limit_of_its_quant_config(loaded: Any, flashinfer: Any, *, modular: bool) -> None:
    import torch

    arguments = run(loaded("SILU", modular=modular, **SWIGLU), flashinfer)
    assert arguments["gemm1_alpha"] is None
    assert arguments["gemm1_beta"] is None
    limit = arguments["gemm1_clamp_limit"] * arguments["output1_scale_gate_scalar"]
    torch.testing.assert_close(limit, torch.full((EXPERTS,), LIMIT), rtol=TOLERANCE, atol=0)
