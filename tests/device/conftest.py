"""The kernel that ships in the patch series, on a GPU: torch, triton and pytest are all that is needed.

    python -m pytest tests/device

The kernel is read out of the edition, so what runs here is what a release is patched with. NVIDIA has no FNUZ: there
the same source runs on FN operands. Without a GPU every test is skipped, and says so.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PATCH = Path(__file__).resolve().parents[2] / "patches" / "mxfp8-moe-gfx942"
EDITION = PATCH / "0.31.0.patch"
REFERENCE = PATCH / "tests" / "moe_reference.py"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a GPU")
    config.addinivalue_line("filterwarnings", "default")  # torch's and triton's warnings are no errors of ours


@pytest.fixture(scope="session")
def gpu() -> Any:
    """Return torch, with the GPU as its default device."""
    torch = pytest.importorskip("torch", reason="no GPU: torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    torch.set_default_device("cuda")
    return torch


@pytest.fixture(scope="session")
def reference(gpu: Any) -> Any:  # noqa: ARG001 - without torch it cannot be imported
    spec = importlib.util.spec_from_file_location("moe_reference", REFERENCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def kernel(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return reference.load_shipped(EDITION, tmp_path_factory.mktemp("kernel"))


@pytest.fixture(scope="session")
def dtype(gpu: Any) -> Any:
    """Return the FP8 of this GPU: FNUZ on gfx942, FN anywhere else."""
    arch = getattr(gpu.cuda.get_device_properties(0), "gcnArchName", "")
    return gpu.float8_e4m3fnuz if arch.startswith("gfx94") else gpu.float8_e4m3fn
