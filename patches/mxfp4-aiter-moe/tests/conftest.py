"""A faked gfx950 with a recording stand-in for AITER, and the release's own MXFP4 oracle and Quark method on it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PROBE = Path(__file__).parent.parent / "probe.py"
FP4 = {"qscheme": "per_group", "dtype": "fp4", "is_dynamic": True}


class World:
    """What a test sees: `warnings` of the oracle, and the arguments of each call of AITER's fused_moe in `calls`."""

    def __init__(self, probe: ModuleType, stand_in: Any) -> None:
        from vllm.model_executor.layers.fused_moe.oracle import mxfp4

        self.probe, self.oracle = probe, mxfp4
        self.calls: list[dict[str, Any]] = stand_in.calls
        self.warnings: list[str] = []

    def config(self, activation: str = "SWIGLUOAI_UNINTERLEAVE", **changes: Any) -> Any:
        """Return the configuration of MiniMax-M3's MoE layer at TP8, with changes."""
        from vllm.model_executor.layers.fused_moe.activation import MoEActivation

        return self.probe.moe_config(activation=MoEActivation[activation], **changes)

    def select(self, activation_key: str | None = "kMxfp4Dynamic", **changes: Any) -> tuple[str, str]:
        """Return the names of the backend and of the experts that the release picks."""
        key = activation_key and getattr(self.oracle, activation_key)
        backend, experts = self.oracle.select_mxfp4_moe_backend(self.config(**changes), key)
        return backend.name, experts.__name__

    @property
    def inferred_padding(self) -> int:
        return self.probe.PADDED - self.probe.INTERMEDIATE // 8


class QuarkLayer:
    """An MoE layer that the release's Quark method has filled with weights and prepared for the kernel it picked."""

    def __init__(self, moe: Any) -> None:
        from vllm.model_executor.layers.quantization.quark.quark_moe import QuarkOCP_MX_MoEMethod

        self.moe, self.weights = moe, torch.nn.Module()
        self.method = QuarkOCP_MX_MoEMethod(FP4, FP4, moe)
        for name in ("activation", "swiglu_alpha", "swiglu_beta", "swiglu_limit"):
            setattr(self.weights, name, getattr(moe, name))
        self.weights.global_num_experts = moe.num_experts
        self.weights.expert_map = None
        self.weights.apply_router_weight_on_input = False
        self.weights._expert_routing_tables = lambda: None  # noqa: SLF001
        self.method.create_weights(
            self.weights,
            num_experts=moe.num_experts,
            hidden_size=moe.hidden_dim,
            intermediate_size_per_partition=moe.intermediate_size_per_partition,
            params_dtype=torch.bfloat16,
            weight_loader=None,
        )
        for parameter in self.weights.parameters():
            parameter.data.random_(0, 200)
        self.method.process_weights_after_loading(self.weights)

    def forward(self) -> torch.Tensor:
        x, ids = torch.ones(3, self.moe.hidden_dim, dtype=torch.bfloat16), torch.zeros(3, 2, dtype=torch.int64)
        return self.method.apply(self.weights, x, torch.ones(3, 2), ids, None, None)


@pytest.fixture(scope="session")
def gfx950(tree: Path) -> tuple[ModuleType, Any]:
    """Install the probe's platform and its stand-in for AITER for the whole run; return the probe and the stand-in."""
    spec = importlib.util.spec_from_file_location("mxfp4_aiter_moe_probe", PROBE)
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    stand_in = probe.fake_gfx950()
    import vllm
    from vllm.v1.worker.workspace import init_workspace_manager

    assert Path(vllm.__file__).is_relative_to(tree)
    init_workspace_manager(torch.device("cpu"))
    return probe, stand_in


@pytest.fixture
def own(release: str) -> None:
    """Mark what only the patch does: vLLM's own version of it, which comes with 0.25.0, is less strict."""
    if release != "0.24.0":
        pytest.skip("vLLM's own change does not promise this")


@pytest.fixture
def world(gfx950: tuple[ModuleType, Any], monkeypatch: pytest.MonkeyPatch) -> World:
    from vllm.model_executor.layers.quantization.quark import quark_moe

    world = World(*gfx950)
    world.calls.clear()
    monkeypatch.setattr(
        world.oracle.logger, "warning_once", lambda text, *values: world.warnings.append(text % values), raising=False
    )
    m3 = SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(model_type="minimax_m3")))
    monkeypatch.setattr(quark_moe, "get_current_vllm_config", lambda: m3)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    return world


@pytest.fixture
def quark(world: World) -> Callable[..., QuarkLayer]:
    return lambda **changes: QuarkLayer(world.config(**changes))


@pytest.fixture
def aiter_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm._aiter_ops import rocm_aiter_ops

    assert world.select("kMxfp4Dynamic", activation="SILU")[0] == "AITER_MXFP4_MXFP4"  # so that off is a change
    monkeypatch.setattr(rocm_aiter_ops, "_AITER_ENABLED", False)


@pytest.fixture
def aiter_without_gate_mode(
    gfx950: tuple[ModuleType, Any], world: World, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    from vllm._aiter_ops import rocm_aiter_ops

    parameters = [name for name in world.probe.PARAMETERS if name != "gate_mode"]
    monkeypatch.setattr(sys.modules["aiter.fused_moe"], "fused_moe", gfx950[1].recorder(parameters))
    remembered = rocm_aiter_ops.fused_moe_supports_gate_mode.__wrapped__
    remembered.cache_clear()
    yield
    remembered.cache_clear()


@pytest.fixture
def on_gfx942(gfx950: tuple[ModuleType, Any], monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001 - after it
    from vllm.platforms import rocm

    monkeypatch.setattr(rocm, "_ON_GFX950", False)
