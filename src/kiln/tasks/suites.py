"""Runs linters and test suites as child processes, their output shown as it comes."""

from __future__ import annotations

import os

from kiln import catalog, process

_LINTERS = (
    ("ruff", "format", "--check"),
    ("ruff", "check"),
    ("mypy",),
    ("mypy", "tests/unit", "tests/network", "tests/conftest.py", "benchmarks"),
    ("mypy", "tests/container"),  # by itself: it has modules of the same names as tests/unit
)
_OURS = frozenset({"KILN_ROOT", "KILN_PROGRAM"})  # what ./inv sets for this very run


def check() -> None:
    """Raise CommandFailed at the first tool that is not content."""
    for argv in (*_LINTERS, ("pytest", "tests/unit", "--quiet")):
        _run(argv)


def test() -> None:
    """Run check, then all tests; pytest's last lines name what could not run on this machine, and why."""
    for argv in _LINTERS:
        _run(argv)
    _run(("pytest", "tests/unit", "tests/network", "tests/container", "--durations=10"))


def _run(argv: tuple[str, ...]) -> None:
    print(f"$ {' '.join(argv)}", flush=True)
    root = catalog.find_root()
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    process.show(process.python("-m", *argv), line=_show, cwd=root, env=inherited | {"PYTHONUNBUFFERED": "1"})


def _show(line: str) -> None:
    print(line, flush=True)
