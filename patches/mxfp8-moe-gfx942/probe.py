"""Red when MiniMax-M3's MXFP8 experts are emulated in BF16 on gfx942, or their FP8 weights change meaning on loading.

Asks the release's own oracle through its ModelOpt method, on a faked gfx942, and lets that method load a small layer.
Runs no Triton kernel and needs neither a GPU nor Triton, but an importable vllm.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

CLASS = "Mxfp8Cdna3Experts"
M3 = (128, 4, 6144, 3072)  # experts, experts per token, hidden size, intermediate size
SMALL = (2, 1, 64, 32)


def fake_gfx942(platform, torch) -> None:  # noqa: ANN001 - vllm's types are not importable where this file is checked
    """Let vLLM's platform object say what it says on an MI300X."""
    from vllm.platforms.interface import PlatformEnum

    answers = {
        "is_fp8_fnuz": True,
        "supports_fp8": True,
        "supports_mx": False,
        "fp8_dtype": torch.float8_e4m3fnuz,
        "get_device_name": "AMD Instinct MI300X",
    }
    for name, answer in answers.items():
        setattr(platform, name, lambda *_, answer=answer: answer)
    platform.device_name, platform._enum = "gfx942", PlatformEnum.ROCM  # noqa: SLF001


def make_config(module, sizes, *, ep_size: int):  # noqa: ANN001, ANN201
    """Return the FusedMoEConfig of a layer on one of 8 GPUs (of one, for the small layer)."""
    import torch
    from vllm.model_executor.layers.fused_moe.activation import MoEActivation

    experts, top_k, hidden, intermediate = sizes
    parallel = module.FusedMoEParallelConfig(
        tp_size=8 if sizes == M3 and ep_size == 1 else 1,
        tp_rank=0,
        pcp_size=1,
        pcp_rank=0,
        dp_size=1,
        dp_rank=0,
        ep_size=ep_size,
        ep_rank=0,
        sp_size=1,
        use_ep=ep_size > 1,
        all2all_backend="allgather_reducescatter",
        enable_eplb=False,
    )
    return module.FusedMoEConfig(
        num_experts=experts,
        experts_per_token=top_k,
        hidden_dim=hidden,
        intermediate_size=intermediate,
        num_local_experts=experts // ep_size,
        num_logical_experts=experts,
        activation=MoEActivation.SWIGLUOAI_UNINTERLEAVE,
        device="cpu",
        routing_method=module.RoutingMethodType.DeepSeekV3,
        moe_parallel_config=parallel,
        in_dtype=torch.bfloat16,
        swiglu_limit=7.0,
        swiglu_alpha=1.702,
        swiglu_beta=1.0,
    )


def loaded(method):  # noqa: ANN001, ANN201
    """Let the method load a layer of every finite FP8 code, and return it with its checkpoint weights in fp32."""
    import torch

    experts, _, hidden, intermediate = SMALL
    layer = torch.nn.Module()
    vars(layer).update(
        layer_name="model.layers.3.block_sparse_moe.experts",
        hidden_size=hidden,
        intermediate_size_per_partition=intermediate,
        _expert_routing_tables=lambda: None,
    )
    method.create_weights(layer, experts, hidden, intermediate, torch.bfloat16)
    codes = torch.tensor([code for code in range(256) if code not in (0x7F, 0xFF)], dtype=torch.uint8)
    before = {}
    for name in ("w13_weight", "w2_weight"):
        weight, scale = getattr(layer, name).data, getattr(layer, f"{name}_scale").data
        weight.view(torch.uint8).view(-1).copy_(codes.repeat(-(-weight.numel() // len(codes)))[: weight.numel()])
        scale.view(-1).copy_(torch.arange(scale.numel()) % 254)
        before[name] = meaning(weight, scale)
    method.process_weights_after_loading(layer)
    return layer, before


def meaning(values, scales):  # noqa: ANN001, ANN201
    """Return [E, N, K] FP8 values times their [E, N, K/32] E8M0 scales, exactly."""
    import torch

    factor = torch.exp2(scales.double() - 127).unsqueeze(-1)
    return (values.double().unflatten(-1, (-1, 32)) * factor).flatten(-2)


def changed(layer, before) -> list[str]:  # noqa: ANN001
    """Return what is wrong with the weights that were loaded."""
    import torch

    wrong = []
    for name, expected in before.items():
        weight, packed = getattr(layer, name).data, getattr(layer, f"{name}_scale").data
        if weight.dtype != torch.float8_e4m3fnuz:
            wrong.append(f"{name} is {weight.dtype} after loading, not the FP8 of the device")
        elif packed.shape != (weight.shape[0], weight.shape[2] // 32, weight.shape[1]):
            wrong.append(f"the scales of {name} are not packed: {tuple(packed.shape)}")
        elif not torch.equal(meaning(weight, packed.transpose(1, 2)), expected):
            wrong.append(f"{name} does not mean what the checkpoint meant")
    return wrong


def main() -> int:
    os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
    for name in ("KILN_MXFP8_MOE", "KILN_MXFP8_MOE_DECODE_TOKENS", "KILN_MXFP8_MOE_PREFILL_TOKENS"):
        os.environ.pop(name, None)
    import torch
    from vllm.model_executor import parameter
    from vllm.model_executor.layers.fused_moe import config as module
    from vllm.model_executor.layers.quantization.modelopt import ModelOptMxFp8FusedMoE
    from vllm.platforms import current_platform

    parameter.get_tensor_model_parallel_rank = lambda: 0
    parameter.get_tensor_model_parallel_world_size = lambda: 1
    fake_gfx942(current_platform, torch)
    checkpoint = SimpleNamespace(is_checkpoint_mxfp8_serialized=True)

    chosen = ModelOptMxFp8FusedMoE(checkpoint, make_config(module, M3, ep_size=1)).experts_cls.__name__
    if chosen != CLASS:
        print(f"red: MXFP8 experts on gfx942 run as {chosen}")
        return 1
    wrong = []
    expert_parallel = ModelOptMxFp8FusedMoE(checkpoint, make_config(module, M3, ep_size=8)).experts_cls.__name__
    if expert_parallel == CLASS:
        wrong.append("expert parallel experts get a kernel that does not do expert parallelism")
    wrong += changed(*loaded(ModelOptMxFp8FusedMoE(checkpoint, make_config(module, SMALL, ep_size=1))))
    for line in wrong:
        print(f"red: {line}")
    if wrong:
        return 1
    print(
        f"green: gfx942 gets {CLASS}, and a loaded layer means what its checkpoint meant in all FP8 codes and scales;"
        " not run: the Triton kernels, the BF16 copies, a GPU"
    )
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.exit(main())
