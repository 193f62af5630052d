"""What the CDNA3 kernels must compute, in plain torch; and ways to load the file that holds them.

Loaded by path: from this folder's tests, from tests/device and from benchmarks/moe_kernel.py.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path

KERNEL = "vllm/model_executor/layers/fused_moe/mxfp8_cdna3.py"
FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
MINUS_ZERO = 0x80  # NaN in FNUZ
LARGEST = {FN: 448.0, FNUZ: 240.0}
ALPHA, BETA, LIMIT = 1.702, 1.0, 7.0
WHOLE, WHOLE_COSINE = 6e-2, 0.998  # bounds of the whole MoE against fp32


def load(path: Path) -> Any:
    """Import the kernel file at `path` (by itself: it needs no vllm)."""
    spec = importlib.util.spec_from_file_location("mxfp8_cdna3", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def load_shipped(edition: Path, folder: Path) -> Any:
    """Import the kernel file that `edition`, a canonical git diff, creates; it is written to `folder`."""
    lines = edition.read_text(encoding="utf-8").split("\n")
    start = lines.index(f"+++ b/{KERNEL}")
    assert lines[start - 1] == "--- /dev/null", "the edition changes a kernel file that it should create"
    body = []
    for line in lines[start + 2 :]:
        if not line.startswith("+"):
            break
        body.append(line[1:])
    assert lines[start + 1] == f"@@ -0,0 +1,{len(body)} @@"
    path = folder / "mxfp8_cdna3.py"
    path.write_text("\n".join(body) + "\n", encoding="utf-8")
    return load(path)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the error over the norm of what is wanted."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def cosine(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(torch.cosine_similarity(got.double().flatten(), wanted.double().flatten(), dim=0))


def decode(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return FP8 [..., K] times unpacked scales [..., K/32] in fp64, exactly."""
    exponents = scales.double() - 127
    return (values.double().unflatten(-1, (-1, 32)) * torch.exp2(exponents).unsqueeze(-1)).flatten(-2)


def quantise(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise [..., K] by the rule of the kernels, in fp64 and with torch's cast; they make no -0."""
    blocks = x.double().unflatten(-1, (-1, 32))
    ratio = blocks.abs().amax(-1) / LARGEST[dtype]
    _, exponent = torch.frexp(ratio)  # 2**(exponent - 1) <= ratio < 2**exponent
    power = exponent - (torch.exp2(exponent.double() - 1) == ratio).int()
    byte = (power + 127).masked_fill(ratio == 0, 1).clamp(min=1)
    scaled = (blocks * torch.exp2(127.0 - byte.double()).unsqueeze(-1)).flatten(-2)
    codes = scaled.float().to(dtype).view(torch.uint8)
    return codes.masked_fill(codes == MINUS_ZERO, 0).view(dtype), byte.to(torch.uint8)


def swiglu(gate_up: torch.Tensor, alpha: float, beta: float, limit: float | None) -> torch.Tensor:
    """SwiGLU-OAI with gates in the first half of the columns; vLLM's SWIGLUOAI_UNINTERLEAVE."""
    gate, up = gate_up.chunk(2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (up + beta)


def moe(
    hidden: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, *, weights: torch.Tensor, ids: torch.Tensor
) -> torch.Tensor:
    """Return the experts' weighted sum, products in the type of `hidden` and the (dequantised) weights."""
    out = torch.zeros_like(hidden, dtype=torch.float32)
    for expert in range(w13.shape[0]):
        token, slot = (ids == expert).nonzero(as_tuple=True)
        inner = swiglu(hidden[token] @ w13[expert].T, ALPHA, BETA, LIMIT)
        out.index_add_(0, token, (inner @ w2[expert].T).float() * weights[token, slot, None])
    return out.to(hidden.dtype)


def align(
    ids: torch.Tensor, block_m: int, num_experts: int, expert_map: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Do as vLLM's moe_align_block_size with ignore_invalid_experts; may be captured into a graph.

    What that leaves undefined, behind the padded count, would go to expert 0 and overwrite rows here.
    """
    flat = ids.flatten().long()
    local = flat if expert_map is None else expert_map.long()[flat]
    key = local.where(local >= 0, num_experts)  # experts elsewhere come last, behind the padded count
    order = key.argsort(stable=True)
    counts = torch.zeros(num_experts + 1, dtype=torch.long, device=ids.device)
    counts.scatter_add_(0, key, torch.ones_like(key))
    ends = ((counts + block_m - 1) // block_m * block_m).cumsum(0)
    shift = torch.cat([ends.new_zeros(1), (ends - counts.cumsum(0))[:-1]])  # padding before an expert's rows
    used = ends[num_experts - 1]
    length = flat.numel() + num_experts * (block_m - 1)
    place = torch.arange(length, device=ids.device)
    rows = torch.where(place < used, flat.numel(), 0)
    rows[place[: flat.numel()] + shift[key[order]]] = order
    starts = torch.arange(0, length, block_m, device=ids.device)
    experts = torch.searchsorted(ends[:num_experts].contiguous(), starts, right=True).where(starts < used, 0)
    return rows.int(), experts.int(), used.reshape(1).int()


def moe_sum(parts: torch.Tensor, output: torch.Tensor) -> None:
    output.copy_(parts.float().sum(dim=1))


def m3_tiles(kernel: Any) -> list[tuple[str, Any]]:
    """Return every ("gemm1" or "gemm2", tile) of a MiniMax-M3 layer at TP8 and TP4, whatever the batch."""
    shapes = {"gemm1": [(768, 6144), (1536, 6144)], "gemm2": [(6144, 384), (6144, 768)]}
    rows = (*range(1, 128), *range(128, 40000, 64))
    found = {(gemm, kernel.tile(m, n, k, 128)) for gemm in shapes for n, k in shapes[gemm] for m in rows}
    return sorted(found, key=str)


@dataclass
class Layer:
    """A layer's experts as a checkpoint holds them, and a batch for them."""

    w13: torch.Tensor
    w13_scale: torch.Tensor
    w2: torch.Tensor
    w2_scale: torch.Tensor
    hidden: torch.Tensor
    weights: torch.Tensor
    ids: torch.Tensor

    def wanted(self) -> torch.Tensor:
        """Return the output in fp32 on the dequantised weights."""
        w13, w2 = decode(self.w13, self.w13_scale).float(), decode(self.w2, self.w2_scale).float()
        return moe(self.hidden.float(), w13, w2, weights=self.weights, ids=self.ids)

    def prepared(self, kernel: Any, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """Return w13, its packed scale, w2 and its packed scale: in FN as they are, in FNUZ normalised."""
        w13, s13, w2, s2 = (t.clone() for t in (self.w13, self.w13_scale, self.w2, self.w2_scale))
        if dtype == FNUZ:
            w13, s13 = kernel.fn_to_fnuz(w13, s13)
            w2, s2 = kernel.fn_to_fnuz(w2, s2)
        return w13, kernel.pack_scales(s13), w2, kernel.pack_scales(s2)

    def fused(self, kernel: Any, dtype: torch.dtype, **changes: Any) -> torch.Tensor:
        """Run the kernels as vLLM does; `changes` to the keyword arguments."""
        output = torch.full_like(self.hidden, float("nan"))
        arguments: dict[str, Any] = {
            "alpha": ALPHA,
            "beta": BETA,
            "limit": LIMIT,
            "expert_map": None,
            "global_num_experts": self.w13.shape[0],
            "align": align,
            "moe_sum": moe_sum,
        }
        experts = changes.pop("experts", None) or self.prepared(kernel, dtype)
        kernel.fused_experts(output, self.hidden, *experts, self.weights, self.ids, **(arguments | changes))
        return output


def layer(*, experts: int, hidden: int, inner: int, tokens: int, top_k: int = 4) -> Layer:
    """Make a layer of normal weights (sigma 0.02) in MXFP8 and a normal batch in BF16, on the default device."""
    device = torch.get_default_device()
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device)

    w13, w13_scale = quantised_experts(normal(experts, 2 * inner, hidden) * 0.02)
    w2, w2_scale = quantised_experts(normal(experts, hidden, inner) * 0.02)
    weights, ids = normal(tokens, experts).topk(top_k, dim=-1)
    return Layer(
        w13=w13,
        w13_scale=w13_scale,
        w2=w2,
        w2_scale=w2_scale,
        hidden=normal(tokens, hidden).bfloat16(),
        weights=torch.sigmoid(weights),
        ids=ids.int(),
    )


def quantised_experts(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise [E, N, K] to FN, an expert at a time, as a full-size layer in fp64 would not fit."""
    parts = [quantise(expert, FN) for expert in weights]
    return torch.stack([q for q, _ in parts]), torch.stack([s for _, s in parts])
