"""What the Triton indexer and the Triton attention of MiniMax-M3 do with the shared top-k buffer."""

from __future__ import annotations

import ast
import importlib
import sys
import types
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

TOPK, HEAD_DIM, BLOCK = 4, 16, 128
ROOM = 12  # tokens that the buffer has room for
BATCHES = [(3, 0), (0, 3), (2, 5), (5, 2)]  # (decoded tokens, tokens of prefills)
CUDA = SimpleNamespace(is_rocm=lambda: False)
ROCM = SimpleNamespace(is_rocm=lambda: True)
EMPTY = -7


@pytest.fixture(scope="session")
def modules(tree: Path) -> SimpleNamespace:
    """Import the two modules without the package's __init__, which needs the compiled operations."""
    package = types.ModuleType("vllm.models.minimax_m3")
    package.__path__ = [str(tree / "vllm/models/minimax_m3")]
    sys.modules[package.__name__] = package
    return SimpleNamespace(
        indexer=importlib.import_module("vllm.models.minimax_m3.common.indexer"),
        attention=importlib.import_module("vllm.models.minimax_m3.common.sparse_attention"),
    )


def blocks_of(heads: int, first: int, count: int) -> torch.Tensor:
    """Return what is chosen for `count` tokens from the `first` on, [heads, count, TOPK], no value twice."""
    import torch

    values = torch.arange(heads * ROOM * TOPK, dtype=torch.int32).view(heads, ROOM, TOPK)
    return values[:, first : first + count]


@dataclass
class Stage:
    """One batch, the two forward functions of the release, and kernels that only address the top-k buffer."""

    modules: SimpleNamespace
    batch: tuple[int, int]
    heads: int
    patch: pytest.MonkeyPatch

    def __post_init__(self) -> None:
        decoded, prefilled = self.batch
        numbers = {
            "num_actual_tokens": decoded + prefilled,
            "num_decode_tokens": decoded,
            "num_decodes": bool(decoded),
            "num_prefills": bool(prefilled),
        }
        anything = types.SimpleNamespace(
            **dict.fromkeys(("seq_lens", "block_table", "max_seq_len", "context_lens", "max_query_len")),
            **dict.fromkeys(("cu_seqlens_q", "decode_query_len", "max_decode_query_len")),
        )
        for module, kind in (
            (self.modules.indexer, "MiniMaxM3IndexerMetadata"),
            (self.modules.attention, "MiniMaxM3SparseMetadata"),
        ):
            metadata = object.__new__(getattr(module, kind))
            metadata.__dict__.update(numbers, decode=anything, prefill=anything)
            context = SimpleNamespace(attn_metadata={"layer": metadata})
            self.patch.setattr(module, "get_forward_context", lambda context=context: context)

    def on(self, platform: SimpleNamespace) -> Stage:
        for module in (self.modules.indexer, self.modules.attention):
            self.patch.setattr(module, "current_platform", platform)
        return self

    def choose(self, buffer: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Run the indexer; its kernels write what blocks_of says."""
        import torch

        decoded, prefilled = self.batch
        self.patch.setattr(self.modules.indexer, "minimax_m3_index_score", lambda *_: None)
        self.patch.setattr(self.modules.indexer, "minimax_m3_index_decode", self.writing(0, decoded))
        self.patch.setattr(self.modules.indexer, "minimax_m3_index_topk", self.writing(decoded, prefilled))
        indexer = SimpleNamespace(
            index_cache=SimpleNamespace(prefix="layer", kv_cache=None),
            topk_indices_buffer=buffer,
            num_index_heads=self.heads,
            index_head_dim=HEAD_DIM,
            num_kv_heads=self.heads,
            **dict.fromkeys(("topk_blocks", "init_blocks", "local_blocks")),
        )
        query = torch.zeros(ROOM, self.heads * HEAD_DIM)
        return self.modules.indexer.MiniMaxM3IndexerTritonImpl.forward(indexer, query)

    def writing(self, first: int, count: int) -> Callable[..., torch.Tensor]:
        def kernel(*_: Any, out: torch.Tensor | None) -> torch.Tensor:
            chosen = blocks_of(self.heads, first, count)
            if out is None:
                return chosen
            target = out[:, :count, :]  # as the wrappers of the kernels take it
            assert target.shape == chosen.shape
            return target.copy_(chosen)

        return kernel

    def attend(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """Run the attention; return what its kernels get to read."""
        import torch

        read: dict[str, torch.Tensor] = {}
        for name, key in (("minimax_m3_sparse_attn_decode", "decodes"), ("minimax_m3_sparse_attn", "prefills")):
            self.patch.setattr(
                self.modules.attention, name, lambda *args, key=key, **_: read.__setitem__(key, args[2].clone())
            )
        impl = SimpleNamespace(head_size=HEAD_DIM, num_heads=self.heads, num_kv_heads=self.heads, use_fp8_kv=False)
        impl.scale = 1.0
        layer = SimpleNamespace(layer_name="layer", topk_indices_buffer=buffer)
        query = torch.zeros(ROOM, self.heads * HEAD_DIM)
        self.modules.attention.MiniMaxM3SparseTritonImpl.forward(impl, layer, query, None, torch.zeros_like(query))
        return read


@pytest.fixture(params=BATCHES, ids=lambda batch: f"{batch[0]}-decoded-{batch[1]}-prefilled")
def batch(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


@pytest.fixture(params=[1, 2, 4], ids=lambda heads: f"{heads}-heads")
def stage(
    modules: SimpleNamespace, batch: tuple[int, int], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    return Stage(modules, batch, request.param, monkeypatch).on(CUDA)


def token_major(heads: int) -> torch.Tensor:
    import torch

    return torch.full((ROOM, heads, TOPK), EMPTY, dtype=torch.int32)


@pytest.mark.rule("X1-1")
def test_the_indexer_writes_token_by_token(stage: Stage) -> None:
    buffer = token_major(stage.heads)
    tokens = sum(stage.batch)
    stage.choose(buffer)
    assert buffer[:tokens].equal(blocks_of(stage.heads, 0, tokens).transpose(0, 1))
    assert (buffer[tokens:] == EMPTY).all()


@pytest.mark.rule("X1-2")
def test_the_attention_reads_token_by_token(stage: Stage) -> None:
    buffer = token_major(stage.heads)
    buffer.copy_(blocks_of(stage.heads, 0, ROOM).transpose(0, 1))
    decoded, prefilled = stage.batch
    expected = {"decodes": (0, decoded), "prefills": (decoded, prefilled)}
    read = stage.attend(buffer)
    assert set(read) == {name for name, (_, count) in expected.items() if count}
    for name, topk in read.items():
        assert topk.equal(blocks_of(stage.heads, *expected[name])), name


@pytest.mark.rule("X1-3")
def test_the_attention_reads_what_the_indexer_wrote(stage: Stage) -> None:
    buffer = token_major(stage.heads)
    chosen = stage.choose(buffer)
    read = stage.attend(buffer)
    for name, topk in zip(("decodes", "prefills"), chosen, strict=True):
        assert (topk is None) == (name not in read)
        assert topk is None or topk.equal(read[name])


@pytest.mark.rule("X1-4")
def test_what_the_indexer_returns_is_the_buffer_itself(stage: Stage) -> None:
    buffer = token_major(stage.heads)
    decoded, _ = stage.batch
    for topk, first in zip(stage.choose(buffer), (0, decoded), strict=True):
        if topk is not None:
            assert topk.shape[0] == stage.heads
            assert topk.data_ptr() == buffer[first].data_ptr()


def test_rocm_keeps_its_head_major_buffer(stage: Stage) -> None:
    import torch

    stage.on(ROCM)
    buffer = torch.full((stage.heads, ROOM, TOPK), EMPTY, dtype=torch.int32)
    tokens = sum(stage.batch)
    chosen = stage.choose(buffer)
    assert buffer[:, :tokens].equal(blocks_of(stage.heads, 0, tokens))
    assert (buffer[:, tokens:] == EMPTY).all()
    read = stage.attend(buffer)
    for name, topk in zip(("decodes", "prefills"), chosen, strict=True):
        assert topk is None or topk.equal(read[name])


def test_without_a_buffer_the_kernels_allocate(stage: Stage) -> None:
    decoded, prefilled = stage.batch
    for topk, place in zip(stage.choose(None), ((0, decoded), (decoded, prefilled)), strict=True):
        assert topk is None or topk.equal(blocks_of(stage.heads, *place))


@pytest.mark.parametrize(("platform", "outer"), [("nvidia", "padded_num_tokens"), ("amd", "num_index_heads")])
def test_the_models_allocate_as_the_patch_takes_it(tree: Path, platform: str, outer: str) -> None:
    module = ast.parse((tree / "vllm/models/minimax_m3" / platform / "model.py").read_text(encoding="utf-8"))
    sizes = [
        [ast.unparse(size) for size in node.value.args]
        for node in ast.walk(module)
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "self.topk_indices_buffer"
        and isinstance(node.value, ast.Call)
    ]
    assert [found[0] for found in sizes] == [outer]
    assert len(sizes[0]) == 3  # noqa: PLR2004 - tokens, heads, blocks
