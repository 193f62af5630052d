"""Who gets the fused CDNA3 experts: vLLM's own oracle and callers, on a faked platform."""

from __future__ import annotations

import functools
import glob
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ORACLE = "vllm.model_executor.layers.fused_moe.oracle.mxfp8"
MODULE = "vllm.model_executor.layers.fused_moe.experts.mxfp8_cdna3_moe"
QUANTIZATION = "vllm.model_executor.layers.quantization"


def chosen(method: Any) -> str:
    return method.experts_cls.__name__


@pytest.mark.rule("P1.7-6")
def test_gfx942_gets_the_cdna3_experts_and_says_so_once(experts: Any) -> None:
    methods = [experts.method(experts.config()) for _ in range(57)]
    assert {chosen(method) for method in methods} == {"Mxfp8Cdna3Experts"}
    assert experts.markers() == 1


@pytest.mark.rule("P1.7-6")
def test_every_tensor_parallel_size_gets_them(experts: Any) -> None:
    assert {chosen(experts.method(experts.config(tp_size=size))) for size in (1, 2, 4, 8)} == {"Mxfp8Cdna3Experts"}


@pytest.mark.rule("P1.7-6")
def test_the_backend_needs_no_conversion_of_its_own(experts: Any) -> None:
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend, convert_to_fp8_moe_kernel_format

    method = experts.method(experts.config())
    assert method.mxfp8_backend != Fp8MoeBackend.EMULATION
    tensors = {name: torch.zeros(1) for name in ("w13", "w2", "w13_scale", "w2_scale")}
    converted = convert_to_fp8_moe_kernel_format(
        fp8_backend=method.mxfp8_backend,
        layer=SimpleNamespace(weight_block_size=[1, 32]),
        w13_input_scale=None,
        w2_input_scale=None,
        **tensors,
    )
    assert all(result is tensor for result, tensor in zip(converted, tensors.values(), strict=True))


@pytest.mark.rule("P1.7-7")
@pytest.mark.parametrize("ep_size", [2, 8])
def test_expert_parallel_experts_are_emulated_and_the_log_says_why(experts: Any, ep_size: int) -> None:
    methods = [experts.method(experts.config(ep_size=ep_size)) for _ in range(3)]
    assert {chosen(method) for method in methods} == {"Mxfp8EmulationTritonExperts"}
    assert experts.markers() == 0
    reasons = [line for line in experts.logged if f"EP size {ep_size}" in line]
    assert len(reasons) == 1
    assert "emulated in BF16" in reasons[0]


def test_gfx950_keeps_its_own_experts(experts: Any) -> None:
    experts.arch("gfx950")
    for ep_size in (1, 8):
        assert chosen(experts.method(experts.config(ep_size=ep_size))) == "Mxfp8NativeTritonExperts"
    assert experts.markers() == 0
    assert not [line for line in experts.logged if "CDNA3" in line]


@pytest.mark.parametrize("ep_size", [1, 8])
def test_a_machine_without_rocm_is_untouched(experts: Any, ep_size: int) -> None:
    oracle = importlib.import_module(ORACLE)
    experts.arch("")
    outcomes = [outcome(oracle, experts.config(ep_size=ep_size), allow_cdna3=allow) for allow in (False, True)]
    assert outcomes[0] == outcomes[1]
    assert not [line for line in experts.logged if "CDNA3" in line]


def outcome(oracle: Any, config: Any, *, allow_cdna3: bool) -> object:
    try:
        return oracle.select_mxfp8_moe_backend(config, allow_cdna3=allow_cdna3)
    except ValueError as error:
        return str(error)


@pytest.mark.rule("P1.7-8")
def test_a_backend_that_the_user_asks_for_is_never_overridden(experts: Any) -> None:
    oracle = importlib.import_module(ORACLE)
    for name in (*oracle._BACKEND_NAME_MAP, "emulation"):  # noqa: SLF001
        config = experts.config(moe_backend=name)
        assert outcome(oracle, config, allow_cdna3=True) == outcome(oracle, config, allow_cdna3=False)
    assert experts.markers() == 0
    assert chosen(experts.method(experts.config())) == "Mxfp8Cdna3Experts"


COMPRESSED_TENSORS = "compressed_tensors.compressed_tensors_moe.compressed_tensors_moe_w8a8_mxfp8"


def other_callers(experts: Any, release: str) -> list[type]:
    """Import the classes that ask the oracle in this release, but ModelOpt's; on ROCm their imports want a GPU."""
    names = {"online.mxfp8": "Mxfp8OnlineMoEMethod", COMPRESSED_TENSORS: "CompressedTensorsW8A8Mxfp8MoEMethod"}
    if release != "0.24.0":
        names["inc.schemes.inc_mxfp8_moe"] = "INCMxfp8MoEMethod"
    if release == "0.33.0":
        names["quark.quark_moe"] = "QuarkW8A8Mxfp8MoEMethod"
    experts.arch("")
    classes = [getattr(importlib.import_module(f"{QUANTIZATION}.{module}"), name) for module, name in names.items()]
    experts.arch("gfx942")
    return classes


def construct(cls: type, config: Any) -> Any:
    from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp8Dynamic, kMxfp8Static

    if cls.__name__ == "Mxfp8OnlineMoEMethod":
        layered = "layer" in inspect.signature(cls).parameters
        return cls(layer=SimpleNamespace(moe_config=config)) if layered else cls(moe=config)
    keys = (kMxfp8Static, kMxfp8Dynamic) if cls.__name__ == "QuarkW8A8Mxfp8MoEMethod" else ()
    return cls(config, *keys)


@pytest.mark.rule("P1.7-6")
def test_other_callers_of_the_oracle_stay_on_emulation(experts: Any, release: str, tree: Any) -> None:
    classes = other_callers(experts, release)
    methods = [construct(cls, experts.config()) for cls in classes]
    assert {chosen(method) for method in methods} == {"Mxfp8EmulationTritonExperts"}
    assert experts.markers() == 0
    # Path.rglob would not go into linked folders
    files = [Path(name) for name in glob.glob(f"{tree}/vllm/**/*.py", recursive=True)]  # noqa: PTH207
    callers = {path.stem for path in files if "= select_mxfp8_moe_backend(" in path.read_text(encoding="utf-8")}
    assert callers == {cls.__module__.rsplit(".", 1)[-1] for cls in classes} | {"modelopt"}
    assert chosen(experts.method(experts.config())) == "Mxfp8Cdna3Experts"


class Batched:
    """A parallel config whose experts get a batch of tokens each."""

    def __init__(self, config: Any) -> None:
        self.config = config

    use_batched_activation_format = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.config, name)


def refused(experts: Any, case: str) -> Any:
    from vllm import envs
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    if case == "batched_experts":
        config = experts.config()
        config.moe_parallel_config = Batched(config.moe_parallel_config)
        return config
    if case == "batch invariance":
        experts.patch.setattr(envs, "VLLM_BATCH_INVARIANT", True, raising=False)
        return experts.config()
    changes = {"LoRA": {"is_lora_enabled": True}, "silu": {"activation": MoEActivation.SILU}}
    return experts.config(**changes[case])


@pytest.mark.rule("P1.7-6")
@pytest.mark.parametrize("case", ["batched_experts", "silu", "LoRA", "batch invariance"])
def test_what_the_kernel_cannot_do_is_refused_with_its_reason(experts: Any, case: str) -> None:
    module = importlib.import_module(MODULE)
    assert module.select_mxfp8_cdna3_experts(refused(experts, case)) is None
    assert experts.markers() == 0
    assert len([line for line in experts.logged if case.lower() in line.lower() and "emulated" in line]) == 1


# Settings.


@pytest.mark.rule("P1.7-9")
def test_the_settings_are_read_once(experts: Any) -> None:
    module = importlib.import_module(MODULE)
    assert module.mxfp8_cdna3_settings() == (True, 8, 1024)
    experts.patch.setenv("KILN_MXFP8_MOE", "native")
    assert module.mxfp8_cdna3_settings() == (True, 8, 1024)
    module.mxfp8_cdna3_settings.cache_clear()
    experts.patch.setenv("KILN_MXFP8_MOE_DECODE_TOKENS", "0")
    experts.patch.setenv("KILN_MXFP8_MOE_PREFILL_TOKENS", "832")
    assert module.mxfp8_cdna3_settings() == (False, 0, 832)


@pytest.mark.rule("P1.7-9")
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("KILN_MXFP8_MOE", "bf16"),
        ("KILN_MXFP8_MOE", ""),
        ("KILN_MXFP8_MOE_DECODE_TOKENS", "-1"),
        ("KILN_MXFP8_MOE_DECODE_TOKENS", "1e3"),
        ("KILN_MXFP8_MOE_DECODE_TOKENS", "\N{SUPERSCRIPT TWO}"),
        ("KILN_MXFP8_MOE_PREFILL_TOKENS", ""),
        ("KILN_MXFP8_MOE_PREFILL_TOKENS", "9"),
    ],
)
def test_a_bad_setting_stops_the_server_and_is_named(experts: Any, variable: str, value: str) -> None:
    importlib.import_module(MODULE)
    experts.patch.setenv(variable, value)
    with pytest.raises(ValueError, match=variable) as raised:
        experts.method(experts.config())
    assert value in str(raised.value)


def test_a_bad_setting_does_not_stop_other_gpus(experts: Any) -> None:
    experts.patch.setenv("KILN_MXFP8_MOE", "nonsense")
    experts.arch("gfx950")
    assert chosen(experts.method(experts.config())) == "Mxfp8NativeTritonExperts"


@pytest.mark.rule("P1.7-6")
def test_the_emulation_knob_is_reported_as_without_effect(experts: Any) -> None:
    experts.patch.setenv("VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD", "0")
    assert chosen(experts.method(experts.config())) == "Mxfp8Cdna3Experts"
    assert [line for line in experts.logged if "VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD=0 has no effect" in line]


# Eligibility for the hybrid, from the layer that vLLM builds.


def eligible(experts: Any, **changes: Any) -> bool:
    module = importlib.import_module(MODULE)
    made = object.__new__(module.Mxfp8Cdna3Experts)
    made.moe_config = experts.config(**changes)
    return made._is_hybrid(None)


@pytest.mark.rule("P1.7-9")
def test_minimax_m3_is_a_hybrid(experts: Any) -> None:
    assert eligible(experts)
    assert eligible(experts, max_model_len=1)


@pytest.mark.rule("P1.7-13")
@pytest.mark.parametrize(
    "changes",
    [
        {"has_shared_experts": False},
        {"num_experts": 64},
        {"experts_per_token": 8},
        {"hidden_dim": 4096},
        {"intermediate_size": 1536},
        {"max_model_len": 0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_shape_runs_on_fp8_alone(experts: Any, changes: dict[str, Any]) -> None:
    assert chosen(experts.method(experts.config(**changes))) == "Mxfp8Cdna3Experts"
    assert eligible(experts)
    assert not eligible(experts, **changes)


@pytest.mark.rule("P1.7-13")
def test_native_mode_is_never_a_hybrid(experts: Any) -> None:
    experts.patch.setenv("KILN_MXFP8_MOE", "native")
    assert not eligible(experts)


@pytest.mark.rule("P1.9-2")
def test_a_shared_expert_fused_as_row_129_is_a_hybrid_too(experts: Any) -> None:
    assert eligible(experts, local_experts=129)


@pytest.mark.rule("P1.9-2")
def test_which_release_fuses_the_shared_expert_of_an_mxfp8_checkpoint(experts: Any, release: str) -> None:
    """The AMD recipe asks for it: in 0.24.0 the model cannot, 0.29.0 to 0.32.0 refuse, from 0.33.0 on it does."""
    expected = {"0.24.0": None, "0.33.0": True}.get(release, False)
    experts.arch("")  # what it imports asks for a GPU on ROCm
    assert fuses() == expected
    experts.arch("gfx942")
    assert eligible(experts, local_experts=129 if expected else 128)


def fuses() -> bool | None:
    try:
        from vllm.model_executor.layers.quantization.utils.config_utils import is_shared_expert_quant_fse_compatible
    except ImportError:
        return None
    from vllm.model_executor.layers.quantization.modelopt import ModelOptMxFp8Config

    config = object.__new__(ModelOptMxFp8Config)
    vars(config).update(exclude_modules=["lm_head"], packed_modules_mapping={}, online_quantization_config=None)
    prefix = "model.layers.7.block_sparse_moe"
    return is_shared_expert_quant_fse_compatible(config, f"{prefix}.experts", f"{prefix}.shared_experts")[0]


# The two fields of the config, as the factory fills them in.


def built(experts: Any, layer_module: Any, *, shared: object, fused: int, max_model_len: int | None) -> Any:
    """Let the release's factory build a layer out of stand-ins, and return its real config."""
    configs: list[Any] = []
    model = None if max_model_len is None else SimpleNamespace(dtype=torch.bfloat16, max_model_len=max_model_len)
    vllm_config = SimpleNamespace(
        parallel_config=SimpleNamespace(
            expert_placement_strategy="linear", elastic_ep_max_dp_size=None, enable_dbo=False
        ),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=8192),
        model_config=model,
        kernel_config=SimpleNamespace(moe_backend="auto"),
        lora_config=None,
        device_config=SimpleNamespace(device="cpu"),
        compilation_config=SimpleNamespace(max_cudagraph_capture_size=512),
    )
    manager = SimpleNamespace(local_num_experts=128 + fused)
    stand_ins = {
        "get_current_vllm_config": lambda: vllm_config,
        "make_parallel_config": lambda **_: experts.config().moe_parallel_config,
        "determine_expert_counts": lambda *_: (128, 128, fused),
        "make_expert_substitution": lambda *_: None,
        "ExpertMapManager": lambda **_: manager,
    }
    for name, stand_in in stand_ins.items():
        if hasattr(layer_module, name):
            experts.patch.setattr(layer_module, name, stand_in)
    router = SimpleNamespace(
        routing_method_type=None,
        kernel_routing_method_type=None,
        supports_monolithic_kernels=True,
        prepare_monolithic_bias=lambda bias: bias,
    )
    factory = getattr(layer_module, "FusedMoEFactory", None) or layer_module.FusedMoE
    factory(
        num_experts=128,
        top_k=4,
        hidden_size=6144,
        intermediate_size=3072,
        params_dtype=torch.bfloat16,
        activation="swigluoai_uninterleave",
        router=router,
        shared_experts=shared,
        routed_experts_cls=lambda *args, **_: configs.append(args[2]),
        runner_cls=lambda **_: None,
    )
    return configs[0]


@pytest.mark.rule("P1.7-9")
def test_the_factory_tells_the_experts_of_shared_experts_and_context(experts: Any) -> None:
    layer_module = importlib.import_module("vllm.model_executor.layers.fused_moe.layer")
    build = functools.partial(built, experts, layer_module)
    beside = build(shared=torch.nn.Identity(), fused=0, max_model_len=65536)
    assert (beside.has_shared_experts, beside.max_model_len, beside.num_local_experts) == (True, 65536, 128)
    fused = build(shared=None, fused=1, max_model_len=65536)
    assert (fused.has_shared_experts, fused.num_local_experts) == (True, 129)
    alone = build(shared=None, fused=0, max_model_len=None)
    assert (alone.has_shared_experts, alone.max_model_len) == (False, 0)


# The edition.


@pytest.mark.rule("P1.9-0")
def test_the_experts_are_importable_without_triton(tree: Any) -> None:
    """Nothing but vLLM and torch at the top: a CPU image has no Triton."""
    import ast

    path = tree / "vllm/model_executor/layers/fused_moe/experts/mxfp8_cdna3_moe.py"
    imported = {
        name
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert not [name for name in imported if "triton" in name or name.endswith("mxfp8_cdna3")]


@pytest.mark.rule("P1.9-0")
def test_every_edition_creates_the_same_kernel_file(tree: Any) -> None:
    created = (tree / "vllm/model_executor/layers/fused_moe/mxfp8_cdna3.py").read_bytes()
    editions = sorted(Path(__file__).parents[1].glob("*.patch"))
    assert len(editions) > 1
    body = b"".join(b"+" + line for line in created.splitlines(keepends=True))
    assert all(body in edition.read_bytes() for edition in editions)
