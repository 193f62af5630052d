"""Which experts a batch runs on depends on its token count alone; and which layers this is for."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch

M3 = {
    "fp8_dtype": torch.float8_e4m3fnuz,
    "ep_size": 1,
    "shared_expert": True,
    "num_experts": 128,
    "top_k": 4,
    "hidden_size": 6144,
    "intermediate_size": 3072,
    "max_model_len": 4096,
}


@pytest.mark.rule("P1.7-9")
@pytest.mark.parametrize("prefill", [1024, 832])
def test_bf16_below_nine_tokens_and_from_the_threshold_on(kernel: Any, prefill: int) -> None:
    hybrid = kernel.Hybrid(prefill_tokens=prefill)
    branches = {n: hybrid.branch(n, native=True, bf16=True) for n in (1, 8, 9, 512, prefill - 1, prefill, 65536)}
    assert branches == {
        1: "bf16",
        8: "bf16",
        9: "native",
        512: "native",
        prefill - 1: "native",
        prefill: "bf16",
        65536: "bf16",
    }


@pytest.mark.rule("P1.7-9")
def test_the_documented_thresholds_are_the_defaults(kernel: Any) -> None:
    assert kernel.Hybrid() == kernel.Hybrid(decode_tokens=8, prefill_tokens=1024)


@pytest.mark.rule("P1.7-10")
@pytest.mark.parametrize("tokens", [1, 8, 9, 1023, 1024, 65536])
def test_a_layer_with_one_kind_of_weights_runs_on_it(kernel: Any, tokens: int) -> None:
    assert kernel.Hybrid().branch(tokens, native=False, bf16=True) == "bf16"


@pytest.mark.rule("P1.7-13")
@pytest.mark.parametrize("tokens", [1, 8, 9, 1023, 1024, 65536])
def test_a_layer_without_bf16_copies_is_native_for_every_count(kernel: Any, tokens: int) -> None:
    assert kernel.Hybrid().branch(tokens, native=True, bf16=False) == "native"


def test_a_layer_without_weights_is_an_error(kernel: Any) -> None:
    with pytest.raises(ValueError, match="without"):
        kernel.Hybrid().branch(1, native=False, bf16=False)


@pytest.mark.rule("P1.7-12")
def test_nothing_but_the_count_decides(kernel: Any) -> None:
    hybrid = kernel.Hybrid()
    counts = [*range(1, 20), *range(1000, 1050)]
    first = [hybrid.branch(n, native=True, bf16=True) for n in counts]
    assert [hybrid.branch(n, native=True, bf16=True) for n in reversed(counts)] == first[::-1]
    with pytest.raises(FrozenInstanceError):
        hybrid.decode_tokens = 16
    # EAGLE3 with three draft tokens: four tokens a request.
    assert [hybrid.branch(4 * requests, native=True, bf16=True) for requests in (2, 3)] == ["bf16", "native"]


@pytest.mark.parametrize(("decode", "prefill"), [(-1, 1024), (8, 8), (8, 9), (1024, 8), (0, 0), (8, -1)])
def test_thresholds_with_nothing_between_are_refused(kernel: Any, decode: int, prefill: int) -> None:
    with pytest.raises(ValueError, match="no token count"):
        kernel.Hybrid(decode_tokens=decode, prefill_tokens=prefill)


def test_the_narrowest_thresholds(kernel: Any) -> None:
    hybrid = kernel.Hybrid(decode_tokens=0, prefill_tokens=2)
    assert [hybrid.branch(n, native=True, bf16=True) for n in (1, 2)] == ["native", "bf16"]


@pytest.mark.rule("P1.7-11")
@pytest.mark.parametrize("length", [4097, 8192, 196608])
def test_every_fifth_layer_is_bf16_only_above_4096(kernel: Any, length: int) -> None:
    layers = [index for index in range(3, 60) if kernel.bf16_only(index, length)]
    assert layers == [5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55]


@pytest.mark.rule("P1.7-11")
def test_no_layer_is_bf16_only_up_to_4096(kernel: Any) -> None:
    assert not any(kernel.bf16_only(index, length) for index in range(60) for length in (0, 1, 4096))


def test_minimax_m3_is_eligible(kernel: Any) -> None:
    assert kernel.hybrid_eligible(**M3)


@pytest.mark.parametrize(
    "change",
    [
        {"fp8_dtype": torch.float8_e4m3fn},
        {"ep_size": 8},
        {"shared_expert": False},
        {"num_experts": 127},
        {"num_experts": 130},
        {"top_k": 8},
        {"hidden_size": 3072},
        {"intermediate_size": 384},
        {"max_model_len": 0},
    ],
    ids=str,
)
def test_anything_else_is_not(kernel: Any, change: dict[str, Any]) -> None:
    assert not kernel.hybrid_eligible(**(M3 | change))


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_expert_fused_as_row_129_counts_as_one(kernel: Any, *, shared: bool) -> None:
    assert kernel.hybrid_eligible(**(M3 | {"num_experts": 129, "shared_expert": shared}))


@pytest.mark.parametrize(("n", "k"), [(768, 6144), (6144, 384), (1536, 6144), (6144, 768)])
def test_both_gemms_of_a_layer_have_one_block_m(kernel: Any, n: int, k: int) -> None:
    sizes = {rows: kernel.tile(rows, n, k, 128).block_m for rows in (4, 2048, 2176, 4096, 4224, 65536)}
    assert sizes == {4: 16, 2048: 16, 2176: 32, 4096: 32, 4224: 64, 65536: 64}
    assert all(k % kernel.tile(rows, n, k, 128).block_k == 0 for rows in sizes)
