"""What a server is started with, and in which phase its log shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiln import errors
from kiln.errors import Finding
from kiln.smoke import caches, run, server
from kiln.smoke.records import CheckResult, SmokeResult, Status

IMAGE = server.Image(digest="sha256:" + "ab" * 32, layers=("sha256:" + "cd" * 32,))
FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser", "minimax_m3", "--reasoning-parser", "minimax_m3")
LOG = """\
INFO [__init__.py:257] Automatically detected platform cpu.
(APIServer pid=7) INFO [api_server.py:1] vLLM server version 0.31.0, serving model /puppet
(EngineCore pid=9) INFO [core.py:2] Initializing a V1 LLM engine (v0.31.0) with config: model='/puppet'
(EngineCore pid=9) INFO [cpu_model_runner.py:3] Starting to load model /puppet...
(EngineCore pid=9) INFO [default_loader.py:4] Loading weights took 0.02 seconds
(EngineCore pid=9) INFO [kv_cache_utils.py:5] CPU KV cache size: 4,096 tokens, Maximum concurrency: 1.2x
(EngineCore pid=9) INFO [core.py:6] init engine (profile, create kv cache, warmup model) took 0.20 s
(APIServer pid=7) INFO [launcher.py:7] Starting vLLM server on http://0.0.0.0:8000
"""


def spec() -> server.ServeSpec:
    return server.twin_spec(IMAGE, Path("/p"), flags=FLAGS, env=(("VLLM_USE_X", "1"), ("VLLM_LOGGING_LEVEL", "2")))


def test_a_twin_is_served_from_one_process_with_its_caches() -> None:
    assert spec() == server.ServeSpec(
        image=IMAGE.digest,
        model=Path("/p"),
        flags=("--distributed-executor-backend=uni", "--enforce-eager", *FLAGS),
        env=(
            ("PYTHONPYCACHEPREFIX", "/pyc"),
            ("VLLM_CACHE_ROOT", "/vc"),
            ("VLLM_LOGGING_LEVEL", "2"),
            ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
            ("OMP_NUM_THREADS", "1"),
            ("VLLM_USE_X", "1"),
        ),
        volumes=caches.volumes(IMAGE.layers),
    )


def test_caches_are_named_by_the_files_of_the_image() -> None:
    layers = ("sha256:aa", "sha256:bb")
    assert [volume.path for volume in caches.volumes(layers)] == ["/pyc", "/vc"]
    assert caches.volumes(layers) == caches.volumes(list(layers))
    assert caches.volumes(layers) != caches.volumes(("sha256:aa", "sha256:cc"))


def test_the_serve_command() -> None:
    assert server.serve_argv(spec()) == (
        "/puppet",
        "--host=0.0.0.0",
        "--port=8000",
        "--served-model-name=kiln-puppet",
        "--distributed-executor-backend=uni",
        "--enforce-eager",
        *FLAGS,
    )


@pytest.mark.parametrize("flag", ["--port=1", "--host", "--served-model-name"])
def test_a_flag_of_our_own_is_refused(flag: str) -> None:
    with pytest.raises(errors.BadInput, match="sets this flag itself"):
        server.serve_argv(server.ServeSpec(image=IMAGE.digest, model=Path("/p"), flags=(flag, "x")))


@pytest.mark.parametrize(
    ("lines", "phase"),
    [
        (0, "starting the container"),
        (1, "importing"),
        (3, "importing"),
        (4, "loading weights"),
        (5, "profiling and KV cache"),
        (6, "profiling and KV cache"),
        (7, "starting the API"),
        (8, "starting the API"),
    ],
)
def test_phases_are_read_from_the_log(lines: int, phase: str) -> None:
    log = "".join(LOG.splitlines(keepends=True)[:lines])
    assert server.phase_of(log).name == phase


def result(*statuses: Status) -> SmokeResult:
    checks = tuple(CheckResult(tier="serve", name=f"c{i}", status=status) for i, status in enumerate(statuses))
    return SmokeResult(image=IMAGE.digest, puppet="", started="", seconds=0, checks=checks)


@pytest.mark.parametrize(
    ("statuses", "passed"),
    [
        (("passed",), True),
        (("passed", "not_run"), True),
        (("passed", "failed"), False),
        (("not_run",), False),
        ((), False),
    ],
)
def test_what_was_not_run_never_counts_as_passed(statuses: tuple[Status, ...], *, passed: bool) -> None:
    assert result(*statuses).passed is passed


def test_what_was_not_covered_is_said_with_its_reason() -> None:
    inputs = run.Inputs(image="i", family="minimax_m3", flags=(), not_served=("--block-size 128",))
    found = tuple(run._not_covered(inputs))
    assert [check.tier for check in found] == ["serve", "structural", "structural", "replay", "device", "full"]
    assert all(check.status == "not_run" and check.reason for check in found)
    assert found[0].reason == "without a GPU it was served without --block-size 128"


def test_findings_make_a_check_fail() -> None:
    assert run._served("a", 0.0, Finding(where="x", problem="y")).status == "failed"
    assert run._served("a", 0.0).status == "passed"
