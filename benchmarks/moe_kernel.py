"""Times the fused MXFP8 MoE of mxfp8-moe-gfx942 against BF16 experts, dequantised beforehand; needs a GPU and torch.

    python benchmarks/moe_kernel.py [repeats]

MiniMax-M3 at TP8: 128 experts, hidden 6144, 384 a rank, top-4. The kernel is read out of the edition for 0.31.0. Both
sides run as captured graphs with the routing sorted beforehand, from a cold L2; medians of CUDA events. BF16 is what
a release does on gfx942 (weights expanded when loading), with torch's grouped GEMM in place of vLLM's. Beside each time
stands how fast it moved its roofline bytes: weights of the experts that the batch reaches, activations in and out.
Exits 3 with one line NOT_RUN where it cannot run.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable

PATCH = Path(__file__).resolve().parents[1] / "patches" / "mxfp8-moe-gfx942"
EDITION = PATCH / "0.31.0.patch"
TOKENS = (1, 8, 16, 64, 256, 1024, 4096)
SHAPE = {"experts": 128, "hidden": 6144, "inner": 384}
COLD = 1 << 29  # bytes written between runs, more than any L2 or MALL
NOT_RUN = 3


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 30
    torch = torch_with_gpu()
    torch.set_default_device("cuda")
    reference = load_reference()
    with tempfile.TemporaryDirectory() as folder:
        kernel = reference.load_shipped(EDITION, Path(folder))
        dtype = reference.FNUZ if gfx942(torch) else reference.FN
        print(f"{torch.cuda.get_device_name()}, {dtype}, torch {torch.__version__}; medians of {repeats}")
        print("tokens   experts   fused us   GB/s    bf16 us   GB/s   fused is faster by")
        layer = reference.layer(**SHAPE, tokens=max(TOKENS))
        experts = layer.prepared(kernel, dtype)
        copies = kernel.dequantise(layer.w13, layer.w13_scale), kernel.dequantise(layer.w2, layer.w2_scale)
        for tokens in TOKENS:
            part = cut(reference, layer, tokens)
            sides = fused(reference, kernel, part, experts), bf16(torch, reference, part, copies)
            agree(reference, *(side() for side in sides))
            report(part, [timed(torch, side, repeats) for side in sides])


def torch_with_gpu() -> Any:
    try:
        import torch  # type: ignore[import-not-found]
    except ImportError:
        not_run("torch is not installed")
    if not torch.cuda.is_available():
        not_run("torch sees no GPU")
    return torch


def not_run(why: str) -> NoReturn:
    print(f"NOT_RUN: {why}")
    raise SystemExit(NOT_RUN)


def gfx942(torch: Any) -> bool:
    return bool(torch.version.hip) and torch.cuda.get_device_properties(0).gcnArchName.startswith("gfx94")


def load_reference() -> Any:
    spec = importlib.util.spec_from_file_location("moe_reference", PATCH / "tests" / "moe_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cut(reference: Any, layer: Any, tokens: int) -> Any:
    fields = {**vars(layer), **{name: vars(layer)[name][:tokens] for name in ("hidden", "weights", "ids")}}
    return reference.Layer(**fields)


def fused(reference: Any, kernel: Any, layer: Any, experts: Any) -> Callable[[], Any]:
    aligned = {
        block_m: reference.align(layer.ids, block_m, SHAPE["experts"], None)
        for block_m in {tile.block_m for _, tile in reference.m3_tiles(kernel)}
    }

    def run() -> Any:
        return layer.fused(kernel, experts[0].dtype, experts=experts, align=lambda _ids, block_m, *_: aligned[block_m])

    return run


def bf16(torch: Any, reference: Any, layer: Any, copies: Any) -> Callable[[], Any]:
    w13, w2 = (copy.transpose(1, 2) for copy in copies)
    flat = layer.ids.flatten()
    order = flat.argsort(stable=True)
    back = order.argsort()
    tokens = order // layer.ids.shape[1]
    ends = torch.bincount(flat, minlength=w13.shape[0]).cumsum(0).int()
    grouped = torch.nn.functional.grouped_mm

    def run() -> Any:
        gate_up = grouped(layer.hidden[tokens], w13, offs=ends)
        inner = reference.swiglu(gate_up, reference.ALPHA, reference.BETA, reference.LIMIT)
        down = grouped(inner, w2, offs=ends)[back].view(*layer.ids.shape, -1)
        return (down * layer.weights.bfloat16().unsqueeze(-1)).sum(1)

    return run


def agree(reference: Any, first: Any, second: Any) -> None:
    """Both sides must compute the same, or their times mean nothing."""
    error = reference.relative(first, second)
    assert error < reference.WHOLE, f"the two sides differ by {error:.3f}"


def timed(torch: Any, run: Callable[[], Any], repeats: int) -> float:
    """Return the median in microseconds of a graph's replay."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    cold = torch.empty(COLD, dtype=torch.uint8)
    times: list[float] = []
    for _ in range(repeats):
        cold.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000)
    return statistics.median(times)


def report(layer: Any, medians: list[float]) -> None:
    tokens, experts = layer.hidden.shape[0], layer.ids.unique().numel()
    weights = 3 * SHAPE["hidden"] * SHAPE["inner"] * experts
    activations = 2 * 2 * tokens * SHAPE["hidden"]
    moved = (weights * 33 // 32 + activations, 2 * weights + activations)  # a scale byte for 32 values
    ours, theirs = ((time, size / time / 1000) for time, size in zip(medians, moved, strict=True))
    ratio = theirs[0] / ours[0]
    print(
        f"{tokens:6d} {experts:9d} {ours[0]:10.1f} {ours[1]:6.0f} {theirs[0]:10.1f} {theirs[1]:6.0f} {ratio:10.2f}"
        f"   ({moved[0] / 1e6:.1f} and {moved[1] / 1e6:.1f} MB)"
    )


if __name__ == "__main__":
    main()
