"""Red unless every autotuned kernel of the index top-k module has the one tile that runs on gfx942.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

CANDIDATES = ("vllm/models/minimax_m3/amd/ops/index_topk.py", "vllm/models/minimax_m3/common/ops/index_topk.py")
TILE = "triton.Config({'BLOCK_SIZE_K': 64}, num_warps=2, num_stages=2)"


def tiles(source: str) -> dict[str, list[str]]:
    """Return the autotuner's configurations of each kernel, as source text."""
    return {
        function.name: [ast.unparse(config) for config in keyword.value.elts]
        for function in ast.walk(ast.parse(source))
        if isinstance(function, ast.FunctionDef)
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "triton.autotune"
        for keyword in decorator.keywords
        if keyword.arg == "configs" and isinstance(keyword.value, ast.List)
    }


def main(root: Path) -> int:
    path = next(root / name for name in CANDIDATES if (root / name).is_file())
    found = tiles(path.read_text(encoding="utf-8"))
    wrong = {kernel: configs for kernel, configs in found.items() if configs != [TILE]}
    for kernel, configs in wrong.items():
        print(f"red: {kernel} is tuned over {len(configs)} tiles: {', '.join(configs)}")
    if not found:
        print("red: no autotuned kernel found")
    if wrong or not found:
        return 1
    print(f"green: {', '.join(found)} run with one tile")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
