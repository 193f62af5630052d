"""Brings up, finds and ends the embedded engine: a private dockerd and registry that outlive the command."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import http.client
import json
import shutil
import time
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, process
from kiln.engine import identity, network, plan, tools, unix_http
from kiln.engine.identity import Identity
from kiln.engine.plan import Home, Network
from kiln.engine.records import Engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.report import Reporter

_START_S = 60.0
_POLL_S = 0.05
_ANSWER_S = 3.0
_LOG_TAIL = 25
# Empty folders that containerd and dockerd make outside the paths they are given.
_TRACES = ("/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd", "/run/docker/plugins", "/run/docker")
_MACHINE_LOCK = Path("/run/kiln.lock")
# How this process reaps the daemons that it started itself; one started by another is reaped by init.
_REAPERS: dict[int, Callable[[], int]] = {}


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What one `up` started; `server_version` is empty until the engine answered."""

    network: Network
    dockerd: Identity | None = None
    registry: Identity | None = None
    server_version: str = ""


def find(root: Path) -> Engine | None:
    """Return the engine under `root` if its daemons are the ones it started and answer; changes nothing."""
    home = Home(root=root.resolve())
    state = read_state(home)
    if state is None or not state.server_version or state.dockerd is None or state.registry is None:
        return None
    if not (identity.alive(state.dockerd) and identity.alive(state.registry)):
        return None
    if _server_version(home.socket) is None or not _registry_answers(state.network):
        return None
    return _engine(home, state)


def up(root: Path, reporter: Reporter) -> Engine:
    """Return the running engine of `root`, started if it is not; whatever an interrupted run left is cleared first."""
    if engine := find(root):
        return engine
    tools.require()
    home = Home(root=root.resolve())
    with _locked(home, reporter):
        if engine := find(root):
            return engine
        tools.ensure(home, reporter)
        with reporter.step("start the engine"):
            _clear(home)
            return _start(home)


def down(root: Path, reporter: Reporter, *, purge: bool = False) -> bool:
    """End what `up` started; keep the packages, images and registry unless `purge`. Say whether anything ran."""
    home = Home(root=root.resolve())
    if not home.root.exists():
        return False
    with _locked(home, reporter):
        ran = bool(pids(home))
        with reporter.step("end the engine"):
            _clear(home)
        if purge:
            shutil.rmtree(home.root)
    return ran


def pids(home: Home) -> tuple[int, ...]:
    """Return every process of this engine."""
    return tuple(sorted(found.pid for found in identity.running(home.daemons)))


def read_state(home: Home) -> State | None:
    """Read what the last `up` wrote; a file that is not whole counts as none."""
    try:
        record = json.loads(home.state.read_text())
        return State(
            network=Network(block=IPv4Network(record["block"]), port=record["port"]),
            dockerd=_read_identity(record["dockerd"]),
            registry=_read_identity(record["registry"]),
            server_version=record["server_version"],
        )
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def write_state(home: Home, state: State) -> None:
    record = {
        "block": str(state.network.block),
        "port": state.network.port,
        "dockerd": dataclasses.asdict(state.dockerd) if state.dockerd else None,
        "registry": dataclasses.asdict(state.registry) if state.registry else None,
        "server_version": state.server_version,
    }
    fresh = home.state.with_suffix(".new")
    fresh.write_text(json.dumps(record, indent=2) + "\n")
    fresh.rename(home.state)


def _read_identity(record: dict[str, int | str] | None) -> Identity | None:
    if record is None:
        return None
    return Identity(pid=int(record["pid"]), started=int(record["started"]), boot=str(record["boot"]))


def _engine(home: Home, state: State) -> Engine:
    return Engine(
        host=home.host,
        embedded=True,
        server_version=state.server_version,
        registry=state.network.registry,
        docker=str(home.docker),
        buildx=(str(home.buildx),),
        buildx_config=home.buildx_config,
        tools=home.tools,
    )


def _start(home: Home) -> Engine:
    absent = tuple(path for path in map(Path, _TRACES) if not path.exists())
    with contextlib.ExitStack() as undo:
        undo.callback(_clear, home)
        state = _take_network(home)
        for folder in (home.run, home.dockerd_log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        home.run.chmod(0o700)
        home.daemon_json.write_text(plan.daemon_settings(home, state.network))
        home.registry_yml.write_text(plan.registry_settings(home, state.network))
        environment = _engine(home, state).environment()
        registry = _spawn(plan.registry_argv(home), log=home.registry_log, environment=environment)
        state = dataclasses.replace(state, registry=registry)
        write_state(home, state)
        dockerd = _spawn(plan.dockerd_argv(home), log=home.dockerd_log, environment=environment)
        state = dataclasses.replace(state, dockerd=dockerd)
        write_state(home, state)
        _await(registry, home.registry_log, lambda: _registry_answers(state.network))
        _await(dockerd, home.dockerd_log, lambda: _server_version(home.socket) is not None)
        state = dataclasses.replace(state, server_version=_server_version(home.socket) or "")
        write_state(home, state)
        undo.pop_all()
    _sweep(absent)
    return _engine(home, state)


def _take_network(home: Home) -> State:
    """Choose addresses and make the bridge; a lock for the whole machine keeps two engines from the same choice."""
    before = read_state(home)
    with _MACHINE_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        chosen = network.choose(
            home.id,
            taken=network.taken(),
            is_free=network.is_free,
            before=before.network if before else None,
        )
        state = State(network=chosen)
        write_state(home, state)
        network.add_bridge(home.bridge, chosen)
    return state


def _spawn(argv: tuple[str, ...], *, log: Path, environment: dict[str, str]) -> Identity:
    child = process.spawn(argv, log=log, env=environment)
    _REAPERS[child.pid] = child.wait
    found = identity.of(child.pid)
    if found is None:
        raise _failed_start(Path(argv[0]).name, log)
    return found


def _await(daemon: Identity, log: Path, answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_S
    while not answers():
        if not identity.alive(daemon) or time.monotonic() > deadline:
            raise _failed_start(log.stem, log)
        time.sleep(_POLL_S)


def _failed_start(name: str, log: Path) -> errors.CommandFailed:
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_TAIL:]) if log.exists() else ""
    return errors.CommandFailed(
        f"{name} of the embedded engine did not start; the end of {log}:\n{tail}",
        hint="./inv engine.down, then ./inv engine.up",
    )


def _server_version(path: Path) -> str | None:
    try:
        with contextlib.closing(unix_http.Connection(path, timeout=_ANSWER_S)) as connection:
            connection.request("GET", "/version")
            answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    version = answer.get("Version")
    return version if isinstance(version, str) else None


def _registry_answers(taken: Network) -> bool:
    try:
        with contextlib.closing(http.client.HTTPConnection(taken.registry, timeout=_ANSWER_S)) as connection:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False


def _sweep(absent: tuple[Path, ...]) -> None:
    """Remove folders that were absent before the start and are empty after it."""
    for path in absent:
        with contextlib.suppress(OSError):
            path.rmdir()


def _clear(home: Home) -> None:
    """Bring the machine back to where nothing of this engine runs, is mounted or has an interface."""
    state = read_state(home)
    for started in (state.dockerd, state.registry) if state else ():
        if started:
            identity.end(started)
            _reap(started)
    _end_orphans(home)
    for left in identity.running(home.daemons):
        identity.end(left)
        _reap(left)
    _unmount(home)
    for name in network.bridges(home.bridge, state.network.block if state else None):
        network.remove_bridge(name)
    shutil.rmtree(home.run, ignore_errors=True)
    if state:
        write_state(home, State(network=state.network))


def _reap(ended: Identity) -> None:
    wait = _REAPERS.pop(ended.pid, None)
    if wait:
        wait()


def _end_orphans(home: Home) -> None:
    """End containers that a killed dockerd left running; one that ended in order leaves none."""
    runc = home.unpacked / "usr/sbin/runc"
    if not (home.runc_root.is_dir() and runc.exists()):
        return
    for container in sorted(home.runc_root.iterdir()):
        process.run((str(runc), f"--root={home.runc_root}", "delete", "--force", container.name))


def _unmount(home: Home) -> None:
    """Unmount what dockerd leaves mounted, the deepest first."""
    points = mount_points((home.root, home.run), Path("/proc/self/mountinfo").read_text())
    for point in sorted(points, key=lambda path: len(path.parts), reverse=True):
        process.ask(("umount", "--lazy", str(point)))


def mount_points(under: tuple[Path, ...], mountinfo: str) -> tuple[Path, ...]:
    """Read /proc/self/mountinfo (proc(5)): the mounts below the folders `under`."""
    points = []
    for line in mountinfo.splitlines():
        escaped = line.split()[4]
        point = Path(escaped.encode("latin-1", "backslashreplace").decode("unicode_escape"))
        if any(point.is_relative_to(folder) for folder in under):
            points.append(point)
    return tuple(points)


@contextlib.contextmanager
def _locked(home: Home, reporter: Reporter) -> Iterator[None]:
    home.root.mkdir(parents=True, exist_ok=True)
    with (home.root / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with reporter.step("wait for another run that starts or ends the engine"):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
