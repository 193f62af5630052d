"""vLLM's own MXFP8 MoE layer on a CPU: its platform faked, its compiled ops replaced by torch equivalents."""

from __future__ import annotations

import importlib.util
import logging
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    import pytest

FUSED_MOE = "vllm.model_executor.layers.fused_moe"
MARKER = "Using fused CDNA3 (gfx94x)"
WEIGHTS = ("w13_weight", "w2_weight")
SCALES = ("w13_weight_scale", "w2_weight_scale")
M3 = {
    "num_experts": 128,
    "experts_per_token": 4,
    "hidden_dim": 6144,
    "intermediate_size": 3072,
    "max_model_len": 131072,
    "has_shared_experts": True,
}


class QuantConfig:
    """The part of ModelOptMxFp8Config that a layer of experts asks for."""

    is_checkpoint_mxfp8_serialized = True
    online_quantization_config = None

    def get_name(self) -> str:
        return "modelopt_mxfp8"

    def get_quant_method(self, layer: Any, prefix: str) -> Any:  # noqa: ARG002
        from vllm.model_executor.layers.quantization.modelopt import ModelOptMxFp8FusedMoE

        return ModelOptMxFp8FusedMoE(self, layer.moe_config)


class Experts:
    """Makes configs, methods and layers of the release under test, and keeps what was logged."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        # imported as on a CPU: on ROCm some of it asks for a GPU
        import vllm.model_executor.layers.fused_moe.routed_experts
        import vllm.model_executor.layers.quantization.modelopt  # noqa: F401
        from vllm.platforms import current_platform

        self.patch, self.platform = patch, current_platform
        self.logged: list[str] = []
        self.arch("gfx942")

    def arch(self, name: str) -> None:
        """Let vLLM believe that it runs on this GPU; "" is a machine without ROCm."""
        from vllm.platforms.interface import PlatformEnum

        fnuz = name == "gfx942"
        methods = {
            "is_fp8_fnuz": fnuz,
            "fp8_dtype": torch.float8_e4m3fnuz if fnuz else torch.float8_e4m3fn,
            "supports_mx": name == "gfx950",
            "supports_fp8": bool(name),
            "get_device_name": "AMD Instinct MI300X",
        }
        self.patch.setattr(self.platform, "device_name", name, raising=False)
        for method, value in methods.items():
            self.patch.setattr(self.platform, method, lambda *_, value=value: value, raising=False)
        self.patch.setattr(self.platform, "_enum", PlatformEnum.ROCM if name else PlatformEnum.CPU)

    def config(self, *, ep_size: int = 1, local_experts: int | None = None, **changes: Any) -> Any:
        """Return a FusedMoEConfig of MiniMax-M3 on 8 GPUs, with `changes`."""
        from vllm.model_executor.layers.fused_moe import config as module
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation

        parallel = {
            **{f"{group}_size": 1 for group in ("pcp", "dp", "sp")},
            **{f"{group}_rank": 0 for group in ("tp", "pcp", "dp", "ep")},
            "tp_size": changes.pop("tp_size", 8 if ep_size == 1 else 1),
            "ep_size": ep_size,
            "use_ep": ep_size > 1,
            "all2all_backend": "allgather_reducescatter",
            "enable_eplb": False,
        }
        values = M3 | changes
        options = {
            "num_local_experts": local_experts or values["num_experts"] // ep_size,
            "num_logical_experts": values["num_experts"],
            "activation": MoEActivation.SWIGLUOAI_UNINTERLEAVE,
            "device": "cpu",
            "routing_method": module.RoutingMethodType.DeepSeekV3,
            "moe_parallel_config": module.FusedMoEParallelConfig(**parallel),
            "in_dtype": torch.bfloat16,
            "swiglu_limit": 7.0,
            "swiglu_alpha": 1.702,
            "swiglu_beta": 1.0,
        }
        known = module.FusedMoEConfig.__dataclass_fields__  # as released, some of M3's are not
        return module.FusedMoEConfig(**{name: value for name, value in (options | values).items() if name in known})

    def method(self, config: Any) -> Any:
        """Return the quantisation method of ModelOpt MXFP8 experts, which asks the oracle when made."""
        from vllm.model_executor.layers.quantization.modelopt import ModelOptMxFp8FusedMoE

        return ModelOptMxFp8FusedMoE(QuantConfig(), config)

    def layer(self, config: Any, index: int = 7, seed: int = 0) -> Any:
        """Return the release's RoutedExperts with random checkpoint weights, not yet processed."""
        from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

        experts = SimpleNamespace(
            local_num_experts=config.num_local_experts,
            placement_strategy="linear",
            expert_map=None,
            expert_mask=None,
            routing_tables=None,
            num_fused_shared_experts=0,
            map_global_to_local=lambda expert: expert,
        )
        layer = RoutedExperts(
            f"language_model.model.layers.{index}.block_sparse_moe.experts",
            torch.bfloat16,
            config,
            QuantConfig(),
            expert_map_manager=experts,
            swiglu_limit=config.swiglu_limit,
            swiglu_alpha=config.swiglu_alpha,
            swiglu_beta=config.swiglu_beta,
        )
        fill(layer, seed)
        return layer

    def small(self, **changes: Any) -> Any:
        """Return the config of a layer that is small but has the hybrid's blessing."""
        if importlib.util.find_spec(f"{FUSED_MOE}.mxfp8_cdna3"):
            kernel = importlib.import_module(f"{FUSED_MOE}.mxfp8_cdna3")
            self.patch.setattr(kernel, "hybrid_eligible", lambda **_: True)
        sizes = {"num_experts": 4, "experts_per_token": 2, "hidden_dim": 64, "intermediate_size": 32, "tp_size": 1}
        return self.config(**sizes | changes)

    def processed(self, layer: Any) -> Any:
        """Process the layer's weights as the loader does, and return its experts."""
        layer.quant_method.process_weights_after_loading(layer)
        return layer.quant_method.moe_kernel.fused_experts

    def replace_ops(self, reference: ModuleType) -> list[tuple[str, tuple[Any, ...]]]:
        """Replace the compiled ops by torch ones, and return the list that their calls will be added to."""
        from vllm import _custom_ops
        from vllm.model_executor.layers.fused_moe import modular_kernel

        calls: list[tuple[str, tuple[Any, ...]]] = []

        def moe_align_block_size(*args: Any) -> None:
            calls.append(("moe_align_block_size", args))
            ids, num_experts, block_size, rows, blocks, padded, expert_map = args[:7]
            aligned = reference.align(ids, block_size, num_experts, expert_map)
            for buffer, values in zip((rows, blocks, padded), aligned, strict=True):
                buffer.copy_(values[: buffer.numel()])

        def moe_sum(parts: torch.Tensor, output: torch.Tensor, *more: Any) -> None:
            calls.append(("moe_sum", (parts, output, *more)))
            reference.moe_sum(parts, output)

        def silu_and_mul_with_clamp(output: torch.Tensor, gate_up: torch.Tensor, *parameters: float) -> None:
            limit, alpha, beta = parameters
            calls.append(("silu_and_mul_with_clamp", (alpha, beta, limit)))
            output.copy_(reference.swiglu(gate_up, alpha, beta, limit))

        workspaces = SimpleNamespace(
            get_simultaneous=lambda *wanted: [torch.full(shape, float("nan"), dtype=dtype) for shape, dtype in wanted]
        )
        self.patch.setattr(modular_kernel, "current_workspace_manager", lambda: workspaces)
        self.patch.setattr(_custom_ops, "moe_align_block_size", moe_align_block_size)
        self.patch.setattr(_custom_ops, "moe_sum", moe_sum)
        self.patch.setattr(torch.ops._C, "silu_and_mul_with_clamp", silu_and_mul_with_clamp, raising=False)  # noqa: SLF001
        return calls

    def markers(self) -> int:
        return sum(MARKER in line for line in self.logged)


def fill(layer: Any, seed: int) -> None:
    """Give the layer finite random E4M3FN weights of about 0.2, and random scales."""
    random = torch.Generator().manual_seed(seed)
    for name in WEIGHTS:
        weight, scale = getattr(layer, name), getattr(layer, f"{name}_scale")
        values = torch.randn(weight.shape, generator=random) * 8
        weight.data.copy_(values.to(torch.float8_e4m3fn))
        scale.data.copy_(torch.randint(119, 123, scale.shape, generator=random).to(torch.uint8))


class Collect(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextmanager
def fresh_experts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Experts]:
    """Yield vLLM's MoE on a faked gfx942, as in a fresh process: nothing logged, no setting read."""
    from vllm import logger
    from vllm.model_executor import parameter

    for name in ("MXFP8_MOE", "MXFP8_MOE_DECODE_TOKENS", "MXFP8_MOE_PREFILL_TOKENS"):
        monkeypatch.delenv(f"KILN_{name}", raising=False)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
    made = Experts(monkeypatch)
    fresh(logger)
    handler, root = Collect(made.logged), logging.getLogger("vllm")
    monkeypatch.setattr(root, "level", logging.INFO)
    root.addHandler(handler)
    yield made
    root.removeHandler(handler)
    fresh(logger)


def fresh(logger: ModuleType) -> None:
    """Forget what was logged once and which settings were read."""
    logger._print_info_once.cache_clear()  # noqa: SLF001
    logger._print_warning_once.cache_clear()  # noqa: SLF001
    module = sys.modules.get(f"{FUSED_MOE}.experts.mxfp8_cdna3_moe")
    if module is not None:
        module.mxfp8_cdna3_settings.cache_clear()
