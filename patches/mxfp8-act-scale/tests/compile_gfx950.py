"""Cross-compile the two quantising kernels of a tree for gfx950, outside the interpreter and without vllm's imports.

Usage: python3 compile_gfx950.py ROOT   (the folder that holds vllm/); prints each kernel's target.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from types import ModuleType

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

UTILS = "vllm/model_executor/layers/quantization/utils/mxfp8_utils.py"
SWIGLU = "vllm/models/minimax_m3/amd/ops/swiglu_oai.py"
POINTERS = {"x_ptr": "*bf16", "g_ptr": "*bf16", "xq_ptr": "*fp8e4nv", "aq_ptr": "*fp8e4nv", "s_ptr": "*u8"}
POINTERS |= {"as_ptr": "*u8", "alpha": "fp32", "beta": "fp32", "limit": "fp32"}
CONSTANTS = {"BLOCK_M": 64, "HAS_LIMIT": True, "FP8_MAX": 448.0, "TINY": 2.0**-126}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def target(kernel: triton.JITFunction) -> str:
    names = kernel.arg_names
    constants = {(names.index(name),): value for name, value in CONSTANTS.items() if name in names}
    signature = {name: POINTERS.get(name, "constexpr" if name in CONSTANTS else "i32") for name in names}
    made = triton.compile(
        ASTSource(kernel, signature, constants), target=GPUTarget("hip", "gfx950", 64), options={"num_warps": 4}
    )
    assert "hsaco" in made.asm
    return f"{kernel.__name__} {made.metadata.target.arch}"


def main(root: Path) -> None:
    stand_ins = {"vllm": {}, "vllm.triton_utils": {"tl": tl, "triton": triton}, "vllm.utils": {}}
    stand_ins["vllm.utils.torch_utils"] = {"direct_register_custom_op": lambda **_: None}
    for name, content in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    print(target(load(root / UTILS)._mxfp8_quant_triton_kernel()))  # noqa: SLF001
    print(target(load(root / SWIGLU)._swiglu_oai_quant_kernel))  # noqa: SLF001


if __name__ == "__main__":
    main(Path(sys.argv[1]))
