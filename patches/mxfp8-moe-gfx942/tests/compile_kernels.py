"""Compiles the kernels for GPUs that are not here, and says what became of them: python compile_kernels.py KERNEL.

Prints one JSON object: per job "error" (an exception's name), or "matrix" (the matrix opcodes in the assembly) and,
on AMD, registers and spills. Not under TRITON_INTERPRET=1, where nothing compiles.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import triton
from moe_reference import load, m3_tiles
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

GFX942, GFX950, SM90 = GPUTarget("hip", "gfx942", 64), GPUTarget("hip", "gfx950", 64), GPUTarget("cuda", 90, 32)
NAMES = {"fn": "fp8e4nv", "fnuz": "fp8e4b8"}
GEMM, QUANTISERS = "_grouped_gemm_kernel", ("_quantise_kernel", "_swiglu_oai_quantise_kernel")
QUANTISER_WARPS = 4  # Triton's default
COUNTS = ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
FLOATS = ("alpha", "beta", "limit")


def main() -> None:
    kernel = load(Path(sys.argv[1]))
    print(json.dumps({"triton": triton.__version__} | {name: report(*job) for name, job in jobs(kernel).items()}))


def jobs(kernel: Any) -> dict[str, tuple[ASTSource, GPUTarget, int]]:
    """Return per name what to compile, its target and its warps."""
    made = {}
    for which, tile in m3_tiles(kernel):
        name = f"gfx942 fnuz {which} {tile.block_m}x{tile.block_n}x{tile.block_k} nw{tile.num_warps}"
        made[name] = (gemm(kernel, "fnuz", tile, weighted=which == "gemm2"), GFX942, tile.num_warps)
    for dtype in NAMES:
        for quantiser in QUANTISERS:
            made[f"gfx942 {dtype} {quantiser}"] = (quantise(kernel, quantiser, dtype), GFX942, QUANTISER_WARPS)
    for size, tile in {"small": kernel.Tile(16, 64, 64, 2), "large": kernel.Tile(64, 128, 64, 8)}.items():
        for target, label, dtype in ((GFX942, "gfx942", "fn"), (GFX950, "gfx950", "fnuz"), (SM90, "sm90", "fn")):
            made[f"{label} {dtype} {size}"] = (gemm(kernel, dtype, tile, weighted=False), target, tile.num_warps)
        made[f"sm90 fnuz {size}"] = (gemm(kernel, "fnuz", tile, weighted=False), SM90, tile.num_warps)
    return made


def gemm(kernel: Any, dtype: str, tile: Any, *, weighted: bool) -> ASTSource:
    pointers = {
        "a_ptr": NAMES[dtype],
        "a_scale_ptr": "u8",
        "w_ptr": NAMES[dtype],
        "w_scale_ptr": "u8",
        "out_ptr": "bf16",
        "weights_ptr": "fp32" if weighted else "u8",
        "rows_ptr": "i32",
        "experts_ptr": "i32",
        "num_padded_ptr": "i32",
    }
    constants = {
        "ROW_DIVISOR": 1 if weighted else 4,
        "WEIGHTED": weighted,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
    }
    return source(getattr(kernel, GEMM), pointers, constants)


def quantise(kernel: Any, quantiser: str, dtype: str) -> ASTSource:
    private = vars(kernel)
    limits = private["_limits"]({"fn": kernel.FN, "fnuz": kernel.FNUZ}[dtype])
    constants = dict(zip(("MAX_EXPONENT", "MAX_MANTISSA", "MIN_EXPONENT"), limits, strict=True))
    constants["ROWS"] = private["_ROWS"]
    if "swiglu" in quantiser:
        constants["HAS_LIMIT"] = True
    return source(getattr(kernel, quantiser), {"x_ptr": "bf16", "q_ptr": NAMES[dtype], "s_ptr": "u8"}, constants)


def source(function: Any, pointers: dict[str, str], constants: dict[str, Any]) -> ASTSource:
    """Return what the JIT compiles for M3: pointers, N and K divisible by 16."""
    names = function.arg_names
    types = dict.fromkeys(names, "i32") | {arg: "fp32" for arg in FLOATS if arg in names}
    types |= {arg: f"*{element}" for arg, element in pointers.items()} | dict.fromkeys(constants, "constexpr")
    divisible = {(names.index(arg),): [["tt.divisibility", 16]] for arg in (*pointers, "N", "K") if arg in names}
    return ASTSource(function, types, {(names.index(arg),): value for arg, value in constants.items()}, divisible)


def report(code: ASTSource, target: GPUTarget, warps: int) -> dict[str, Any]:
    try:
        built = triton.compile(code, target=target, options={"num_warps": warps})
    except triton.CompilationError as error:
        return {"error": type(error).__name__, "why": str(error)[-200:]}
    if target == SM90:
        return {"matrix": opcodes(r"\b(?:wgmma\.mma_async|mma)\.sync\.\S+", built.asm["ptx"])}
    text = built.asm["amdgcn"]
    counts = {count: int(re.findall(rf"\.{count}:\s+(\d+)", text)[0]) for count in COUNTS}
    return {"matrix": opcodes(r"v_mfma_\w+", text)} | counts


def opcodes(pattern: str, text: str) -> list[str]:
    return sorted(set(re.findall(pattern, text)))


if __name__ == "__main__":
    main()
