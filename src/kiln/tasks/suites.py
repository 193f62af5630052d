"""Runs linters and test suites as child processes, their output shown as it comes."""

from __future__ import annotations

import os

from kiln import catalog, errors, process
from kiln.proof import cases, prove
from kiln.report import Reporter
from kiln.tasks.show_proof import show_proofs

_LINTERS = (
    ("ruff", "format", "--check"),
    ("ruff", "check"),
    ("mypy",),
    ("mypy", "--python-version=3.10", "images/install"),  # as old as a base's Python may be
    ("mypy", "tests/unit", "tests/network", "tests/conftest.py", "benchmarks"),
    ("mypy", "tests/container"),  # by itself: it has modules of the same names as tests/unit
    ("mypy", "tests/device"),
    ("mypy", "tests/browser"),
)
_OURS = frozenset({"KILN_ROOT", "KILN_PROGRAM"})  # what ./inv sets for this very run


def check() -> None:
    """Raise CommandFailed at the first tool that is not content."""
    for argv in (*_LINTERS, ("pytest", "tests/unit", "--quiet")):
        _run(argv)


def test() -> None:
    """Run check, then all tests, then prove every patch on every release whose files it changes in another way.

    The last lines name what could not run here, and why.
    """
    for argv in _LINTERS:
        _run(argv)
    _run(("pytest", "tests/device", "--quiet"))  # first: a run of which everything is skipped must not come last
    _run(("pytest", "tests/unit", "tests/network", "tests/container", "tests/browser", "--durations=10"))
    loaded = catalog.load(catalog.find_root())
    try:
        show_proofs(prove.run(loaded, cases.distinct(loaded, cases.plan(loaded)), Reporter()), json=False)
    except errors.Missing as error:
        print(f"NOT RUN patch.prove: {error.message}")


def _run(argv: tuple[str, ...]) -> None:
    print(f"$ {' '.join(argv)}", flush=True)
    root = catalog.find_root()
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    process.show(process.python("-m", *argv), line=_show, cwd=root, env=inherited | {"PYTHONUNBUFFERED": "1"})


def _show(line: str) -> None:
    print(line, flush=True)
