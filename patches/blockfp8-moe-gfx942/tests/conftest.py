"""MXFP8 experts, ROCm's own platform class on a CPU, and the release's MoE layer with compiled operations in torch."""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass, replace
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

REQUANT = "vllm/model_executor/layers/quantization/utils/mxfp8_block_fp8.py"
ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0
SHARDS = {"w1": "w13", "w3": "w13", "w2": "w2"}


@dataclass(frozen=True)
class Mxfp8:
    """Weights [..., K] as float8_e4m3fn, their E8M0 scales [..., K // 32], and the float32 values both stand for."""

    weight: torch.Tensor
    scale: torch.Tensor
    values: torch.Tensor


def mxfp8(*shape: int, seed: int = 0) -> Mxfp8:
    """Return normal weights whose rows differ in size by up to 16 times, as MXFP8."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.exp2(torch.rand(*shape[:-1], 1, generator=generator) * 4 - 2)
    groups = (torch.randn(shape, generator=generator) * 0.02 * rows).unflatten(-1, (-1, 32))
    exponent = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True))) - 7
    weight = (groups / torch.exp2(exponent)).to(torch.float8_e4m3fn)
    values = weight.float() * torch.exp2(exponent)
    return Mxfp8(weight.flatten(-2), (exponent.squeeze(-1) + 127).to(torch.uint8), values.flatten(-2))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |found - expected| / |expected| in the Frobenius norm; NaN counts as infinite."""
    error = float((found.float() - expected).norm() / expected.norm())
    return error if error == error else float("inf")  # noqa: PLR0124 - NaN


def dequantized(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the float32 values of block FP8 weights [E, N, K] with scales [E, N // 128, K // 128]."""
    return weight.float() * scale.repeat_interleave(128, 1).repeat_interleave(128, 2)


def swiglu(packed: torch.Tensor, limit: float = LIMIT, alpha: float = ALPHA, beta: float = BETA) -> torch.Tensor:
    """Return SwiGLU-OAI of [..., gate | up]: the gate is clamped from above only, up on both sides."""
    gate, up = packed.float().chunk(2, -1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + beta)


@pytest.fixture(scope="session")
def source(tree: Path) -> str:
    return (tree / REQUANT).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def requant(tree: Path) -> ModuleType:
    """Return the new file as a module of its own, without vLLM."""
    spec = importlib.util.spec_from_file_location("requant_under_test", tree / REQUANT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _align(topk: Any, experts: int, block: int, ids: Any, owner: Any, total: Any, expert_map: Any = None) -> None:  # noqa: PLR0913,PLR0917
    """Sort [tokens, k] choices by expert, each expert's run padded to whole blocks, as the compiled operation does."""
    assert expert_map is None
    choices, rows, owners = topk.flatten(), [], []
    for expert in range(experts):
        run = (choices == expert).nonzero().flatten().tolist()
        run += [choices.numel()] * (-len(run) % block)
        rows += run
        owners += [expert] * (len(run) // block)
    ids.fill_(choices.numel())[: len(rows)] = torch.tensor(rows)
    owner.zero_()[: len(owners)] = torch.tensor(owners)
    total.fill_(len(rows))


def _group_quant(x: Any, values: Any, scales: Any, group: int, floor: float, low: float, high: float, *_: Any) -> None:  # noqa: PLR0913,PLR0917
    groups = x.float().unflatten(-1, (-1, group))
    scales.copy_(groups.abs().amax(-1).clamp(min=floor) / high)
    values.copy_((groups / scales.unsqueeze(-1)).clamp(low, high).to(values.dtype).flatten(-2))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that turns vLLM's platform into ROCm's own class on an architecture, or into CUDA's."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    )
    from vllm.platforms import current_platform, rocm
    from vllm.platforms.interface import DeviceCapability, Platform, PlatformEnum

    class Rocm(rocm.RocmPlatform):
        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:  # noqa: ARG003
            return "AMD_Instinct_MI300X"

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:  # noqa: ARG003
            return DeviceCapability(9, 4)

    class Cuda(Platform):
        _enum = PlatformEnum.CUDA
        device_name = "cuda"

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:  # noqa: ARG003
            return DeviceCapability(8, 0)

    def turn(arch: str) -> None:
        monkeypatch.setattr(rocm, "_GCN_ARCH", arch)
        monkeypatch.setattr(current_platform, "__class__", Cuda if arch == "cuda" else Rocm)

    return turn


class Layers:
    """Builds the release's own expert layers, loaded through their own weight loaders."""

    experts, top_k, hidden, intermediate = 8, 2, 256, 128

    def __init__(self) -> None:
        self.checkpoint = self.weights()

    def weights(self, seed: int = 0) -> dict[str, Mxfp8]:
        inner, outer = self.intermediate, self.hidden
        shapes = {"w1": (inner, outer), "w3": (inner, outer), "w2": (outer, inner)}
        return {name: mxfp8(self.experts, *shape, seed=seed + n) for n, (name, shape) in enumerate(shapes.items())}

    def config(self, *, ep: int = 1, rank: int = 0, **changes: Any) -> Any:
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation
        from vllm.model_executor.layers.fused_moe.config import (
            FusedMoEConfig,
            FusedMoEParallelConfig,
            RoutingMethodType,
        )

        parallel = FusedMoEParallelConfig.make_no_parallel()
        if ep > 1:
            parallel = replace(parallel, ep_size=ep, ep_rank=rank, use_ep=True)
        settings = {
            "num_experts": self.experts,
            "experts_per_token": self.top_k,
            "hidden_dim": self.hidden,
            "intermediate_size": self.intermediate,
            "num_local_experts": self.experts // ep,
            "num_logical_experts": self.experts,
            "activation": MoEActivation.SWIGLUOAI_UNINTERLEAVE,
            "device": "cpu",
            "routing_method": RoutingMethodType.Renormalize,
            "moe_parallel_config": parallel,
            "in_dtype": torch.bfloat16,
            "swiglu_alpha": ALPHA,
            "swiglu_beta": BETA,
            "swiglu_limit": LIMIT,
        }
        return FusedMoEConfig(**settings | changes)

    def empty(self, *, with_aiter: bool = False, swiglu: tuple[Any, Any] = (ALPHA, BETA), **changes: Any) -> Any:
        """Return a layer with parameters in the checkpoint's format; with_aiter: as with AITER's fused MoE enabled."""
        from vllm.model_executor.layers.fused_moe.expert_map_manager import ExpertMapManager
        from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
        from vllm.model_executor.layers.quantization.modelopt import ModelOptMxFp8Config

        config = self.config(**changes)
        config.rocm_aiter_fmoe_enabled = with_aiter
        placed = ExpertMapManager(
            max_num_batched_tokens=1024,
            top_k=self.top_k,
            global_num_experts=self.experts,
            num_redundant_experts=0,
            num_expert_group=None,
            moe_parallel_config=config.moe_parallel_config,
            placement_strategy="linear",
            enable_eplb=False,
            rocm_aiter_enabled=with_aiter,
        )
        quant = ModelOptMxFp8Config.from_config({"quant_method": "mxfp8", "ignored_layers": []})
        alpha, beta = swiglu
        return RoutedExperts(
            "model.layers.3.block_sparse_moe.experts",
            torch.bfloat16,
            config,
            quant,
            placed,
            swiglu_limit=LIMIT,
            swiglu_alpha=alpha,
            swiglu_beta=beta,
        )

    def load(self, layer: Any, weights: dict[str, Mxfp8] | None = None) -> None:
        for shard, tensors in (weights or self.checkpoint).items():
            for expert in range(self.experts):
                for kind, tensor in (("weight", tensors.weight), ("weight_scale", tensors.scale)):
                    name = f"{SHARDS[shard]}_{kind}"
                    parameter = getattr(layer, name)
                    parameter.weight_loader(parameter, tensor[expert], f"experts.{name}", shard, expert)

    def loaded(self, **options: Any) -> Any:
        layer = self.empty(**options)
        self.load(layer)
        layer.quant_method.process_weights_after_loading(layer)
        return layer

    def batch(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return bfloat16 activations [tokens, hidden], routing weights and expert ids [tokens, top_k]."""
        generator = torch.Generator().manual_seed(tokens)
        x = torch.randn(tokens, self.hidden, generator=generator).bfloat16()
        order = torch.rand(tokens, self.experts, generator=generator).argsort(1)
        return x, torch.rand(tokens, self.top_k, generator=generator), order[:, : self.top_k].int()

    def run(self, layer: Any, tokens: int) -> torch.Tensor:
        return layer.quant_method.apply(layer, *self.batch(tokens), None, None).float()

    def expected(self, tokens: int) -> torch.Tensor:
        """Return the float32 output [tokens, hidden] of the checkpoint's own values."""
        x, weights, ids = self.batch(tokens)
        out = torch.zeros(tokens, self.hidden)
        for token, chosen in enumerate(ids.tolist()):
            for share, expert in zip(weights[token], chosen, strict=True):
                packed = torch.cat([self.checkpoint[name].values[expert] @ x[token].float() for name in ("w1", "w3")])
                out[token] += share * (self.checkpoint["w2"].values[expert] @ swiglu(packed))
        return out


@pytest.fixture
def layers(on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Layers:
    """Return the layer builder on gfx942; the Triton kernel is the release's own, in the interpreter."""
    import vllm._custom_ops as ops
    from vllm.model_executor import parameter
    from vllm.model_executor.layers.quantization import modelopt  # noqa: F401 - before the platform turns
    from vllm.v1.worker import workspace

    on("gfx942:sramecc+:xnack-")
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(parameter, "get_tensor_model_parallel_world_size", lambda: 1)
    monkeypatch.setattr(ops, "moe_align_block_size", _align)
    monkeypatch.setattr(ops, "moe_sum", lambda rows, out: out.copy_(rows.float().sum(1)))
    compiled = torch.ops._C  # noqa: SLF001 - vLLM's own operations, which a CPU lacks
    monkeypatch.setattr(compiled, "per_token_group_fp8_quant", _group_quant, raising=False)
    monkeypatch.setattr(
        compiled, "silu_and_mul_with_clamp", lambda out, *given: out.copy_(swiglu(*given)), raising=False
    )
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    workspace.init_workspace_manager(torch.device("cpu"))
    return Layers()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Return what vLLM logs; lines that it logs once come again in each test."""
    import vllm.logger

    vllm.logger._print_info_once.cache_clear()  # noqa: SLF001
    vllm.logger._print_warning_once.cache_clear()  # noqa: SLF001
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("vllm")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
