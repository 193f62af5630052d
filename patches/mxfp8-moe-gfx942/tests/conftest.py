"""The kernel file of the tree, loaded by itself, and what the tests of it measure with."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType


def beside(name: str) -> ModuleType:
    """Import a module of this folder, which no import finds in this import mode."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    return beside("moe_reference")


@pytest.fixture(scope="session")
def moe_layer() -> ModuleType:
    return beside("moe_layer")


@pytest.fixture
def experts(moe_layer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Yield vLLM's MoE on a faked gfx942, as in a fresh process: nothing logged, no setting read."""
    with moe_layer.fresh_experts(monkeypatch) as made:
        yield made


@pytest.fixture(scope="session")
def kernel(tree: Path, reference: ModuleType) -> Any:
    return reference.load(tree / reference.KERNEL)


@pytest.fixture
def once(kernel: Any, release: str) -> Any:
    """Return the kernel file, for a slow test: in one release only, as every edition creates the same file."""
    if release != "0.31.0":
        pytest.skip("the same file as in 0.31.0")
    return kernel
