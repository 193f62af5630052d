"""The smoke gate on the real image: green as it is, red without the patch, red with the wrong parser."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from kiln import errors, plan, process
from kiln.report import Reporter
from kiln.smoke import target

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import docker

    from kiln.catalog import Catalog
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

QUIET = Reporter(quiet=True)
PATCH = "m3-stream-first-delta"
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"


@pytest.mark.usefixtures("twin")
def test_the_twin_is_green(real_catalog: Catalog, twin_plan: Plan, client: docker.DockerClient) -> None:
    result = target.run(real_catalog, twin_plan, twin=True, reporter=QUIET)
    assert [(check.name, check.findings) for check in result.of("failed")] == []
    assert {"chat", "chat-stream", "tool-call-stream", "first-delta", "first-delta-call", "bad-requests"} <= {
        check.name for check in result.of("passed")
    }
    assert {"verify", f"probe {PATCH}", "probe gfx942-index-topk-pin"} <= {check.name for check in result.of("passed")}
    assert {check.tier for check in result.of("not_run")} == {"serve", "structural", "replay", "device", "full"}
    assert not client.containers.list(all=True, filters={"label": "ai.kiln.session"})


def test_without_the_patch_the_first_delta_is_lost(
    edited: Callable[[Callable[[Path], None]], Catalog], twin_plan: Plan
) -> None:
    chain = [use.id for use in twin_plan.series if any(path == PARSER for path, _, _ in use.files)]

    def unlist(root: Path) -> None:
        """PATCH goes, and with it what is made on top of it."""
        series = root / "patches/series.yaml"
        for patch_id in chain[chain.index(PATCH) :]:
            shutil.rmtree(root / "patches" / patch_id)
            series.write_text(series.read_text().replace(f"  - {patch_id}\n", ""))

    unpatched = edited(unlist)
    result = target.run(unpatched, plan.make(unpatched, variant="mxfp8", arch="gfx942"), twin=True, reporter=QUIET)
    assert not result.passed
    assert {"first-delta", "first-delta-call"} <= {check.name for check in result.of("failed")}
    assert {"chat", "chat-stream", "tool-call"} <= {check.name for check in result.of("passed")}


def test_a_wrong_reasoning_parser_ends_with_exit_code_7(
    edited: Callable[[Callable[[Path], None]], Catalog], twin: Receipt
) -> None:
    def swap(root: Path) -> None:
        recipe = root / "recipes/MiniMaxAI/MiniMax-M3.yaml"
        recipe.write_text(
            recipe.read_text().replace("[--reasoning-parser, minimax_m3]", "[--reasoning-parser, minimax_m2]")
        )

    wrong = edited(swap)
    environment = os.environ | {"KILN_HOME": str(wrong.state)}
    argv = process.python("-m", "kiln", "smoke", "--variant", "mxfp8", "--arch", "gfx942", "--twin", "--json")
    ended = process.run(argv, cwd=wrong.root, env=environment)
    assert ended.code == errors.SmokeFailed.exit_code, ended.stderr
    shown = json.loads(ended.stdout)
    assert shown["passed"] is False
    evidence = json.loads((wrong.output(twin.target) / "twin-evidence.json").read_text())
    assert evidence["image_digest"] == shown["image"]
    assert evidence["passed"] is False
