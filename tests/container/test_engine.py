"""A second embedded engine beside whatever runs here: it works, and when it ends nothing of it is left."""

from __future__ import annotations

import http.client
import http.server
import io
import json
import os
import shutil
import signal
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import engine, process
from kiln.engine import embedded, identity
from kiln.engine.plan import Home
from kiln.image import base
from kiln.report import Reporter
from kiln.upstream import debian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.engine import Engine
    from kiln.image.base import Layout

CHECKOUT = Path(__file__).parents[2]
QUIET = Reporter(io.StringIO())
SERVE = ["python3", "-m", "http.server", "8000"]
WAIT_S = 10.0


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Return a function that lists every firewall rule, by an nft that is unpacked and not installed."""
    place = tmp_path_factory.mktemp("nft")
    debs = debian.fetch(("nftables",), suite="bookworm", dest=place / "debs", dependencies=True)
    debian.unpack([deb for deb in debs if deb.name != "libc6"], place / "root")
    libraries = sorted({str(found.parent) for found in (place / "root").rglob("*.so.*")})

    def listed() -> str:
        env = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(libraries)}
        legacy = Path("/proc/net/ip_tables_names")
        tables = legacy.read_text() if legacy.exists() else ""
        return process.ask((str(place / "root/usr/sbin/nft"), "list", "ruleset"), env=env) + tables

    return listed


def footprint() -> dict[str, object]:
    """What an engine could change of the machine and must not."""
    folders = ("/etc", "/usr", "/opt", "/var/lib")
    return {
        "interfaces": {name for _, name in socket.if_nameindex() if not name.startswith("veth")},
        "forward": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
        "folders": {folder: sorted(Path(folder).iterdir()) for folder in folders},
    }


def seeded(home: Path) -> Path:
    """Start from the packages that the checkout's own engine has, where it has them."""
    cached = CHECKOUT / ".kiln" / "engine" / "debs"
    if cached.is_dir():
        shutil.copytree(cached, home / "debs")
    return home


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return base.ensure("base", tmp_path_factory.mktemp("cache"), QUIET)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = seeded(tmp_path_factory.mktemp("engine"))
    yield place
    engine.down(place, QUIET, purge=True)


@pytest.fixture
def own(home: Path) -> Engine:
    return engine.up(home, QUIET)


@pytest.fixture(scope="module")
def dockerfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("context")
    (folder / "Dockerfile").write_text("FROM base\n")
    return folder


def build(own: Engine, root: Layout, context: Path, *options: str) -> str:
    tag = f"{own.registry}/kiln/base:1"
    argv = (
        *own.buildx,
        "build",
        "--progress=plain",
        "--provenance=false",
        f"--network={own.build_network}",
        f"--build-context=base={root.context}",
        f"--tag={tag}",
        *options,
        str(context),
    )
    process.show(argv, line=lambda _: None, env=own.environment())
    return tag


def ask_until_up(port: int) -> int:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
                connection.request("GET", "/")
                return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_it_answers_and_is_found(own: Engine, home: Path) -> None:
    assert embedded.find(home) == own
    assert engine.status(home).embedded_pids
    with closing(own.client()) as client:
        assert client.version()["Version"] == own.server_version
    assert "buildx" in process.ask((*own.buildx, "version"), env=own.environment())


def test_a_published_port_is_reachable_on_loopback(own: Engine, root: Layout, dockerfile: Path) -> None:
    tag = build(own, root, dockerfile, "--load")
    with closing(own.client()) as client:
        container = client.containers.run(tag, SERVE, detach=True, init=True, ports={"8000/tcp": None})
        try:
            container.reload()
            (published,) = container.attrs["NetworkSettings"]["Ports"]["8000/tcp"]
            assert published["HostIp"] == "127.0.0.1"
            assert ask_until_up(int(published["HostPort"])) == 200
        finally:
            container.remove(force=True)


def test_containers_of_one_network_reach_each_other(own: Engine, root: Layout, dockerfile: Path) -> None:
    tag = build(own, root, dockerfile, "--load")
    with closing(own.client()) as client:
        network = client.networks.create("kiln-test")
        try:
            server = client.containers.run(tag, SERVE, detach=True, init=True, network=network.name)
            server.reload()
            address = server.attrs["NetworkSettings"]["Networks"][network.name]["IPAddress"]
            ask = (
                "import time, urllib.request as u\n"
                "for _ in range(100):\n"
                f"  try: print(u.urlopen('http://{address}:8000').status); break\n"
                "  except OSError: time.sleep(0.05)\n"
            )
            said = client.containers.run(tag, ["python3", "-c", ask], remove=True, network=network.name)
            assert said == b"200\n"
        finally:
            server.remove(force=True)
            network.remove()


def test_a_build_step_has_the_machine_s_network(own: Engine, root: Layout, tmp_path: Path) -> None:
    class Greeting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeting) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        (tmp_path / "Dockerfile").write_text(
            f"FROM base\nRUN python3 -c \"import urllib.request as u; u.urlopen('{url}')\"\n"
        )
        try:
            build(own, root, tmp_path)
        finally:
            server.shutdown()
            thread.join()


def test_the_registry_gives_the_digest_back(own: Engine, root: Layout, dockerfile: Path, tmp_path: Path) -> None:
    record = tmp_path / "metadata.json"
    build(own, root, dockerfile, "--push", f"--metadata-file={record}")
    digest = json.loads(record.read_text())["containerimage.digest"]
    assert own.registry is not None
    accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
    with closing(http.client.HTTPConnection(own.registry)) as connection:
        connection.request("HEAD", "/v2/kiln/base/manifests/1", headers=accept)
        answer = connection.getresponse()
        answer.read()
        assert answer.headers["Docker-Content-Digest"] == digest
        connection.request("DELETE", f"/v2/kiln/base/manifests/{digest}")
        assert connection.getresponse().status == 202


def test_up_repairs_an_engine_that_was_killed(own: Engine, home: Path) -> None:
    state = embedded.read_state(Home(root=home))
    assert state is not None
    assert state.dockerd is not None
    os.kill(state.dockerd.pid, signal.SIGKILL)
    deadline = time.monotonic() + WAIT_S
    while identity.alive(state.dockerd) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert embedded.find(home) is None
    again = engine.up(home, QUIET)
    assert (again.host, again.registry) == (own.host, own.registry)
    with closing(again.client()) as client:
        assert client.ping()


@pytest.mark.parametrize("killed", [False, True], ids=["in-order", "after-kill"])
def test_down_leaves_nothing(
    root: Layout, dockerfile: Path, tmp_path: Path, rules: Callable[[], str], *, killed: bool
) -> None:
    before, rules_before = footprint(), rules()
    place = seeded(tmp_path / "engine")
    layout = Home(root=place)
    own = engine.up(place, QUIET)
    tag = build(own, root, dockerfile, "--load")
    with closing(own.client()) as client:
        network = client.networks.create("kiln-test")
        ports = {"8000/tcp": None}
        container = client.containers.run(tag, SERVE, detach=True, init=True, ports=ports, network=network.name)
        container.reload()
        inside = identity.of(container.attrs["State"]["Pid"])
    assert inside is not None
    assert footprint()["interfaces"] != before["interfaces"]
    assert rules() == rules_before
    if killed:
        for daemon in identity.running(layout.daemons[:2]):
            os.kill(daemon.pid, signal.SIGKILL)

    assert engine.down(place, QUIET)
    assert not identity.alive(inside)
    assert identity.running(layout.daemons) == ()
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    assert str(layout.run) not in Path("/proc/self/mountinfo").read_text()
    assert not layout.run.exists()
    assert (footprint(), rules()) == (before, rules_before)
    assert layout.docker.exists()
    assert not engine.down(place, QUIET, purge=True)
    assert not place.exists()


def test_a_start_that_is_interrupted_leaves_nothing(home: Path, tmp_path: Path) -> None:
    engine.down(home, QUIET)
    layout = Home(root=home.resolve())
    script = tmp_path / "up.py"
    script.write_text(
        "import io, sys\nfrom pathlib import Path\nfrom kiln import engine\nfrom kiln.engine import embedded\n"
        "from kiln.report import Reporter\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "embedded._await = stop\n"
        "engine.up(Path(sys.argv[1]), Reporter(io.StringIO()))\n"
    )
    source = {**os.environ, "PYTHONPATH": str(CHECKOUT / "src")}
    result = process.run(process.python(str(script), str(home)), env=source)
    assert "KeyboardInterrupt" in result.stderr
    assert identity.running(layout.daemons) == ()
    assert layout.bridge not in {name for _, name in socket.if_nameindex()}
