"""The kernels that choose blocks write the token-major buffer, in Triton's interpreter: a decode and a prefill.

The prefill's scores come from torch, and no attention runs: those kernels use block pointers, which Triton 3.9 has not.
"""

from __future__ import annotations

import importlib
import sys
import types
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import torch

TOPK, DIM, BLOCK, PAGES = 4, 16, 128, 9
POSITIONS = [(0, 799), (1, 513), (1, 514)]  # (request, place in its sequence) of each token: a decode, a prefill of two
LENGTHS = [800, 515]
TABLE = [[5, 2, 7, 8, 0, 3, 6], [1, 3, 4, 6, 0, 0, 0]]
ROOM = 6
EMPTY = -7


@pytest.fixture(scope="module")
def modules(tree: Path) -> SimpleNamespace:
    """Import the modules without the package's __init__, which needs the compiled operations."""
    package = types.ModuleType("vllm.models.minimax_m3")
    package.__path__ = [str(tree / "vllm/models/minimax_m3")]
    sys.modules[package.__name__] = package
    return SimpleNamespace(
        indexer=importlib.import_module("vllm.models.minimax_m3.common.indexer"),
        ops=importlib.import_module("vllm.models.minimax_m3.common.ops.index_topk"),
    )


@dataclass
class Inputs:
    """Random fp16 inputs (the interpreter multiplies bf16 wrongly) and what torch makes of them."""

    heads: int
    keys: torch.Tensor = field(init=False)  # [PAGES, BLOCK, DIM]
    query: torch.Tensor = field(init=False)  # [tokens, heads, DIM]

    def __post_init__(self) -> None:
        import torch

        torch.manual_seed(self.heads)
        self.keys = torch.randn(PAGES, BLOCK, DIM, dtype=torch.float16)
        self.query = torch.randn(len(POSITIONS), self.heads, DIM, dtype=torch.float16)

    def scores(self, first: int) -> torch.Tensor:
        """Return the block scores of the tokens from the `first` on, [heads, tokens, blocks] fp32."""
        import torch

        found = torch.zeros(self.heads, len(POSITIONS) - first, len(TABLE[0]))
        for row, (request, position) in enumerate(POSITIONS[first:]):
            keys = self.keys[TABLE[request]].flatten(0, 1)[: position + 1].float()
            best = [(block @ self.query[first + row].float().T).amax(0) for block in keys.split(BLOCK)]
            found[:, row, : len(best)] = torch.stack(best, 1)
        return found

    def chosen(self, token: int, head: int) -> set[int]:
        """Return the first, the last and the best scoring blocks in between, TOPK in all."""
        last = POSITIONS[token][1] // BLOCK
        scores = self.scores(token)[head, 0].tolist()
        return {0, last, *sorted(range(1, last), key=lambda block: -scores[block])[: TOPK - 2]}


def metadata(kind: type) -> object:
    """Return the release's metadata of the batch."""
    import torch

    table, lens = torch.tensor(TABLE, dtype=torch.int32), torch.tensor(LENGTHS, dtype=torch.int32)
    both = {"max_seq_len": max(LENGTHS)}
    decode = SimpleNamespace(
        block_table=table[:1], seq_lens=lens[:1], decode_query_len=1, max_decode_query_len=1, **both
    )
    prefill = SimpleNamespace(
        block_table=table[1:],
        seq_lens=lens[1:],
        cu_seqlens_q=torch.tensor([0, 2], dtype=torch.int32),
        context_lens=lens[1:] - 2,
        max_query_len=2,
        **both,
    )
    made = object.__new__(kind)
    made.__dict__.update(decode=decode, prefill=prefill, num_actual_tokens=3, num_decode_tokens=1)
    made.__dict__.update(num_decodes=1, num_prefills=1)
    return made


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_kernels_write_the_blocks_that_torch_chooses(
    modules: SimpleNamespace, heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    inputs = Inputs(heads)
    context = SimpleNamespace(attn_metadata={"layer": metadata(modules.indexer.MiniMaxM3IndexerMetadata)})
    monkeypatch.setattr(modules.indexer, "get_forward_context", lambda: context)
    monkeypatch.setattr(modules.indexer, "minimax_m3_index_score", lambda *_: inputs.scores(1))
    for kernel in (modules.ops._topk_index_kernel, modules.ops._topk_index_partial_kernel):  # noqa: SLF001
        monkeypatch.setattr(kernel.fn, "configs", kernel.fn.configs[-1:])  # to choose one needs a device
    buffer = torch.full((ROOM, heads, TOPK), EMPTY, dtype=torch.int32)
    indexer = SimpleNamespace(
        index_cache=SimpleNamespace(prefix="layer", kv_cache=inputs.keys),
        topk_indices_buffer=buffer,
        num_index_heads=heads,
        index_head_dim=DIM,
        num_kv_heads=heads,
        topk_blocks=TOPK,
        init_blocks=1,
        local_blocks=1,
    )
    modules.indexer.MiniMaxM3IndexerTritonImpl.forward(indexer, inputs.query.flatten(1))
    for token in range(len(POSITIONS)):
        for head in range(heads):
            assert set(buffer[token, head].tolist()) == inputs.chosen(token, head)
    assert (buffer[len(POSITIONS) :] == EMPTY).all()
