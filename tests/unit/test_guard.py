"""The guard removes a run's containers however the run ends; the sweep takes orphans and nothing else."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import socketserver
import threading
import time
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kiln import errors, process
from kiln.engine import guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOURCE = str(Path(guard.__file__).parents[2])
# a run that starts its guard, says its session and waits to be killed
RUN = """
import json, sys, time
from kiln.engine import guard
with guard.guarded(sys.argv[1]) as session:
    print(json.dumps(dict(session.labels)), flush=True)
    time.sleep(60)
"""


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """As much of an engine as the guard uses: it lists and removes containers."""

    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.host = f"unix://{path}"
        self.containers: dict[str, dict[str, str]] = {}
        self.status = 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client is gone."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Engine

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def reply(self, status: int, body: Any = None) -> None:
        self.send_response(self.server.status or status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode() if body is not None else b"")

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        (label,) = json.loads(query["filters"][0])["label"]
        name, _, value = label.partition("=")
        found = [
            {"Id": key, "Names": [f"/{key}"], "Labels": labels}
            for key, labels in self.server.containers.items()
            if name in labels and value in {"", labels[name]}
        ]
        self.reply(200, found)

    def do_DELETE(self) -> None:
        gone = self.server.containers.pop(urllib.parse.urlsplit(self.path).path.rpartition("/")[2], None)
        self.reply(404 if gone is None else 204)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    server = Engine(tmp_path / "engine.sock")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def wait_for(true: Callable[[], bool], *, limit_s: float = 10) -> bool:
    end = time.monotonic() + limit_s
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return true()


@contextlib.contextmanager
def run_of(engine: Engine) -> Iterator[tuple[int, dict[str, str]]]:
    said = Path(engine.host.removeprefix("unix://")).with_name("run.log")
    env = {**os.environ, "PYTHONPATH": SOURCE}
    child = process.spawn(process.python("-c", RUN, engine.host), log=said, env=env)
    try:
        assert wait_for(lambda: said.read_text("utf-8").endswith("\n"))
        yield child.pid, json.loads(said.read_text("utf-8"))
    finally:
        child.kill()
        child.wait()


def labels(owner: str | None, *, in_s: float = 600) -> dict[str, str]:
    return {guard.SESSION: "s", guard.OWNER: owner or "", guard.DEADLINE: str(int(time.time() + in_s))}


def test_an_orderly_end_removes_the_session_and_nothing_else(engine: Engine) -> None:
    engine.containers["other"] = labels(guard.owner(os.getpid()))
    start = time.monotonic()
    with guard.guarded(engine.host) as session:
        engine.containers["mine"] = dict(session.labels)
    assert set(engine.containers) == {"other"}
    assert time.monotonic() - start < 20  # far less than waiting for the deadline


def test_a_failing_run_removes_its_containers(engine: Engine) -> None:
    def fail() -> None:
        with guard.guarded(engine.host) as session:
            engine.containers["mine"] = dict(session.labels)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert engine.containers == {}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_is_cleaned_up_after(engine: Engine, how: signal.Signals) -> None:
    with run_of(engine) as (pid, of_run):
        engine.containers |= {"mine": of_run, "other": labels(guard.owner(os.getpid()))}
        os.kill(pid, how)
        assert wait_for(lambda: "mine" not in engine.containers)
        # one that was being created at that moment
        engine.containers["late"] = of_run
        assert wait_for(lambda: "late" not in engine.containers)
    assert set(engine.containers) == {"other"}


def test_the_sweep_takes_orphans_only(engine: Engine) -> None:
    with run_of(engine) as (_, of_living):
        dead = of_living[guard.OWNER].rpartition(":")[0] + ":1"  # the same pid, another start
        world = of_living[guard.OWNER].rsplit(":", 2)[0]
        engine.containers = {
            "living": of_living,
            "mine": labels(guard.owner(os.getpid())),
            "elsewhere": labels("another-boot:pid:[1]:1:1"),
            "unknown": labels(""),
            "unrelated": {"a": "b"},
            "dead": labels(dead),
            "gone": labels(f"{world}:4194305:1"),
            "late": labels(of_living[guard.OWNER], in_s=-1),
            "no-deadline": {guard.SESSION: "s"},
        }
        assert set(guard.sweep(engine.host)) == {"dead", "gone", "late", "no-deadline"}
        assert set(engine.containers) == {"living", "mine", "elsewhere", "unknown", "unrelated"}


def test_an_owner_is_named_beyond_its_pid() -> None:
    mine = guard.owner(os.getpid())
    assert mine
    assert mine.rsplit(":", 2)[1] == str(os.getpid())
    assert guard.owner(4194305) is None


def test_an_engine_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(errors.Missing, match="does not answer"):
        guard.sweep(f"unix://{tmp_path}/none.sock")


def test_an_engine_that_refuses_is_named(engine: Engine) -> None:
    engine.status = 500
    with pytest.raises(errors.CommandFailed, match="cannot list containers: 500"):
        guard.sweep(engine.host)


def test_an_address_that_the_guard_cannot_use_is_refused_at_once() -> None:
    with pytest.raises(errors.BadInput, match="unix:// or tcp://"), guard.guarded("ssh://far"):
        pass
