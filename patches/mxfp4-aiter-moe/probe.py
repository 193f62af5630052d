"""Red unless MiniMax-M3's MXFP4 experts run on AITER as W4A4, and are emulated, not made weight-only, without it.

Asks the release's own backend selection on a faked gfx950, and runs the experts it picks against a recording stand-in
for AITER, whose fused_moe has the parameters of AITER 0.1.16.post2. Needs an importable vllm, no AITER and no GPU.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import ast
import enum
import importlib.machinery
import inspect
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

PARAMETERS = [
    *("hidden_states", "w1", "w2", "topk_weight", "topk_ids", "expert_mask", "activation", "quant_type"),
    *("doweight_stage1", "w1_scale", "w2_scale", "a1_scale", "a2_scale", "block_size_M", "num_local_tokens"),
    *("moe_sorting_dispatch_policy", "dtype", "hidden_pad", "intermediate_pad", "bias1", "bias2", "splitk"),
    *("swiglu_limit", "gate_mode"),
]
REQUIRED = 5
TOKENS, HIDDEN, INTERMEDIATE, PADDED, EXPERTS, TOP_K = 3, 256, 3072, 512, 4, 2  # M3's at TP8: 384 padded to 512
SWIGLU = {"swiglu_alpha": 1.702, "swiglu_beta": 1.0, "swiglu_limit": 7.0}


class ActivationType(enum.IntEnum):
    No = -1
    Silu = 0
    Gelu = 1
    Swiglu = 2


class QuantType(enum.IntEnum):
    No = 0
    per_1x32 = 3


class GateMode(enum.StrEnum):
    SEPARATED = "separated"
    INTERLEAVE = "interleave"


class Aiter:
    """Stands in for the aiter package; `calls` holds the arguments of each call of fused_moe."""

    def __init__(self) -> None:
        self.calls: list[dict[str, object]] = []
        self.module("aiter", ActivationType=ActivationType, QuantType=QuantType)
        self.module("aiter.fused_moe", fused_moe=self.recorder(PARAMETERS))
        self.module("aiter.ops")
        self.module("aiter.ops.flydsl")
        self.module("aiter.ops.flydsl.moe_common", GateMode=GateMode)
        self.module("aiter.ops.shuffle", shuffle_weight=lambda tensor, **_: tensor.clone())
        self.module("aiter.utility")
        self.module("aiter.utility.fp4_utils", e8m0_shuffle=lambda tensor: tensor.clone())

    @staticmethod
    def module(name: str, **members: object) -> None:
        module = sys.modules[name] = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        vars(module).update(members)

    def recorder(self, parameters: list[str]):  # noqa: ANN201
        """Return a fused_moe with these parameters; it raises TypeError for others, and returns zeros."""
        signature = inspect.Signature(
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.POSITIONAL_OR_KEYWORD,
                    default=inspect.Parameter.empty if index < REQUIRED else None,
                )
                for index, name in enumerate(parameters)
            ]
        )

        def fused_moe(*arguments: object, **named: object) -> object:
            call = signature.bind(*arguments, **named).arguments
            self.calls.append(call)
            return call["hidden_states"].new_zeros(call["hidden_states"].shape)

        fused_moe.__signature__ = signature
        return fused_moe


def fake_gfx950() -> Aiter:
    """Make the current platform a gfx950 with AITER switched on; call it before anything imports vllm's layers."""
    os.environ.update(VLLM_ROCM_USE_AITER="1", VLLM_ROCM_USE_AITER_MOE="1")
    import torch

    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(gcnArchName="gfx950", multi_processor_count=256)
    from vllm import platforms
    from vllm.platforms import rocm

    for name in ("_ON_GFX950", "_ON_MI3XX", "_ON_GFX9"):
        setattr(rocm, name, True)
    rocm._GCN_ARCH = "gfx950"  # noqa: SLF001
    platforms.current_platform = type(
        "Gfx950", (rocm.RocmPlatform,), {"dispatch_key": "CPU", "device_name": "gfx950"}
    )()
    stand_in = Aiter()
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4

    unquantized = SimpleNamespace(model_config=SimpleNamespace(quantization_config=None))
    mxfp4.get_current_vllm_config = lambda: unquantized
    return stand_in


def moe_config(tp_size: int = 8, **changes: object):  # noqa: ANN201
    """Return the release's configuration of an MoE layer with MiniMax-M3's activation."""
    import torch
    from vllm.model_executor.layers.fused_moe import config
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    one = dict.fromkeys(("pcp_size", "dp_size", "ep_size", "sp_size"), 1)
    first = dict.fromkeys(("tp_rank", "pcp_rank", "dp_rank", "ep_rank"), 0)
    parallel = config.FusedMoEParallelConfig(
        tp_size=tp_size, use_ep=False, all2all_backend="allgather_reducescatter", enable_eplb=False, **one, **first
    )
    known = inspect.signature(config.FusedMoEConfig).parameters
    settings = {
        "num_experts": EXPERTS,
        "experts_per_token": TOP_K,
        "hidden_dim": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_local_experts": EXPERTS,
        "num_logical_experts": EXPERTS,
        "activation": MoEActivation.SWIGLUOAI_UNINTERLEAVE,
        "device": "cpu",
        "routing_method": config.RoutingMethodType.Simulated,
        "moe_parallel_config": parallel,
        "in_dtype": torch.bfloat16,
        **SWIGLU,
        **{name: value for name, value in changes.items() if name in known},
    }
    made = config.FusedMoEConfig(**settings)
    made.intermediate_size_per_partition = PADDED  # as the layer does when a kernel wants it rounded up
    return made


def run_experts(config):  # noqa: ANN001, ANN201
    """Run AITER's experts of the release once on small W4A4 weights."""
    import torch
    from vllm.model_executor.layers.fused_moe.config import ocp_mx_moe_quant_config
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4

    w1, w2 = (torch.zeros(EXPERTS, n, k // 2, dtype=torch.uint8) for n, k in ((2 * PADDED, HIDDEN), (HIDDEN, PADDED)))
    quant = ocp_mx_moe_quant_config(
        quant_dtype="mxfp4",
        w1_scale=w1[..., ::16],
        w2_scale=w2[..., ::16],
        gemm1_alpha=config.swiglu_alpha,
        gemm1_beta=config.swiglu_beta,
        gemm1_clamp_limit=config.swiglu_limit,
    )
    x = torch.zeros(TOKENS, HIDDEN, dtype=torch.bfloat16)
    (experts,) = mxfp4.backend_to_kernel_cls(mxfp4.Mxfp4MoeBackend.AITER_MXFP4_MXFP4)
    experts(config, quant).apply(
        output=torch.empty_like(x),
        hidden_states=x,
        w1=w1,
        w2=w2,
        topk_weights=torch.ones(TOKENS, TOP_K),
        topk_ids=torch.zeros(TOKENS, TOP_K, dtype=torch.int64),
        activation=config.activation,
        global_num_experts=EXPERTS,
        expert_map=None,
        a1q_scale=None,
        a2_scale=None,
        workspace13=torch.empty(0),
        workspace2=torch.empty(0),
        expert_tokens_meta=None,
        apply_router_weight_on_input=False,
    )


def selected(*, aiter_on: bool) -> str:
    """Return the name of the backend that the release picks for W4A4 by itself, or "refused"."""
    from vllm._aiter_ops import rocm_aiter_ops
    from vllm.model_executor.layers.fused_moe.oracle import mxfp4

    rocm_aiter_ops._AITER_ENABLED = aiter_on  # noqa: SLF001
    try:
        return mxfp4.select_mxfp4_moe_backend(moe_config(), mxfp4.kMxfp4Dynamic)[0].name
    except NotImplementedError:
        return "refused"


def call_of_aiter(stand_in: Aiter) -> str:
    """Return how AITER is called for M3's layer, as text; or why it is not."""
    try:
        run_experts(moe_config(intermediate_pad=0))
    except ValueError as refusal:
        return f"not at all: {refusal}"
    (call,) = stand_in.calls
    return (
        f"{call['activation'].name}, {call['quant_type'].name}, "
        f"{call.get('gate_mode')}, intermediate_pad {call['intermediate_pad']}"
    )


def padding(root: Path) -> str:
    """Return the padding that M3 passes to its MoE layer, and what the layer passes on, as source text."""
    files = ("vllm/models/minimax_m3/amd/model.py", "vllm/model_executor/layers/fused_moe/layer.py")
    passed = [
        ast.unparse(keyword.value)
        for name in files
        for call in ast.walk(ast.parse((root / name).read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "intermediate_pad"
    ]
    return ", ".join(passed) or "none"


def main(root: Path) -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    stand_in = fake_gfx950()
    expected = {
        "backend with AITER": ["AITER_MXFP4_MXFP4"],
        "backend without AITER": ["EMULATION", "refused"],
        "AITER is called": ["Swiglu, per_1x32, separated, intermediate_pad 0"],
        "padding of the model, of its layer": ["0, intermediate_pad"],
    }
    found = {
        "backend with AITER": selected(aiter_on=True),
        "backend without AITER": selected(aiter_on=False),
        "AITER is called": call_of_aiter(stand_in),
        "padding of the model, of its layer": padding(root),
    }
    wrong = [what for what, got in found.items() if got not in expected[what]]
    for what in wrong:
        print(f"red: {what}: {found[what]}, expected {' or '.join(expected[what])}")
    if wrong:
        return 1
    print("green: " + "; ".join(f"{what}: {got}" for what, got in found.items()))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.exit(main(Path(sys.argv[1])))
