"""Cross-compile the quantising kernel of a tree for gfx950, outside the interpreter and without vllm's imports.

Usage: python3 compile_cdna.py ROOT   (the folder that holds vllm/); prints the target.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

UTILS = "vllm/model_executor/layers/quantization/utils/mxfp8_utils.py"
POINTERS = {"x_ptr": "*bf16", "xq_ptr": "*fp8e4nv", "s_ptr": "*u8"}
CONSTANTS = {"BLOCK_M": 64, "FP8_MAX": 448.0, "TINY": 2.0**-126}


def main(root: Path) -> None:
    stand_ins = {"vllm": {}, "vllm.triton_utils": {"tl": tl, "triton": triton}, "vllm.utils": {}}
    stand_ins["vllm.utils.torch_utils"] = {"direct_register_custom_op": lambda **_: None}
    for name, content in stand_ins.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("mxfp8_utils", root / UTILS)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = module._mxfp8_quant_triton_kernel()  # noqa: SLF001
    names = kernel.arg_names
    constants = {(names.index(name),): value for name, value in CONSTANTS.items()}
    signature = {name: POINTERS.get(name, "constexpr" if name in CONSTANTS else "i32") for name in names}
    made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("hip", "gfx950", 64))
    assert "hsaco" in made.asm
    print(made.metadata.target.arch)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
