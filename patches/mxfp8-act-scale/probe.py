"""Red when a quantiser for MXFP8 activations leaves the upper half of the format's range unused, or runs out of it.

Takes the statements of each quantiser from the release's source and computes with them on Python numbers: the largest
of a block's stored values must be above 224 and at most 448, stored value times scale the value itself, zeros zeros.

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
SWIGLU = "vllm/models/minimax_m3/amd/ops/swiglu_oai.py"
# (file, function, what is quantised, what is stored, its E8M0 byte)
QUANTISERS = (
    (UTILS, "_kernel", "x", "xq", "sb"),
    (UTILS, "_mxfp8_e4m3_quantize_torch", "x_blocked", "x_fp8", "scales_uint8"),
    (SWIGLU, "_swiglu_oai_quant_kernel", "act", "aq", "sb"),
)
E4M3_MAX, TINY = 448.0, 2.0**-126
LARGEST = [factor * 2.0**power for factor in (1.0, 1.5, 1.75, 1.7578125, 1.99) for power in (-20, -6, 0, 3, 8, 20)]


@dataclass(frozen=True)
class Numbers:
    """A row of numbers, or one that meets each of a row; shapes and types of tensors are passed over."""

    items: tuple[float, ...]

    def each(self, function: Callable[..., float], *others: object) -> Numbers:
        rows = [self.items, *(other.items if isinstance(other, Numbers) else (other,) for other in others)]
        size = max(map(len, rows))
        columns = zip(*(row * (size // len(row)) for row in rows), strict=True)
        return Numbers(tuple(function(*column) for column in columns))

    def __truediv__(self, other: object) -> Numbers:
        return self.each(lambda a, b: a / b, other)

    def __rtruediv__(self, other: object) -> Numbers:
        return self.each(lambda a, b: b / a, other)

    def __mul__(self, other: object) -> Numbers:
        return self.each(lambda a, b: a * b, other)

    def __add__(self, other: object) -> Numbers:
        return self.each(lambda a, b: a + b, other)

    def __sub__(self, other: object) -> Numbers:
        return self.each(lambda a, b: a - b, other)

    def __rsub__(self, other: object) -> Numbers:
        return self.each(lambda a, b: b - a, other)

    def abs(self) -> Numbers:
        return self.each(abs)

    def amax(self, **_: int) -> Numbers:
        return Numbers((max(self.items),))

    def clamp(self, min: float = -math.inf, max: float = math.inf) -> Numbers:  # noqa: A002 - torch's names
        return self.each(lambda a: sorted((min, a, max))[1])

    def same(self, *_: object) -> Numbers:
        return self

    __getitem__ = to = unsqueeze = view = same


def mathematics() -> dict[str, object]:
    """Return the names that the statements use: of Triton, of torch, and the constants."""
    both = {
        "floor": lambda x: x.each(math.floor),
        "ceil": lambda x: x.each(math.ceil),
        "log2": lambda x: x.each(math.log2),
        "exp2": lambda x: x.each(lambda a: 2.0**a),
        "float32": None,
        "uint8": None,
    }
    triton = SimpleNamespace(
        **both,
        abs=Numbers.abs,
        max=Numbers.amax,
        maximum=lambda x, bound: x.clamp(min=bound),
        minimum=lambda x, bound: x.clamp(max=bound),
    )
    torch = SimpleNamespace(**both, finfo=lambda _: SimpleNamespace(max=E4M3_MAX, tiny=TINY))
    pointer = SimpleNamespace(dtype=SimpleNamespace(element_ty=None))
    return {
        "tl": triton,
        "torch": torch,
        "FP8_MAX": E4M3_MAX,
        "TINY": TINY,
        "MXFP8_VALUE_DTYPE": None,
        "orig_shape": None,
        "xq_ptr": pointer,
        "aq_ptr": pointer,
    }


def statements(source: str, function: str) -> list[ast.stmt]:
    """Return what `function` does from its `amax = ` to the first statement that assigns nothing."""
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    body = next(node for node in nodes if node.name == function).body
    first = next(i for i, node in enumerate(body) if isinstance(node, ast.Assign) and "amax" in targets(node))
    after = next(i for i, node in enumerate(body) if i > first and not isinstance(node, ast.Assign))
    return body[first:after]


def targets(node: ast.Assign) -> list[str]:
    return [ast.unparse(target) for target in node.targets]


def complaints(body: list[ast.stmt], taken: str, stored: str, scale: str) -> list[str]:
    """Return what the quantiser does wrong."""
    code = compile(ast.Module(body, []), "quantiser", "exec")
    found = []
    for largest in (0.0, *LARGEST):
        block = Numbers((largest, -largest / 3, largest / 1000, 0.0))
        scope = mathematics() | {taken: block}
        exec(code, scope)  # noqa: S102 - the release's own statements
        values, (byte,) = scope[stored].items, scope[scale].items
        if tuple(value * 2.0 ** (byte - 127) for value in values) != block.items:
            found.append(f"{block.items} is stored as {values} with scale byte {byte}")
        elif largest and not E4M3_MAX / 2 < values[0] <= E4M3_MAX:
            found.append(f"the largest value {largest} is stored as {values[0]}, not in (224, 448]")
    return found


def main(root: Path) -> int:
    red = 0
    for file, function, *names in QUANTISERS:
        body = statements((root / file).read_text(encoding="utf-8"), function)
        for complaint in complaints(body, *names):
            red += 1
            print(f"red: {file} {function}: {complaint}")
    if red:
        return 1
    print(f"green: {len(QUANTISERS)} quantisers put the largest value of a block into (224, 448]")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
