"""Red when the Triton quantiser for MXFP8 activations makes anything but zeros of a block of zeros on CDNA.

Takes the statements of the quantiser from the release's source and computes with them on Python numbers that become
zero below 2**-126, as they do on that GPU.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import ast
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

UTILS = "vllm/model_executor/layers/quantization/utils/mxfp8_utils.py"
TINY = 2.0**-126
BLOCKS = ((0.0, 0.0), (TINY, 0.0), (2.0**-118, -TINY), (2.0**-110, 0.0), (1.0, -0.25), (448.0, 449.0), (3e38, 1.0))


def flushed(value: float) -> float:
    return value if abs(value) >= TINY or math.isnan(value) else 0.0


def quotient(a: float, b: float) -> float:
    if b:
        return a / b
    return math.copysign(math.inf, a) if a else math.nan


@dataclass(frozen=True)
class Numbers:
    """A row of numbers, or one that meets each of a row; shapes and types of tensors are passed over."""

    items: tuple[float, ...]

    def each(self, function: Callable[..., float], *others: object) -> Numbers:
        rows = [self.items, *(other.items if isinstance(other, Numbers) else (other,) for other in others)]
        size = max(map(len, rows))
        columns = zip(*(row * (size // len(row)) for row in rows), strict=True)
        return Numbers(tuple(flushed(function(*column)) for column in columns))

    def __truediv__(self, other: object) -> Numbers:
        return self.each(quotient, other)

    def __rtruediv__(self, other: object) -> Numbers:
        return self.each(lambda a, b: quotient(b, a), other)

    def __mul__(self, other: object) -> Numbers:
        return self.each(lambda a, b: a * b, other)

    def __add__(self, other: object) -> Numbers:
        return self.each(lambda a, b: a + b, other)

    def __sub__(self, other: object) -> Numbers:
        return self.each(lambda a, b: a - b, other)

    def __rsub__(self, other: object) -> Numbers:
        return self.each(lambda a, b: b - a, other)

    def same(self, *_: object) -> Numbers:
        return self

    __getitem__ = to = same


def quantised(source: str, block: tuple[float, ...]) -> tuple[tuple[float, ...], float]:
    """Return the stored values and the E8M0 byte, by the kernel's statements from `amax = ` to its first store."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    body = next(node for node in nodes if node.name == "_kernel").body
    first = next(i for i, node in enumerate(body) if ast.unparse(node).startswith("amax = "))
    after = next(i for i, node in enumerate(body) if i > first and not isinstance(node, ast.Assign))
    scope = {
        "x": Numbers(block),
        "FP8_MAX": 448.0,
        "TINY": TINY,
        "xq_ptr": SimpleNamespace(dtype=SimpleNamespace(element_ty=None)),
        "tl": SimpleNamespace(
            abs=lambda x: x.each(abs),
            max=lambda x, axis: Numbers((max(x.items),)),  # noqa: ARG005 - Triton's names
            maximum=lambda x, bound: x.each(max, bound),
            minimum=lambda x, bound: x.each(min, bound),
            floor=lambda x: x.each(lambda a: a if math.isinf(a) else math.floor(a)),
            ceil=lambda x: x.each(lambda a: a if math.isinf(a) else math.ceil(a)),
            log2=lambda x: x.each(lambda a: math.log2(a) if a else -math.inf),
            exp2=lambda x: x.each(lambda a: 2.0**a),
        ),
    }
    exec(compile(ast.Module(body[first:after], []), UTILS, "exec"), scope)  # noqa: S102 - the release's own statements
    return scope["xq"].items, scope["sb"].items[0]


def main(root: Path) -> int:
    red = 0
    source = (root / UTILS).read_text(encoding="utf-8")
    for block in BLOCKS:
        values, byte = quantised(source, block)
        if tuple(value * 2.0 ** (byte - 127) for value in values) != block:
            red += 1
            print(f"red: {block} is stored as {values} with scale byte {byte}")
    if red:
        return 1
    print(f"green: {len(BLOCKS)} blocks, one of zeros among them, are stored without NaN")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
