"""On a real engine: a server that dies or lingers is named and removed, however its run ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import errors, process, report
from kiln.engine import guard
from kiln.smoke import checks, puppet, run, server, transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.engine import Engine

SOURCE = str(Path(guard.__file__).parents[2])
FLAGS = ("--enable-auto-tool-choice", "--tool-call-parser=minimax_m3", "--reasoning-parser=minimax_m3")
# a run of its own, which starts a container and then waits to be killed
RUN = """
import sys, time
import docker
from kiln.engine import guard
with guard.guarded(sys.argv[1]) as session:
    docker.DockerClient(base_url=sys.argv[1]).containers.run(
        sys.argv[2], ["-c", "import time; time.sleep(300)"], entrypoint="python3", detach=True, init=True,
        labels=dict(session.labels),
    )
    print(session.id, flush=True)
    time.sleep(300)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    family = transcript.load("minimax_m3")
    return puppet.build(tmp_path_factory.mktemp("puppet"), family.cut(), family.added_tokens).path


@pytest.fixture(scope="module")
def image(real_engine: Engine, twin_image: str) -> server.Image:
    return server.find_image(real_engine, twin_image)


@pytest.fixture
def session(real_engine: Engine) -> Iterator[guard.Session]:
    with guard.guarded(real_engine.host) as guarded:
        yield guarded
    assert containers(real_engine, guarded.id) == 0


def containers(real_engine: Engine, session: str) -> int:
    with contextlib.closing(real_engine.client()) as client:
        return len(client.containers.list(all=True, filters={"label": f"{guard.SESSION}={session}"}))


def wait_for(true: Callable[[], bool], *, limit_s: float) -> bool:
    end = time.monotonic() + limit_s
    while not true() and time.monotonic() < end:
        time.sleep(0.1)
    return true()


@contextlib.contextmanager
def run_of(host: str, image: str, folder: Path) -> Iterator[tuple[int, str]]:
    said = folder / "run.log"
    argv = process.python("-c", RUN, host, image)
    child = process.spawn(argv, log=said, env={**os.environ, "PYTHONPATH": SOURCE})
    try:
        assert wait_for(lambda: said.read_text("utf-8").endswith("\n"), limit_s=60), said.read_text("utf-8")
        yield child.pid, said.read_text("utf-8").strip()
    finally:
        child.kill()
        child.wait()


def test_an_unknown_flag_is_shown_with_the_servers_own_words(
    real_engine: Engine, image: server.Image, model: Path, session: guard.Session
) -> None:
    spec = server.twin_spec(image, model, flags=("--no-such-flag",))
    start = time.monotonic()
    with (
        pytest.raises(errors.SmokeFailed, match=r"exit code [1-9]") as caught,
        server.serving(real_engine, spec, session),
    ):
        pass
    assert "--no-such-flag" in caught.value.message
    assert "unrecognized arguments" in caught.value.message
    assert time.monotonic() - start < 60
    assert containers(real_engine, session.id) == 0


def test_a_slow_phase_is_named(real_engine: Engine, image: server.Image, model: Path, session: guard.Session) -> None:
    impatient = (server.Phase(name="starting the container", begins=r"\A", limit_s=0.5),)
    with (
        pytest.raises(errors.SmokeFailed, match=r"still starting the container after 0\.5 s"),
        server.serving(real_engine, server.twin_spec(image, model), session, phases=impatient),
    ):
        pass
    assert containers(real_engine, session.id) == 0


def test_an_image_that_is_not_there_is_missing(real_engine: Engine) -> None:
    with pytest.raises(errors.Missing, match="does not hold this image"):
        server.find_image(real_engine, "kiln-no-such-image:1")


def test_a_killed_run_leaves_no_container(real_engine: Engine, image: server.Image, tmp_path: Path) -> None:
    with run_of(real_engine.host, image.digest, tmp_path) as (pid, session):
        assert containers(real_engine, session) == 1
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: containers(real_engine, session) == 0, limit_s=15)


def test_the_sweep_removes_an_orphan_but_not_a_live_run(
    real_engine: Engine, image: server.Image, tmp_path: Path
) -> None:
    with (
        run_of(real_engine.host, image.digest, tmp_path) as (_, living),
        contextlib.closing(real_engine.client()) as client,
    ):
        mine = guard.owner(os.getpid()) or ""
        labels = {guard.SESSION: "orphan", guard.OWNER: f"{mine}9", guard.DEADLINE: str(int(time.time()) + 600)}
        orphan = client.containers.create(image.digest, labels=labels)
        try:
            assert orphan.name in guard.sweep(real_engine.host)
            assert containers(real_engine, "orphan") == 0
            assert containers(real_engine, living) == 1
        finally:
            guard.remove(real_engine.host, "orphan")


def test_the_twin_serves_what_its_puppet_means(real_engine: Engine, twin_image: str, tmp_path: Path) -> None:
    inputs = run.Inputs(image=twin_image, family="minimax_m3", flags=FLAGS)
    result = run.run(real_engine, inputs, cache=tmp_path, reporter=report.Reporter())
    assert {check.name: check.findings for check in result.of("failed")} == {}
    assert {check.name for check in result.of("passed")} >= {check.name for check in checks.SERVE}
    assert {check.tier for check in result.of("not_run")} == {"structural", "replay", "device", "full"}


def test_a_server_that_ends_by_itself_is_found(
    real_engine: Engine, image: server.Image, model: Path, session: guard.Session
) -> None:
    with server.serving(real_engine, server.twin_spec(image, model, flags=FLAGS), session) as running:
        running.container.kill()
        running.container.wait()
        with pytest.raises(errors.SmokeFailed, match="had ended by itself, exit code 137"):
            running.stop()


def test_a_server_that_does_not_start_is_a_failed_check(real_engine: Engine, twin_image: str, tmp_path: Path) -> None:
    inputs = run.Inputs(image=twin_image, family="minimax_m3", flags=(FLAGS[0], "--tool-call-parser=nope"))
    result = run.run(real_engine, inputs, cache=tmp_path, reporter=report.Reporter())
    assert not result.passed
    assert [check.name for check in result.of("failed")] == ["start"]
    assert result.of("passed") == ()
    assert len(result.of("not_run")) > len(checks.SERVE)
