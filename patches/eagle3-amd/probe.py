"""Red unless the AMD model of MiniMax-M3 declares EAGLE-3 and offers its hidden states around every layer.

Runs the model's forward, cut out of its file, over layers that only count.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

MODEL = "vllm/models/minimax_m3/amd/model.py"
DECLARED = {
    "MiniMaxM3Model": "EagleModelMixin",
    "MiniMaxM3SparseForCausalLM": "SupportsEagle3",
    "MiniMaxM3SparseForConditionalGeneration": "SupportsEagle3",
}
LAYERS, EMBEDDED = 3, 1000
STATES = [1000, 1011, 1022, 1033]  # hidden state plus residual before the first layer and after each
RANK = SimpleNamespace(is_first_rank=True, is_last_rank=True)


class Bare(ast.NodeTransformer):
    """Drops annotations and decorators, so that code runs without the names that they need."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list, node.returns = [], None
        self.generic_visit(node)
        return node

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        return ast.Assign([node.target], node.value) if node.value else ast.Pass()


class Decode:
    """Stands in for the decoder that some releases put before the layers; it leaves every layer to the model."""

    def plan(self, *_: object) -> None: ...

    def after_step(self, _: object, failure: Exception | None) -> None:
        if failure:
            raise failure


class Model:
    """Stands in for the model around its forward; keeps the states that a draft model wants, as vLLM's mixin does."""

    start_layer, end_layer = 0, LAYERS
    layers = (lambda _, hidden, residual: (hidden + 1, (residual or 0) + 10),) * LAYERS

    def __init__(self, wanted: tuple[int, ...], decode: Decode | None) -> None:
        self.wanted, self.specialized_decode = wanted, decode

    def embed_input_ids(self, _: object) -> int:
        return EMBEDDED

    def norm(self, hidden: int, residual: int) -> tuple[int, None]:
        return hidden + residual, None

    def _maybe_add_hidden_state(self, kept: list[int], index: int, hidden: int, residual: int | None) -> list[int]:
        if index in self.wanted:
            kept.append(hidden + (residual or 0))
        return kept


def function(model: ast.ClassDef, name: str) -> ast.FunctionDef:
    return next(node for node in model.body if isinstance(node, ast.FunctionDef) and node.name == name)


def run(forward: ast.FunctionDef, wanted: tuple[int, ...], decode: Decode | None) -> object:
    """Return what forward gives for one batch when a draft model wants these states."""
    names = {"get_pp_group": lambda: RANK, "IntermediateTensors": dict}
    bare = ast.fix_missing_locations(Bare().visit(forward))
    exec(compile(ast.Module([bare], []), MODEL, "exec"), names)  # noqa: S102 - the release's own code
    arguments = dict.fromkeys(list(inspect.signature(names[forward.name]).parameters)[1:])
    return names[forward.name](Model(wanted, decode), **arguments)


def faults(source: str) -> list[str]:
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    wrong = [
        f"{name} does not declare {base}"
        for name, base in DECLARED.items()
        if base not in {ast.unparse(each) for each in classes[name].bases}
    ]
    forward = function(classes["MiniMaxM3Model"], "forward")
    for decode in (None, Decode()) if "specialized_decode" in ast.unparse(forward) else (None,):
        for wanted in ((), (0,), (1, LAYERS), tuple(range(LAYERS + 1))):
            expected = (STATES[-1], [STATES[index] for index in wanted]) if wanted else STATES[-1]
            if (got := run(forward, wanted, decode)) != expected:
                where = " through its own decoder" if decode else ""
                wrong.append(f"forward{where} with states {wanted} wanted returns {got}, expected {expected}")
    return wrong


def main(root: Path) -> int:
    wrong = faults((root / MODEL).read_text(encoding="utf-8"))
    for fault in wrong:
        print(f"red: {fault}")
    if wrong:
        return 1
    print(f"green: {', '.join(DECLARED)} declare EAGLE-3, and forward offers the states around every layer")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
