"""Red unless MiniMax-M3's Triton indexer and attention address the shared top-k buffer as their model allocates it.

Runs the two forward functions of the release on stand-ins: what reaches the kernels must be [heads, tokens, topk], and
each element of it must lie where the allocation puts it: token-major on NVIDIA, head-major on ROCm.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import ast
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

COMMON = "vllm/models/minimax_m3/common/"
TOPK, ROOM = 2, 8
BATCHES = ((3, 0), (0, 3), (2, 3))  # (decoded tokens, tokens of prefills)


@dataclass(frozen=True)
class View:
    """What torch's basic indexing and transpose make of a tensor: sizes, strides and the first element's place."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0

    def transpose(self, a: int, b: int) -> View:
        order = list(range(len(self.shape)))
        order[a], order[b] = b, a
        return View(tuple(self.shape[i] for i in order), tuple(self.strides[i] for i in order), self.start)

    def __getitem__(self, key: slice | tuple[slice, ...]) -> View:
        keys = key if isinstance(key, tuple) else (key,)
        bounds = [part.indices(size) for part, size in zip(keys, self.shape, strict=False)]
        shape = tuple(max(0, stop - first) for first, stop, _ in bounds) + self.shape[len(bounds) :]
        start = self.start + sum(first * stride for (first, _, _), stride in zip(bounds, self.strides, strict=False))
        return View(shape, self.strides, start)

    def places(self) -> list[int]:
        """Return where each element lies, in the order of this view's indices."""
        indices = itertools.product(*map(range, self.shape))
        return [
            self.start + sum(i * stride for i, stride in zip(index, self.strides, strict=True)) for index in indices
        ]


def method(path: Path, owner: str, scope: dict[str, object]):  # noqa: ANN201 - any signature
    """Return the forward function of the class `owner`, compiled alone in `scope`."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == owner).body
    forward = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "forward")
    # this module's own future import keeps the annotations unevaluated
    exec(compile(ast.Module([forward], []), str(path), "exec"), scope)  # noqa: S102 - the release's own code
    return scope["forward"]


def reached(root: Path, *, rocm: bool, buffer: View, batch: tuple[int, int]) -> dict[str, View]:
    """Return what each of the four kernels gets of the buffer, cut to the tokens that it works on."""
    decoded, prefilled = batch
    metadata = MagicMock(
        num_decode_tokens=decoded,
        num_actual_tokens=decoded + prefilled,
        num_decodes=bool(decoded),
        num_prefills=bool(prefilled),
    )
    scope = {
        "get_forward_context": lambda: SimpleNamespace(attn_metadata={"layer": metadata}),
        "current_platform": SimpleNamespace(is_rocm=lambda: rocm),
        "MiniMaxM3IndexerMetadata": MagicMock,
        "MiniMaxM3SparseMetadata": MagicMock,
        "minimax_m3_index_decode": MagicMock(),
        "minimax_m3_index_score": MagicMock(),
        "minimax_m3_index_topk": MagicMock(),
        "minimax_m3_sparse_attn": MagicMock(),
        "minimax_m3_sparse_attn_decode": MagicMock(),
    }
    indexer = MagicMock(topk_indices_buffer=buffer, index_cache=MagicMock(prefix="layer"))
    method(root / COMMON / "indexer.py", "MiniMaxM3IndexerTritonImpl", scope)(indexer, MagicMock())
    layer = MagicMock(topk_indices_buffer=buffer, layer_name="layer")
    attend = method(root / COMMON / "sparse_attention.py", "MiniMaxM3SparseTritonImpl", scope)
    attend(MagicMock(use_fp8_kv=False), layer, MagicMock(), MagicMock(), MagicMock())
    found = {}
    if decoded:
        found["write of decodes"] = scope["minimax_m3_index_decode"].call_args.kwargs["out"][:, :decoded]
        found["read of decodes"] = scope["minimax_m3_sparse_attn_decode"].call_args.args[2]
    if prefilled:
        found["write of prefills"] = scope["minimax_m3_index_topk"].call_args.kwargs["out"][:, :prefilled]
        found["read of prefills"] = scope["minimax_m3_sparse_attn"].call_args.args[2]
    return found


def wrong(root: Path, *, rocm: bool, heads: int, batch: tuple[int, int]) -> list[str]:
    """Return what of one batch is not where the allocation puts it."""
    if rocm:
        buffer = View((heads, ROOM, TOPK), (ROOM * TOPK, TOPK, 1))
        head, token = ROOM * TOPK, TOPK
    else:
        buffer = View((ROOM, heads, TOPK), (heads * TOPK, TOPK, 1))
        head, token = TOPK, heads * TOPK
    complaints = []
    for name, view in reached(root, rocm=rocm, buffer=buffer, batch=batch).items():
        first, count = (0, batch[0]) if "decodes" in name else batch
        right = [h * head + (first + t) * token + k for h in range(heads) for t in range(count) for k in range(TOPK)]
        if view.shape != (heads, count, TOPK) or view.places() != right:
            complaints.append(f"{name} has shape {view.shape}, places {view.places()} instead of {right}")
    return complaints


def main(root: Path) -> int:
    red = 0
    for rocm, heads, batch in itertools.product((False, True), (1, 2, 4), BATCHES):
        for complaint in wrong(root, rocm=rocm, heads=heads, batch=batch):
            red += 1
            platform = "ROCm" if rocm else "NVIDIA"
            print(f"red: {platform}, {heads} heads, {batch[0]} decoded, {batch[1]} prefilled: {complaint}")
    if red:
        return 1
    print("green: the kernels address the buffer as it is allocated, with 1, 2 and 4 heads")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
