"""The structural checks in a container of the real twin: green as it is, red when it is tampered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from kiln import plan
from kiln.engine import short_lived
from kiln.image import build
from kiln.report import Reporter
from kiln.smoke import run as smoke
from kiln.smoke import structural, target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import docker
    from docker.models.containers import Container
    from tests.container.conftest import Make

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.plan import Plan

SITE = "/usr/local/lib/python3.11/dist-packages"
TOPK = f"{SITE}/vllm/models/minimax_m3/amd/ops/index_topk.py"
PIN = "gfx942-index-topk-pin"


@pytest.fixture
def idle(client: docker.DockerClient, twin_image: str) -> Iterator[Container]:
    with short_lived.created(client, twin_image, entrypoint=["python3", "-c", "import time; time.sleep(300)"]) as made:
        made.start()
        yield made


@pytest.fixture
def patched(real_catalog: Catalog, twin_plan: Plan) -> structural.Patched:
    probe = real_catalog.root / "patches" / PIN / "probe.py"
    return structural.Patched(folder=build.patch_folder(real_catalog, twin_plan, twin=True), probes=((PIN, probe),))


def verdicts(client: docker.DockerClient, container: Container, patched: structural.Patched) -> dict[str, str]:
    found = structural.run(client, str(container.name), patched)
    return {check.name: check.findings[0].problem if check.findings else check.status for check in found}


def test_the_twin_is_green(client: docker.DockerClient, idle: Container, patched: structural.Patched) -> None:
    assert verdicts(client, idle, patched) == {"verify": "passed", f"probe {PIN}": "passed"}


def test_an_image_that_is_not_served_is_checked_and_the_rest_is_not_run(
    real_engine: Engine, twin_image: str, patched: structural.Patched
) -> None:
    found = smoke.look(real_engine, twin_image, patched, reporter=Reporter(quiet=True))
    assert found.image == twin_image
    assert [check.name for check in found.of("passed")] == ["verify", f"probe {PIN}"]
    assert {check.tier for check in found.of("not_run")} == {"structural", "serve", "replay", "device", "full"}
    assert not found.of("failed")


def test_what_cannot_import_vllm_is_red_and_not_left_out(
    lookalike: Make, edited: Callable[[Callable[[Path], None]], Catalog]
) -> None:
    """The lookalike's torch is no torch, so the probe that imports the patched vllm cannot run."""
    made = edited(lookalike(kind="cuda").adopt)
    found = target.run(made, plan.make(made, variant="bf16", arch="sm90"), twin=False, reporter=Reporter(quiet=True))
    assert [check.name for check in found.of("passed")] == ["verify"]
    assert [check.name for check in found.of("failed")] == [
        "probe m3-stream-first-delta",
        "probe m3-reasoning-prompt-marker",
    ]
    assert not found.passed


def test_a_tampered_file_turns_both_red(
    client: docker.DockerClient, idle: Container, patched: structural.Patched
) -> None:
    script = f"p = {TOPK!r}; s = open(p).read(); open(p, 'w').write(s.replace('num_warps=2', 'num_warps=8'))"
    assert idle.exec_run(["python3", "-c", script]).exit_code == 0
    found = verdicts(client, idle, patched)
    assert "TARGET_MODIFIED" in found["verify"]
    assert "red: _topk_index_kernel is tuned over 1 tiles" in found[f"probe {PIN}"]


def test_a_probe_that_cannot_run_is_red(
    client: docker.DockerClient, idle: Container, patched: structural.Patched
) -> None:
    assert idle.exec_run(["python3", "-c", f"import os; os.remove({TOPK!r})"]).exit_code == 0
    found = verdicts(client, idle, patched)
    assert found[f"probe {PIN}"] != "passed"
