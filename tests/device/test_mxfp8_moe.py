"""The fused MXFP8 MoE on a real GPU: indexing, packing, masks, tiles, dispatch, graphs, the full TP8 shape.

Hopper's FP8 matrix unit keeps about 14 bits of a sum, so a GEMM is held to 1e-3 here, not to the interpreter's 1e-5.
"""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.gpu

GEMM, GEMM_BF16 = 1e-3, 4e-3
TP8 = {"experts": 128, "hidden": 6144, "inner": 384}
SMALL = {"experts": 8, "hidden": 512, "inner": 96}


@pytest.fixture(scope="module")
def tp8(reference: Any) -> Any:
    return reference.layer(**TP8, tokens=1100)


def cut(reference: Any, layer: Any, tokens: int) -> Any:
    """Return `layer` with the first `tokens` of its batch."""
    fields = {**vars(layer), **{name: vars(layer)[name][:tokens] for name in ("hidden", "weights", "ids")}}
    return reference.Layer(**fields)


def test_every_tile_multiplies_the_bytes_that_it_is_given(gpu: Any, reference: Any, kernel: Any, dtype: Any) -> None:
    rows, n, k, experts = 301, 160, 6144, 8
    a, a_scale = reference.quantise(gpu.randn(rows, k), dtype)
    w, w_scale = reference.quantise(gpu.randn(experts, n, k) * 0.02, dtype)
    ids = gpu.randint(0, experts, (rows, 1))
    exact = reference.decode(w, w_scale)
    wanted = gpu.stack([reference.decode(a[r], a_scale[r]) @ exact[int(e)].T for r, e in enumerate(ids)])
    for tile in {tile for _, tile in reference.m3_tiles(kernel)}:
        aligned = reference.align(ids, tile.block_m, experts, None)
        for out, bound in ((gpu.float32, GEMM), (gpu.bfloat16, GEMM_BF16)):
            memory = gpu.full((rows + 1, n), float("nan"), dtype=out)
            packed = kernel.pack_scales(w_scale)
            kernel.grouped_gemm(memory[:rows], a, a_scale, w, packed, aligned, config=tile, row_divisor=1)
            assert reference.relative(memory[:rows], wanted) < bound, (tile, out)
            assert memory[rows].isnan().all()


def test_activations_are_quantised_code_for_code(gpu: Any, reference: Any, kernel: Any, dtype: Any) -> None:
    x = (
        gpu.randn(512, 6144) * gpu.exp2(gpu.arange(512) % 64 * 3.5 - 110.0)[:, None]
    )  # no subnormal: they may be flushed
    x[0] = 0
    q, s = kernel.quantise(x, dtype)
    wanted, wanted_scale = reference.quantise(x, dtype)
    assert gpu.equal(s, wanted_scale)
    assert gpu.equal(q.view(gpu.uint8), wanted.view(gpu.uint8))


def test_swiglu_is_fused_with_quantisation(gpu: Any, reference: Any, kernel: Any, dtype: Any) -> None:
    gate_up = gpu.randn(512, 768).bfloat16() * 4
    q, s = kernel.swiglu_oai_quantise(gate_up, dtype, alpha=1.702, beta=1.0, limit=7.0)
    wanted, wanted_scale = reference.quantise(reference.swiglu(gate_up.double(), 1.702, 1.0, 7.0), dtype)
    assert (s.int() - wanted_scale.int()).abs().max() <= 1
    assert reference.relative(reference.decode(q, s), reference.decode(wanted, wanted_scale)) < GEMM_BF16


def test_normalised_bytes_read_as_fn_with_scales_less_one_are_the_checkpoint(
    gpu: Any, reference: Any, kernel: Any
) -> None:
    layer = reference.layer(**SMALL, tokens=48)
    w13, s13, w2, s2 = layer.prepared(kernel, gpu.float8_e4m3fnuz)
    fn = gpu.float8_e4m3fn
    checkpoint = kernel.dequantise(layer.w13, layer.w13_scale)
    assert gpu.equal(kernel.dequantise(w13, s13.transpose(1, 2).contiguous()), checkpoint)
    if not gpu.version.hip:
        got = layer.fused(kernel, fn, experts=(w13.view(fn), s13 - 1, w2.view(fn), s2 - 1))
        assert gpu.equal(got, layer.fused(kernel, fn))


@pytest.mark.parametrize("tokens", [1, 8, 9, 64, 300, 1024, 1100])
def test_the_whole_moe_at_full_size(reference: Any, kernel: Any, dtype: Any, *, tp8: Any, tokens: int) -> None:
    layer = cut(reference, tp8, tokens)
    got, wanted = layer.fused(kernel, dtype), layer.wanted()
    assert reference.relative(got, wanted) < reference.WHOLE
    assert reference.cosine(got, wanted) > reference.WHOLE_COSINE


def test_experts_elsewhere_add_exactly_nothing(gpu: Any, reference: Any, kernel: Any, dtype: Any) -> None:
    layer = reference.layer(**SMALL, tokens=70)
    wanted = layer.wanted()
    layer.ids *= 2
    layer.ids[0] = 1
    expert_map = gpu.full((16,), -1, dtype=gpu.int32)
    expert_map[::2] = gpu.arange(8, dtype=gpu.int32)
    got = layer.fused(kernel, dtype, expert_map=expert_map, global_num_experts=16)
    assert (got[0] == 0).all()
    assert reference.relative(got[1:], wanted[1:]) < reference.WHOLE


@pytest.mark.parametrize("tokens", [4, 8, 9, 48, 1023, 1024])
def test_a_captured_graph_replays_the_branch_of_its_size(
    gpu: Any, reference: Any, kernel: Any, *, dtype: Any, tokens: int
) -> None:
    layer, other = (reference.layer(**SMALL, tokens=count) for count in (tokens, tokens + 1))
    other = cut(reference, other, tokens)
    experts = layer.prepared(kernel, dtype)
    w13, w2 = kernel.dequantise(layer.w13, layer.w13_scale), kernel.dequantise(layer.w2, layer.w2_scale)
    branch = kernel.Hybrid().branch(tokens, native=True, bf16=True)
    assert branch == ("native" if tokens in {9, 48, 1023} else "bf16")

    def step() -> Any:
        if branch == "native":
            return layer.fused(kernel, dtype, experts=experts)
        return dense_bf16(gpu, reference, layer, w13=w13, w2=w2)

    aside = gpu.cuda.Stream()
    with gpu.cuda.stream(aside):
        step()  # compiles
    gpu.cuda.synchronize()
    graph = gpu.cuda.CUDAGraph()
    with gpu.cuda.graph(graph):
        result = step()
    for name in ("hidden", "weights", "ids"):
        vars(layer)[name].copy_(vars(other)[name])
    graph.replay()
    gpu.cuda.synchronize()
    assert gpu.equal(result, step())
    assert reference.relative(result, layer.wanted()) < reference.WHOLE


def dense_bf16(gpu: Any, reference: Any, layer: Any, *, w13: Any, w2: Any) -> Any:
    """Return the sum over all experts in BF16, which unlike a sum over chosen ones can be captured."""
    gates = gpu.zeros(layer.hidden.shape[0], w13.shape[0]).scatter(1, layer.ids.long(), layer.weights)
    inner = reference.swiglu(layer.hidden @ w13.transpose(1, 2), reference.ALPHA, reference.BETA, reference.LIMIT)
    return gpu.einsum("te,eth->th", gates, (inner @ w2.transpose(1, 2)).float()).bfloat16()
