"""Red when the builder of the sparse attention schedule refuses a top-k index that is a slice.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

BUNDLED = "vllm/third_party/fmha_sm100/cute"
# file -> the function in which the index is checked
CHECKS = {"sparse_index_utils.py": "build_k2q_csr", "src/sm100/prepare_k2q_csr.py": "__call__"}
INDEX = "q2k_indices"


def demands(source: str, function: str) -> list[str]:
    """Return the conditions on the index under which the function raises, as source text."""
    return [
        ast.unparse(branch.test)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name == function
        for branch in ast.walk(node)
        if isinstance(branch, ast.If) and any(isinstance(step, ast.Raise) for step in branch.body)
        if INDEX in ast.unparse(branch.test)
    ]


def main(root: Path) -> int:
    found = {
        name: demands((root / BUNDLED / name).read_text(encoding="utf-8"), function)
        for name, function in CHECKS.items()
    }
    refusing = [
        f"{name}: {test}" for name, tests in found.items() for test in tests if f"{INDEX}.is_contiguous" in test
    ]
    for text in refusing:
        print(f"red: a slice is refused by {text}")
    strides = [test for tests in found.values() for test in tests if f"{INDEX}.stride(2) != 1" in test]
    if not strides:
        print("red: nothing looks at the strides of a slice before it is read")
    if refusing or not strides:
        return 1
    print(f"green: a slice is taken unless {strides[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
