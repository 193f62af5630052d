"""The shape of the package, measured on its syntax trees."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import process

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
MODULES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_bytes()) for path in SOURCE.rglob("*.py")}
MAX_MODULE, MAX_FUNCTION = 400, 50
# split, so that this file does not hold what it looks for
REGISTRIES = tuple(
    ".".join(parts)
    for parts in (("pypi", "org"), ("pythonhosted", "org"), ("registry", "npmjs", "org"), ("deb", "debian", "org"))
)


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield the full name of every module or name that a module imports, at any depth."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(name: str) -> set[str]:
    return {
        module
        for module, tree in MODULES.items()
        if any(found == name or found.startswith(f"{name}.") for found in imported(tree))
    }


def test_there_is_something_to_measure() -> None:
    assert len(MODULES) > 50
    assert "kiln/plan.py" in MODULES


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_is_short_and_opens_with_one_sentence(module: str) -> None:
    lines = (SOURCE / module).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_MODULE
    opening = (ast.get_docstring(MODULES[module]) or "").partition("\n\n")[0]
    assert opening, "no docstring"
    assert "\n" not in opening, "the opening sentence takes more than a line"
    assert opening.endswith("."), "the opening is no sentence"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_function_is_long(module: str) -> None:
    long = {
        node.name: length
        for node in ast.walk(MODULES[module])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    }
    assert not long


def test_one_module_starts_programs() -> None:
    assert importers("subprocess") == {"kiln/process.py"}
    for other in ("pty", "multiprocessing", "os.system", "os.popen", "asyncio.subprocess"):
        assert importers(other) == set()


def test_nothing_imports_the_tasks() -> None:
    others = {module for module in importers("kiln.tasks") if not module.startswith("kiln/tasks/")}
    assert others == {"kiln/__main__.py"}


def test_the_engine_needs_nothing_but_the_standard_library_and_unidiff() -> None:
    """It ships as one zipapp, to machines where nothing of Kiln is installed."""
    allowed = {*sys.stdlib_module_names, "unidiff"}
    foreign = {
        (module, name)
        for module, tree in MODULES.items()
        if module.startswith("kiln/patching/")
        for name in imported(tree)
        if name.partition(".")[0] not in allowed and name != "kiln.patching" and not name.startswith("kiln.patching.")
    }
    assert not foreign


def test_a_plan_imports_nothing_that_acts() -> None:
    for module in ("kiln/plan.py", "kiln/recipe/serve.py", "kiln/image/bake.py"):
        tops = {name.partition(".")[0] for name in imported(MODULES[module])}
        assert not tops & {"os", "io", "shutil", "socket", "requests", "tempfile", "docker"}


def test_no_tracked_file_names_a_package_registry() -> None:
    found = process.run(
        ("git", "grep", "--untracked", "-I", "-l", "-F", *(word for name in REGISTRIES for word in ("-e", name))),
        cwd=ROOT,
    )
    assert found == process.Result(code=1, stdout="", stderr="")
