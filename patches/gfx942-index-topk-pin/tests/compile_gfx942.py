"""Cross-compile the autotuned kernels of an index top-k module for gfx942, if they have one tile, without vllm.

Usage: python3 compile_gfx942.py MODULE.py; prints {kernel: {tiles, compiled}} as JSON. Shapes are MiniMax-M3's: 16 of
the blocks of 128 keys are chosen.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import types
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TOPK = 16
TYPES = {"s_ptr": "*fp32", "ts_partial_ptr": "*fp32", "ti_ptr": "*i32", "ti_partial_ptr": "*i32"}
TYPES |= dict.fromkeys(("cu_seqlens", "cu_seqblocks_q", "prefix_lens", "seq_lens"), "*i32")
CONSTANTS: dict[str, Any] = {"sample_interval": 1, "block_size": 128, "init_blocks": 0, "local_blocks": 1}
CONSTANTS |= {"BLOCK_SIZE_T": TOPK, "MASK_INIT": False, "MASK_LOCAL": False, "USE_PDL": False, "topk": TOPK}


def load(path: Path) -> types.ModuleType:
    stand_ins: dict[str, dict[str, Any]] = {name: {} for name in ("vllm", "vllm.utils")}
    stand_ins["vllm.platforms"] = {"current_platform": None}
    stand_ins["vllm.triton_utils"] = {"tl": tl, "triton": triton}
    stand_ins["vllm.utils.math_utils"] = {"round_up": None}
    paged = ("PAGES_PER_SPARSE_BLOCK", "_write_sparse_block_table_row_from_values")  # for the decode kernels
    stand_ins["vllm.models.minimax_m3.amd.ops.sparse_pa"] = dict.fromkeys(paged)
    for name, content in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("index_topk", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(kernel: triton.JITFunction, tile: triton.Config) -> dict[str, Any]:
    known = {param.name for param in kernel.params if param.is_constexpr}
    constants = {name: value for name, value in (CONSTANTS | tile.kwargs).items() if name in known}
    assert set(constants) == known
    names = kernel.arg_names
    signature = {name: "constexpr" if name in known else TYPES.get(name, "i32") for name in names}
    made = triton.compile(
        ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}),
        target=GPUTarget("hip", "gfx942", 64),
        options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
    )
    assert "hsaco" in made.asm
    spilled = max(int(count) for count in re.findall(r"\.vgpr_spill_count:\s*(\d+)", made.asm["amdgcn"]))
    return {"arch": made.metadata.target.arch, "num_warps": made.metadata.num_warps, "spilled": spilled}


def main(path: Path) -> None:
    found = {}
    for name, item in vars(load(path)).items():
        tuner = item
        while tuner is not None and not isinstance(tuner, triton.runtime.Autotuner):
            tuner = getattr(tuner, "fn", None)
        if tuner is None:
            continue
        found[name] = {
            "tiles": [
                tile.kwargs | {"num_warps": tile.num_warps, "num_stages": tile.num_stages} for tile in tuner.configs
            ],
            "compiled": [compiled(tuner.fn, *tuner.configs)] if len(tuner.configs) == 1 else [],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
