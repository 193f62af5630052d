"""Runs a patch's tests on a release's files: with the patch all must pass, without it each rule must fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

RELEASED = os.environ.get("KILN_STATE") in {"released", "pristine"}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "rule(number): what the patch is for; must fail on the release's own files")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not RELEASED:
        return
    rules = [item for item in items if item.get_closest_marker("rule")]
    config.hook.pytest_deselected(items=[item for item in items if item not in rules])
    for item in rules:
        item.add_marker(pytest.mark.xfail(strict=True, reason="a rule that holds without the patch proves nothing"))
    items[:] = rules


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if file := os.environ.get("KILN_RESULTS"):
        kinds = ("passed", "failed", "error", "skipped", "xfailed")
        found = {kind: [_told(item) for item in terminalreporter.getreports(kind)] for kind in kinds}
        unready = (item for item in terminalreporter.getreports("xfailed") if item.when == "setup")
        found["unready"] = [_told(item) for item in unready]
        Path(file).write_text(json.dumps(found), encoding="utf-8")


def _told(item: pytest.TestReport) -> str:
    reason = item.longrepr[2] if item.outcome == "skipped" and isinstance(item.longrepr, tuple) else ""
    return f"{item.nodeid}: {reason}" if reason else item.nodeid


@pytest.fixture(scope="session")
def tree() -> Path:
    """Return the folder that holds the vllm/ under test; it is first on the module search path."""
    return Path(os.environ["KILN_TREE"])


@pytest.fixture(scope="session")
def release() -> str:
    return os.environ["KILN_RELEASE"]
