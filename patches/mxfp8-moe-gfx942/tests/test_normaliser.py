"""Checkpoint bytes become FNUZ in place, bit for bit the same values; what cannot be kept is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

FN, FNUZ = torch.float8_e4m3fn, torch.float8_e4m3fnuz
NAN, MINUS_ZERO = (0x7F, 0xFF), 0x80
SLICE = 4096


def every_code_with_every_scale() -> tuple[torch.Tensor, torch.Tensor]:
    """Return values [254, 256], each row all FN codes but NaN (0 twice instead), and scales 0 to 253, one a row."""
    codes = torch.tensor([0 if code in NAN else code for code in range(256)], dtype=torch.uint8)
    scales = torch.arange(254, dtype=torch.uint8)
    return codes.repeat(254, 1).view(FN), scales[:, None].repeat(1, 8)


def some() -> tuple[torch.Tensor, torch.Tensor]:
    values, scales = every_code_with_every_scale()
    return values[:4].clone(), scales[100:104].clone()


class Allocated(TorchDispatchMode):
    """Records the size of every storage that an operation makes anew."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.largest = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.rule("P1.7-1")
def test_every_code_with_every_scale_keeps_its_value(kernel: Any, reference: Any) -> None:
    values, scales = every_code_with_every_scale()
    wanted = reference.decode(values, scales)
    new_values, new_scales = kernel.fn_to_fnuz(values.clone(), scales.clone())
    assert torch.equal(reference.decode(new_values, new_scales), wanted)
    assert torch.equal(new_scales, scales + 1)
    old, new = values.view(torch.uint8), new_values.view(torch.uint8)
    assert torch.equal(new, old.masked_fill(old == MINUS_ZERO, 0))
    assert (old == MINUS_ZERO).any()


@pytest.mark.rule("P1.7-2")
@pytest.mark.parametrize("scale", [254, 255])
def test_a_scale_that_cannot_be_doubled_is_refused_and_nothing_changed(kernel: Any, scale: int) -> None:
    values, scales = some()
    scales[2, 3] = scale
    before = values.view(torch.uint8).clone(), scales.clone()
    with pytest.raises(ValueError, match="254"):
        kernel.fn_to_fnuz(values, scales)
    assert torch.equal(values.view(torch.uint8), before[0])
    assert torch.equal(scales, before[1])


@pytest.mark.rule("P1.7-3")
def test_fnuz_passes_unchanged_so_twice_is_once(kernel: Any) -> None:
    values, scales = kernel.fn_to_fnuz(*some())
    before = values.view(torch.uint8).clone(), scales.clone()
    again, again_scales = kernel.fn_to_fnuz(values, scales)
    assert again.dtype == FNUZ
    assert torch.equal(again.view(torch.uint8), before[0])
    assert torch.equal(again_scales, before[1])


@pytest.mark.rule("P1.7-4")
@pytest.mark.parametrize("code", NAN)
@pytest.mark.parametrize("at", [(0, 0), (3, 255)])
def test_nan_is_refused_and_nothing_changed(kernel: Any, code: int, at: tuple[int, int]) -> None:
    values, scales = some()
    values.view(torch.uint8)[at] = code
    before = values.view(torch.uint8).clone(), scales.clone()
    with pytest.raises(ValueError, match="NaN"):
        kernel.fn_to_fnuz(values, scales)
    assert torch.equal(values.view(torch.uint8), before[0])
    assert torch.equal(scales, before[1])


@pytest.mark.rule("P1.7-5")
def test_it_works_in_place_and_in_slices(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_SLICE", SLICE)
    values = torch.full((8, 128, 320), MINUS_ZERO, dtype=torch.uint8).view(FN)
    scales = torch.full((8, 128, 10), 120, dtype=torch.uint8)
    with Allocated([values, scales]) as seen:
        new_values, new_scales = kernel.fn_to_fnuz(values, scales)
    assert 0 < seen.largest <= SLICE
    assert new_values.data_ptr() == values.data_ptr()
    assert new_scales.data_ptr() == scales.data_ptr()
    assert new_values.dtype == FNUZ
    assert not new_values.view(torch.uint8).any()  # the last slice too


def test_slices_are_small_beside_a_layer(kernel: Any) -> None:
    assert vars(kernel)["_SLICE"] * 32 < 128 * 768 * 6144


@pytest.mark.parametrize(
    ("values", "scales"),
    [
        (torch.zeros(4, 32), torch.zeros(4, 1, dtype=torch.uint8)),
        (torch.zeros(4, 32).to(FN), torch.zeros(4, 1)),
        (torch.zeros(4, 48).to(FN), torch.zeros(4, 1, dtype=torch.uint8)),
        (torch.zeros(4, 64).to(FN), torch.zeros(2, 4, dtype=torch.uint8)),
        (torch.zeros(64, 4).to(FN).T, torch.zeros(4, 2, dtype=torch.uint8)),
    ],
    ids=["values not fp8", "scales not bytes", "no whole blocks", "packed scales", "not contiguous"],
)
def test_what_is_not_a_checkpoints_pair_is_refused(kernel: Any, values: torch.Tensor, scales: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"not|must"):
        kernel.fn_to_fnuz(values, scales)


def test_both_forms_dequantise_exactly_to_the_same_bf16(kernel: Any, reference: Any) -> None:
    values, scales = every_code_with_every_scale()
    values, scales = values[20:246].unsqueeze(0), scales[20:246].unsqueeze(0)  # no subnormal, no overflow
    wanted = reference.decode(values, scales)
    assert torch.equal(kernel.dequantise(values, scales).double(), wanted)
    normalised = kernel.fn_to_fnuz(values.clone(), scales.clone())
    assert torch.equal(kernel.dequantise(*normalised).double(), wanted)


def test_the_smallest_scale_is_not_zero(kernel: Any) -> None:
    values = torch.full((1, 1, 32), 256.0).to(FN)
    scales = torch.zeros((1, 1, 1), dtype=torch.uint8)
    assert float(kernel.dequantise(values, scales, torch.float32)[0, 0, 0]) == 2.0 ** (8 - 127)


def test_dequantising_expands_one_expert_at_a_time(kernel: Any) -> None:
    values, scales = torch.ones(16, 32, 64).to(FN), torch.full((16, 32, 2), 127, dtype=torch.uint8)
    with Allocated([values, scales]) as seen:
        out = kernel.dequantise(values, scales)
    assert out.dtype == torch.bfloat16
    assert (out == 1).all()
    assert seen.largest == out.numel() * 2  # an expert in fp32 is an eighth of it
