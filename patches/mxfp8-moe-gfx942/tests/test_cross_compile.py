"""What the compiler makes of the kernels for GPUs that are not here: FP8 matrix opcodes, no spills, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")
TILES = [
    "gemm1 16x32x128 nw1",
    "gemm1 16x64x128 nw2",
    "gemm1 32x128x64 nw4",
    "gemm1 64x128x64 nw8",
    "gemm2 16x32x128 nw1",
    "gemm2 16x64x128 nw2",
    "gemm2 16x64x64 nw2",
    "gemm2 32x128x64 nw4",
    "gemm2 64x128x64 nw8",
]
QUANTISERS = ["_quantise_kernel", "_swiglu_oai_quantise_kernel"]
FOUR_WAVES = (
    128  # registers of a wave that lets four run on a SIMD of 512; under triton 3.6 16-row tiles take up to 148
)


@pytest.fixture(scope="module")
def compiled(
    tree: Path, reference: Any, release: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    path = tree / reference.KERNEL
    assert path.is_file()
    if release != "0.31.0":
        pytest.skip("the same file as in 0.31.0")
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    env["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    argv = [sys.executable, "-W", "ignore", str(SCRIPT), str(path)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.rule("P1.7-15")
@pytest.mark.parametrize("tile", TILES)
def test_every_tile_uses_the_fp8_units_of_gfx942_and_spills_nothing(compiled: dict[str, Any], tile: str) -> None:
    made = compiled[f"gfx942 fnuz {tile}"]
    wanted = "v_mfma_f32_16x16x32_fp8_fp8" if " 16x" in tile else "v_mfma_f32_32x32x16_fp8_fp8"
    assert made["matrix"] == [wanted]
    assert (made["vgpr_spill_count"], made["sgpr_spill_count"]) == (0, 0)
    assert made["vgpr_count"] <= FOUR_WAVES


def test_those_are_all_tiles_of_the_model(compiled: dict[str, Any]) -> None:
    assert [name for name in compiled if name.startswith("gfx942 fnuz gemm")] == [f"gfx942 fnuz {t}" for t in TILES]


@pytest.mark.rule("P1.7-19")
@pytest.mark.parametrize("dtype", ["fn", "fnuz"])
@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_quantisers_compile_without_spills(compiled: dict[str, Any], dtype: str, quantiser: str) -> None:
    made = compiled[f"gfx942 {dtype} {quantiser}"]
    assert (made["vgpr_spill_count"], made["sgpr_spill_count"]) == (0, 0)


@pytest.mark.parametrize("job", ["gfx942 fn", "gfx950 fnuz"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_the_other_fp8_is_upcast_to_fp16(compiled: dict[str, Any], job: str, size: str) -> None:
    """Without the normaliser gfx942, and with it gfx950, would not use its FP8 units."""
    opcodes = compiled[f"{job} {size}"]["matrix"]
    assert opcodes
    assert all(opcode.endswith("_f16") for opcode in opcodes)


@pytest.mark.parametrize("size", ["small", "large"])
def test_hopper_has_no_fnuz(compiled: dict[str, Any], size: str) -> None:
    made = compiled[f"sm90 fnuz {size}"]
    assert made["error"] == "CompilationError"
    assert "fp8e4b8 not supported" in made["why"]


@pytest.mark.parametrize(("size", "opcode"), [("small", "f32.f16.f16.f32"), ("large", "f32.e4m3.e4m3")])
def test_hopper_compiles_fn_and_large_tiles_for_its_fp8_units(compiled: dict[str, Any], size: str, opcode: str) -> None:
    (made,) = compiled[f"sm90 fn {size}"]["matrix"]
    assert made.endswith(opcode)
