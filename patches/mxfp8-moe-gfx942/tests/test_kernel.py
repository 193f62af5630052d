"""The Triton kernels, in the interpreter, against plain torch on the same bytes.

The interpreter's fp32 to FP8 cast loses carries; ours only casts what FP8 holds exactly, so codes can be compared.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
NAN = float("nan")
FP32, BF16 = 1e-5, 4e-3  # relative errors of a GEMM by its output
WHOLE_BF16 = 6e-3  # of the whole MoE, as reference.WHOLE
UNTOUCHED = 7.0
SHAPES = {  # MiniMax-M3 with fewer experts and smaller sizes: 2I is 96 * 2 a rank at TP8, twice that at TP4
    "tp8": {"experts": 8, "hidden": 512, "inner": 96},
    "tp4": {"experts": 8, "hidden": 512, "inner": 192},
}


def single(rows: int, block_m: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the alignment of `rows` rows that expert 0 has all of."""
    padded = -(-rows // block_m) * block_m
    ids = torch.full((padded,), rows, dtype=torch.int32)
    ids[:rows] = torch.arange(rows)
    blocks = torch.zeros(padded // block_m, dtype=torch.int32)
    return ids, blocks, torch.tensor([padded], dtype=torch.int32)


def operands(
    reference: Any, dtype: torch.dtype, shape: tuple[int, int, int], experts: int = 4
) -> tuple[torch.Tensor, ...]:
    """Return a, its scale, w and its scale for `shape` (rows, N, K), quantised and not packed."""
    rows, n, k = shape
    random = torch.Generator().manual_seed(rows + n + k)
    a, a_scale = reference.quantise(torch.randn((rows, k), generator=random), dtype)
    w, w_scale = reference.quantise(torch.randn((experts, n, k), generator=random) * 0.02, dtype)
    return a, a_scale, w, w_scale


@pytest.mark.rule("P1.7-15")
@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["fn", "fnuz"])
@pytest.mark.parametrize(("out", "bound"), [(torch.float32, FP32), (torch.bfloat16, BF16)], ids=["fp32", "bf16"])
def test_every_tile_multiplies_the_bytes_that_it_is_given(
    once: Any, reference: Any, *, dtype: torch.dtype, out: torch.dtype, bound: float
) -> None:
    rows, n, k = 75, 160, 256  # neither rows nor columns fill their last tiles
    a, a_scale, w, w_scale = operands(reference, dtype, (rows, n, k))
    ids = torch.randint(0, 4, (rows, 1), generator=torch.Generator().manual_seed(0))
    wanted = torch.einsum("rk,rnk->rn", reference.decode(a, a_scale), reference.decode(w, w_scale)[ids[:, 0]])
    tiles = {tile for _, tile in reference.m3_tiles(once)}
    assert {tile.block_m for tile in tiles} == {16, 32, 64}
    for tile in tiles:
        memory = torch.full((rows + 1, n), NAN, dtype=out)
        got = memory[:rows]
        aligned = reference.align(ids, tile.block_m, 4, None)
        once.grouped_gemm(got, a, a_scale, w, once.pack_scales(w_scale), aligned, config=tile, row_divisor=1)
        assert reference.relative(got, wanted) < bound, tile
        assert memory[rows].isnan().all()


@pytest.mark.rule("P1.7-15")
def test_every_pair_of_scale_bytes_is_an_exponent(once: Any) -> None:
    values = torch.zeros((256, 32))
    values[:, 0] = 1
    scales = torch.arange(256, dtype=torch.uint8)
    got = torch.full((256, 256), NAN)
    config = once.Tile(64, 128, 32, 8)
    a, w = values.to(FNUZ), values.to(FNUZ).unsqueeze(0)
    packed = scales[None, None, :].contiguous()
    once.grouped_gemm(got, a, scales[:, None], w, packed, single(256, 64), config=config, row_divisor=1)
    exact = torch.exp2(scales.double() - 127)
    exact[0], exact[255] = 0, float("inf")
    wanted = exact.float()[:, None] * exact.float()[None, :]
    wanted[0, 255] = wanted[255, 0] = NAN
    assert torch.equal(got[1:255, 127].double(), exact[1:255])
    assert torch.equal(got[127, 1:255].double(), exact[1:255])
    assert torch.equal(got.nan_to_num(nan=-1), wanted.nan_to_num(nan=-1))


@pytest.mark.rule("P1.7-14")
def test_weight_scales_are_packed_by_group_and_activation_scales_are_not(kernel: Any, reference: Any) -> None:
    _, a_scale, _, w_scale = operands(reference, FN, (3, 64, 96))
    packed = kernel.pack_scales(w_scale)
    assert packed.shape == (4, 3, 64)
    assert packed.is_contiguous()
    assert torch.equal(packed.transpose(1, 2), w_scale)
    q, s = kernel.quantise(torch.ones(3, 96), FNUZ)
    assert s.shape == a_scale.shape == (3, 3)
    assert q.shape == (3, 96)


@pytest.mark.rule("P1.7-18")
def test_nothing_beyond_the_padded_count_is_touched(kernel: Any, reference: Any) -> None:
    a, a_scale, w, w_scale = operands(reference, FNUZ, (24, 64, 64), experts=1)
    rows, experts, padded = single(24, 16)  # rows 16 to 23 are in the second block
    padded[0] = 16
    got = torch.full((24, 64), UNTOUCHED)
    packed = kernel.pack_scales(w_scale)
    kernel.grouped_gemm(
        got, a, a_scale, w, packed, (rows, experts, padded), config=kernel.Tile(16, 32, 64, 1), row_divisor=1
    )
    assert (got[16:] == UNTOUCHED).all()
    assert reference.relative(got[:16], reference.decode(a, a_scale)[:16] @ reference.decode(w, w_scale)[0].T) < FP32


@pytest.mark.rule("P1.7-18")
def test_a_block_of_no_expert_and_rows_not_named_are_left_alone(kernel: Any, reference: Any) -> None:
    a, a_scale, w, w_scale = operands(reference, FNUZ, (32, 64, 64), experts=1)
    rows, experts, padded = single(32, 16)
    rows[3] = 32
    experts[1] = -1
    got = torch.full((32, 64), UNTOUCHED)
    packed = kernel.pack_scales(w_scale)
    kernel.grouped_gemm(
        got, a, a_scale, w, packed, (rows, experts, padded), config=kernel.Tile(16, 32, 64, 1), row_divisor=1
    )
    assert (got[16:] == UNTOUCHED).all()
    assert (got[3] == UNTOUCHED).all()
    assert not (got[:3] == UNTOUCHED).any()


@pytest.mark.rule("P1.7-16")
def test_routed_weights_are_in_what_moe_sum_adds_up(kernel: Any, reference: Any) -> None:
    layer = reference.layer(experts=4, hidden=128, inner=32, tokens=3, top_k=2)
    seen = []

    def moe_sum(parts: torch.Tensor, output: torch.Tensor) -> None:
        seen.append((parts, output))
        reference.moe_sum(parts, output)

    got = layer.fused(kernel, FNUZ, moe_sum=moe_sum)
    ((parts, output),) = seen
    assert parts.shape == (3, 2, 128)
    assert parts.dtype == torch.bfloat16
    assert output.data_ptr() == got.data_ptr()
    unweighted = layer.weights.clone()
    layer.weights[:] = 1
    layer.fused(kernel, FNUZ, moe_sum=moe_sum)
    assert reference.relative(parts, seen[1][0] * unweighted[:, :, None]) < 2 * BF16


@pytest.mark.rule("P1.7-17")
@pytest.mark.parametrize("tokens", [5, 70])
def test_with_an_expert_map_the_experts_elsewhere_add_exactly_nothing(
    kernel: Any, reference: Any, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    layer = reference.layer(experts=4, hidden=128, inner=32, tokens=tokens, top_k=2)
    wanted = layer.wanted()
    layer.ids *= 2  # of 8 experts the even ones are here
    layer.ids[0] = torch.tensor([1, 7])
    layer.ids[1, 0] = 3
    expert_map = torch.tensor([0, -1, 1, -1, 2, -1, 3, -1], dtype=torch.int32)
    monkeypatch.setattr(kernel.torch, "empty", poisoned)
    got = layer.fused(kernel, FNUZ, expert_map=expert_map, global_num_experts=8)
    assert (got[0] == 0).all()
    assert not got.isnan().any()
    assert reference.relative(got[2:], wanted[2:]) < reference.WHOLE
    assert 0 < got[1].norm() < wanted[1].norm() * 2


def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Stand for torch.empty: memory that holds NaN, as recycled memory may."""
    return torch.zeros(*args, **kwargs).view(torch.uint8).fill_(0xFF).view(kwargs["dtype"])


@pytest.mark.rule("P1.7-17")
def test_without_a_map_every_row_is_written(kernel: Any, reference: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = reference.layer(experts=4, hidden=128, inner=32, tokens=5, top_k=2)
    wanted = layer.wanted()
    monkeypatch.setattr(kernel.torch, "empty", poisoned)
    assert reference.relative(layer.fused(kernel, FNUZ), wanted) < reference.WHOLE


@pytest.mark.parametrize(
    ("expert_map", "wanted"), [(None, 5), (torch.arange(5, dtype=torch.int32), 11)], ids=["no map", "map"]
)
def test_alignment_counts_weight_rows_or_global_experts(
    kernel: Any, reference: Any, expert_map: torch.Tensor | None, wanted: int
) -> None:
    layer = reference.layer(experts=5, hidden=64, inner=32, tokens=2, top_k=2)
    seen = []

    def align(ids: torch.Tensor, block_m: int, experts: int, given: torch.Tensor | None) -> Any:
        seen.append((block_m, experts, given))
        return reference.align(ids, block_m, 5, None)

    layer.fused(kernel, FNUZ, align=align, expert_map=expert_map, global_num_experts=11)
    assert seen == [(16, wanted, expert_map)]


@pytest.mark.rule("P1.7-19")
@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["fn", "fnuz"])
def test_activations_are_quantised_by_the_rule_code_for_code(kernel: Any, reference: Any, dtype: torch.dtype) -> None:
    largest = torch.tensor(reference.LARGEST[dtype])
    x = torch.randn((64, 256), generator=torch.Generator().manual_seed(1))
    x *= torch.exp2(torch.arange(64) * 3.9 - 124)[:, None]
    x[0] = 0
    x[1, :32] = 1e-42  # subnormal in fp32
    x[2] = torch.finfo(torch.float32).max
    x[3, 0:32], x[3, 32:64] = largest, torch.nextafter(largest, torch.tensor(1e9))
    x[4] = -largest
    x[5, 1::2], x[5, ::2] = -1e-30, largest  # would round to -0, NaN in FNUZ
    q, s = kernel.quantise(x, dtype)
    wanted, wanted_scale = reference.quantise(x, dtype)
    assert torch.equal(s, wanted_scale)
    assert torch.equal(q.view(torch.uint8), wanted.view(torch.uint8))
    assert not q.float().isnan().any()
    assert s.min() >= 1
    assert (s[0] == 1).all()
    assert not q[0].view(torch.uint8).any()
    assert s[3, :2].tolist() == [127, 128]
    assert float(q[4].float().abs().max()) == largest
    assert reference.relative(reference.decode(q, s)[6:], x[6:]) < reference.WHOLE


@pytest.mark.rule("P1.7-19")
def test_the_scale_that_fits_fn_would_not_fit_fnuz(kernel: Any, reference: Any) -> None:
    x = torch.randn((64, 256), generator=torch.Generator().manual_seed(2))
    _, too_small = reference.quantise(x, FN)
    shifted = x.unflatten(-1, (-1, 32)) * torch.exp2(127 - too_small.float())[..., None]
    assert shifted.to(FNUZ).float().isnan().any()
    q, _ = kernel.quantise(x, FNUZ)
    assert not q.float().isnan().any()
    assert q.float().abs().max() == reference.LARGEST[FNUZ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_activations_of_other_types_and_strides(kernel: Any, reference: Any, dtype: torch.dtype) -> None:
    x = torch.randn((96, 5), generator=torch.Generator().manual_seed(3)).to(dtype).T
    q, s = kernel.quantise(x, FNUZ)
    wanted, wanted_scale = reference.quantise(x, FNUZ)
    assert torch.equal(s, wanted_scale)
    assert torch.equal(q.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("limit", [7.0, 0.5, None])
@pytest.mark.parametrize("dtype", [FN, FNUZ], ids=["fn", "fnuz"])
def test_swiglu_is_fused_with_quantisation(
    kernel: Any, reference: Any, dtype: torch.dtype, limit: float | None
) -> None:
    gate_up = torch.randn((37, 192), generator=torch.Generator().manual_seed(4)).bfloat16() * 4
    gate_up[3] = 0
    gate_up[4, :96] = -300  # exp overflows
    q, s = kernel.swiglu_oai_quantise(gate_up, dtype, alpha=1.702, beta=1.0, limit=limit)
    exact = reference.swiglu(gate_up.double(), 1.702, 1.0, limit)
    wanted, wanted_scale = reference.quantise(exact, dtype)
    assert (q.shape, s.shape) == ((37, 96), (37, 3))
    assert int((s.int() - wanted_scale.int()).abs().max()) <= 1
    assert reference.relative(reference.decode(q, s), reference.decode(wanted, wanted_scale)) < BF16
    assert not q[3:5].view(torch.uint8).any()


@pytest.mark.parametrize("columns", [0, 16, 33])
def test_a_row_that_is_not_whole_blocks_is_refused(kernel: Any, columns: int) -> None:
    if columns:
        with pytest.raises(ValueError, match="whole blocks"):
            kernel.quantise(torch.zeros(2, columns), FNUZ)
    else:
        assert kernel.quantise(torch.zeros(2, 0), FNUZ)[1].shape == (2, 0)


@pytest.mark.rule("P1.7-16")
@pytest.mark.parametrize(("shape", "dtype"), [("tp8", FNUZ), ("tp4", FNUZ), ("tp8", FN)])
@pytest.mark.parametrize("tokens", [1, 12, 48, 80])  # 16, 16, 32 and 64 rows a tile
def test_the_whole_moe_is_within_bounds(
    once: Any, reference: Any, *, shape: str, tokens: int, dtype: torch.dtype
) -> None:
    layer = reference.layer(**SHAPES[shape], tokens=tokens)
    got, wanted = layer.fused(once, dtype), layer.wanted()
    assert reference.relative(got, wanted) < reference.WHOLE
    assert reference.cosine(got, wanted) > reference.WHOLE_COSINE


@pytest.mark.rule("P1.7-16")
def test_the_whole_moe_at_the_real_hidden_size(once: Any, reference: Any) -> None:
    layer = reference.layer(experts=2, hidden=6144, inner=32, tokens=3, top_k=2)
    got, wanted = layer.fused(once, FNUZ), layer.wanted()
    assert reference.relative(got, wanted) < reference.WHOLE
    assert reference.cosine(got, wanted) > reference.WHOLE_COSINE


@pytest.mark.rule("P1.7-16")
@pytest.mark.parametrize("bug", ["alpha and beta dropped", "scale + 1 forgotten", "no weights"])
def test_the_bounds_see_a_bug(once: Any, reference: Any, bug: str) -> None:
    layer = reference.layer(**SHAPES["tp8"], tokens=12)
    wanted = layer.wanted()
    w13, s13, w2, s2 = layer.prepared(once, FNUZ)
    changes: dict[str, Any] = {"experts": (w13, s13, w2, s2)}
    if bug == "alpha and beta dropped":
        changes |= {"alpha": 1.0, "beta": 0.0}
    elif bug == "scale + 1 forgotten":
        changes["experts"] = (w13, s13 - 1, w2, s2 - 1)
    else:
        layer.weights = torch.ones_like(layer.weights)
    got = layer.fused(once, FNUZ, **changes)
    assert reference.relative(got, wanted) > 4 * reference.WHOLE


@pytest.mark.rule("P1.7-10")
@pytest.mark.parametrize("shape", SHAPES)
def test_the_bf16_branch_is_closer(kernel: Any, reference: Any, shape: str) -> None:
    layer = reference.layer(**SHAPES[shape], tokens=12)
    w13, w2 = kernel.dequantise(layer.w13, layer.w13_scale), kernel.dequantise(layer.w2, layer.w2_scale)
    got = reference.moe(layer.hidden, w13, w2, weights=layer.weights, ids=layer.ids)
    assert reference.relative(got, layer.wanted()) < WHOLE_BF16


def test_weights_already_on_the_input_are_not_applied_again(kernel: Any, reference: Any) -> None:
    layer = reference.layer(experts=4, hidden=128, inner=32, tokens=3, top_k=1)
    layer.weights = torch.full_like(layer.weights, 3.0)
    on_input = layer.fused(kernel, FNUZ, apply_router_weight_on_input=True)
    layer.weights[:] = 1
    assert torch.equal(on_input, layer.fused(kernel, FNUZ))


def test_weights_on_the_input_of_several_experts_are_refused(kernel: Any, reference: Any) -> None:
    layer = reference.layer(experts=4, hidden=128, inner=32, tokens=3, top_k=2)
    with pytest.raises(ValueError, match="top_k"):
        layer.fused(kernel, FNUZ, apply_router_weight_on_input=True)


def test_an_empty_batch_starts_nothing(kernel: Any, reference: Any) -> None:
    layer = reference.layer(experts=4, hidden=128, inner=32, tokens=0, top_k=2)
    assert layer.fused(kernel, FNUZ, align=None, moe_sum=None).shape == (0, 128)


@pytest.mark.parametrize("which", ["scales not packed", "types mixed", "w2 transposed", "scales not contiguous"])
def test_experts_that_do_not_fit_are_refused(kernel: Any, reference: Any, which: str) -> None:
    layer = reference.layer(experts=4, hidden=128, inner=32, tokens=3, top_k=2)
    w13, s13, w2, s2 = layer.prepared(kernel, FNUZ)
    wrong = {
        "scales not packed": (w13, s13.transpose(1, 2).contiguous(), w2, s2),
        "types mixed": (w13, s13, layer.w2, s2),
        "w2 transposed": (w13, s13, w2.transpose(1, 2).contiguous(), s2),
        "scales not contiguous": (w13, s13.transpose(1, 2).contiguous().transpose(1, 2), w2, s2),
    }[which]
    with pytest.raises(ValueError, match="experts"):
        layer.fused(kernel, FNUZ, experts=wrong)
