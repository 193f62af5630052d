"""The requantisation alone, on both FP8 flavours; needs torch only."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .conftest import Mxfp8, dequantized, mxfp8, relative

WEIGHT_BOUND = 0.04
FLAVOURS = [torch.float8_e4m3fn, torch.float8_e4m3fnuz]


def requantized(module: ModuleType, given: Mxfp8, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return module.requant_mxfp8_to_block_fp8(given.weight.clone(), given.scale, dtype)


def mutant(source: str, old: str, new: str) -> ModuleType:
    assert source.count(old) == 1
    module = ModuleType("mutant")
    exec(source.replace(old, new), module.__dict__)  # noqa: S102
    return module


@pytest.mark.rule("P1b-1")
@pytest.mark.parametrize("dtype", FLAVOURS)
@pytest.mark.parametrize("shape", [(3, 256, 384), (1, 128, 128), (2, 384, 256)])
def test_each_tile_is_requantised_to_the_range_by_one_scale(
    requant: ModuleType, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    given = mxfp8(*shape)
    weight, scale = requantized(requant, given, dtype)
    experts, n, k = shape
    assert (weight.shape, weight.dtype) == (shape, dtype)
    assert (scale.shape, scale.dtype) == ((experts, n // 128, k // 128), torch.float32)
    assert scale.is_contiguous()
    largest = torch.finfo(dtype).max
    for e in range(experts):
        for i in range(0, n, 128):
            for j in range(0, k, 128):
                tile = given.values[e, i : i + 128, j : j + 128]
                expected = tile.abs().max() / largest
                assert scale[e, i // 128, j // 128] == expected
                found = weight[e, i : i + 128, j : j + 128]
                assert torch.equal(found.view(torch.uint8), (tile / expected).to(dtype).view(torch.uint8))
                assert found.float().abs().max() == largest


@pytest.mark.rule("P1b-4")
@pytest.mark.parametrize("dtype", FLAVOURS)
def test_weights_keep_their_values_within_the_bound(requant: ModuleType, dtype: torch.dtype) -> None:
    given = mxfp8(4, 384, 768)
    error = relative(dequantized(*requantized(requant, given, dtype)), given.values)
    print(f"weight requantisation to {dtype}: relative error {error:.4f}")
    assert error < WEIGHT_BOUND


@pytest.mark.rule("P1b-4")
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tiles.abs().amax(dim=(1, 3))", "tiles[:, 0].abs().amax(dim=2)"),
        ("torch.finfo(dtype).max", "torch.finfo(torch.float8_e4m3fn).max"),
        ("tile_scales[expert] = tile_scale", "tile_scales[expert] = tile_scale.flip(0)"),
        ("<< 23", "+ 1 << 23"),
    ],
    ids=["scale of one row for its tile", "range of FN on FNUZ", "scales of other tiles", "exponent off by one"],
)
def test_bound_catches_a_wrong_requantisation(source: str, old: str, new: str) -> None:
    given = mxfp8(4, 384, 768)
    weight, scale = requantized(mutant(source, old, new), given, torch.float8_e4m3fnuz)
    assert relative(dequantized(weight, scale), given.values) > WEIGHT_BOUND


@pytest.mark.rule("P1b-1")
@pytest.mark.parametrize("dtype", FLAVOURS)
def test_scale_bytes_read_as_powers_of_two_over_their_range(requant: ModuleType, dtype: torch.dtype) -> None:
    for byte in range(1, 255):
        weight = torch.ones(1, 128, 128).to(torch.float8_e4m3fn)
        made, scale = requant.requant_mxfp8_to_block_fp8(
            weight, torch.full((1, 128, 4), byte, dtype=torch.uint8), dtype
        )
        expected = 2.0 ** (byte - 127)
        assert dequantized(made, scale).double().sub(expected).abs().max() <= expected * 2**-22 + 2**-126


@pytest.mark.rule("P1b-1")
@pytest.mark.parametrize("dtype", FLAVOURS)
def test_zero_tile_stays_zero_with_a_scale_that_can_be_divided_by(requant: ModuleType, dtype: torch.dtype) -> None:
    given = mxfp8(2, 256, 256)
    given.weight.view(torch.uint8)[1, 128:, :128] = 0
    given.weight.view(torch.uint8)[0, :128, :128] = 0x80
    weight, scale = requantized(requant, given, dtype)
    assert weight.float()[1, 128:, :128].eq(0).all()
    assert weight.float()[0, :128, :128].eq(0).all()
    assert (scale > 0).all()


@pytest.mark.rule("P1b-1")
@pytest.mark.parametrize(("part", "byte"), [("weight", 0x7F), ("weight", 0xFF), ("scale", 0xFF)])
def test_nan_and_infinite_weights_are_refused_with_their_expert(requant: ModuleType, part: str, byte: int) -> None:
    given = mxfp8(3, 128, 128)
    getattr(given, part).view(torch.uint8)[2, 5, 1] = byte
    with pytest.raises(ValueError, match=r"NaN or infinite .* \[2\]"):
        requantized(requant, given, torch.float8_e4m3fnuz)


@pytest.mark.rule("P1b-2")
def test_sizes_that_let_gate_and_up_share_a_tile_are_refused(requant: ModuleType) -> None:
    for intermediate in (384, 768, 1536, 3072):
        requant.check_block_fp8_sizes(6144, intermediate)
    with pytest.raises(ValueError, match="per-rank intermediate size divisible by 128, got 192"):
        requant.check_block_fp8_sizes(6144, 192)
    with pytest.raises(ValueError, match="per-rank hidden size divisible by 128, got 6112"):
        requant.check_block_fp8_sizes(6112, 384)


@pytest.mark.rule("P1b-1")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 192, 128), torch.float8_e4m3fn),
        ((1, 128, 192), torch.float8_e4m3fn),
        ((1, 128, 128), torch.float8_e4m3fnuz),
        ((1, 128, 128), torch.bfloat16),
    ],
)
def test_partial_tiles_and_weights_that_are_not_mxfp8_are_refused(
    requant: ModuleType, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    scale = torch.full((*shape[:-1], shape[-1] // 32), 127, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"tiles|Expected float8_e4m3fn"):
        requant.requant_mxfp8_to_block_fp8(torch.zeros(shape).to(dtype), scale, torch.float8_e4m3fnuz)


class Largest(TorchDispatchMode):
    """Records the bytes of the largest storage that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        out = func(*args, **kwargs or {})
        given = {each.untyped_storage().data_ptr() for each in args if isinstance(each, torch.Tensor)}
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in given:
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


@pytest.mark.rule("P1b-10")
def test_memory_beyond_the_weights_is_that_of_one_expert(requant: ModuleType) -> None:
    given = mxfp8(16, 256, 256)
    with Largest() as largest:
        weight, _ = requant.requant_mxfp8_to_block_fp8(given.weight, given.scale, torch.float8_e4m3fnuz)
    assert largest.bytes == 4 * 256 * 256
    assert weight.untyped_storage().data_ptr() == given.weight.untyped_storage().data_ptr()
