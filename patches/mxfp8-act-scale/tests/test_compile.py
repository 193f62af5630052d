"""What the interpreter runs must also compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_both_kernels_compile_for_gfx950(tree: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"TRITON_INTERPRET", "PYTHONPATH"}}
    script = Path(__file__).with_name("compile_gfx950.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script), str(tree)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["_kernel", "gfx950", "_swiglu_oai_quant_kernel", "gfx950"]
