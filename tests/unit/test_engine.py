"""The embedded engine takes nothing of the machine that is in use, and ends nothing that is not its own."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import engine, errors, process
from kiln.engine import embedded, identity, machine, network, plan, tools
from kiln.engine.plan import Home, Network
from kiln.engine.records import Engine
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = Home(root=Path("/srv/kiln/engine"))
NETWORK = Network(block=IPv4Network("172.20.64.0/18"), port=5123)


def always(_: int) -> bool:
    return True


def test_daemon_json() -> None:
    run = f"/run/kiln-{HOME.id}"
    assert json.loads(plan.daemon_settings(HOME, NETWORK)) == {
        "bridge": f"kiln{HOME.id}",
        "data-root": "/srv/kiln/engine/data",
        "default-address-pools": [{"base": "172.20.96.0/19", "size": 24}],
        "exec-root": f"{run}/exec",
        "features": {"containerd-snapshotter": True},
        "init-path": "/srv/kiln/engine/root/usr/bin/tini-static",
        "insecure-registries": ["127.0.0.1:5123"],
        "ip": "127.0.0.1",
        "ip-forward": False,
        "ip-masq": False,
        "ip6tables": False,
        "iptables": False,
        "log-driver": "json-file",
        "log-opts": {"max-file": "2", "max-size": "20m"},
        "pidfile": f"{run}/docker.pid",
        "userland-proxy": True,
        "userland-proxy-path": "/srv/kiln/engine/root/usr/sbin/docker-proxy",
    }
    assert (NETWORK.gateway, str(NETWORK.bridge)) == ("172.20.64.1", "172.20.64.0/24")


def test_registry_yml() -> None:
    assert json.loads(plan.registry_settings(HOME, NETWORK)) == {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": "/srv/kiln/engine/registry"}, "delete": {"enabled": True}},
        "http": {"addr": "127.0.0.1:5123"},
    }


def test_argv() -> None:
    assert plan.dockerd_argv(HOME) == (
        "/srv/kiln/engine/root/usr/sbin/dockerd",
        "--config-file=/srv/kiln/engine/daemon.json",
        f"--host=unix:///run/kiln-{HOME.id}/docker.sock",
    )
    assert plan.registry_argv(HOME) == (
        "/srv/kiln/engine/root/usr/bin/docker-registry",
        "serve",
        "/srv/kiln/engine/registry.yml",
    )


def test_names_are_short_and_of_one_home(tmp_path: Path) -> None:
    deep = Home(root=tmp_path / ("d" * 200))
    assert len(str(deep.socket)) < 108
    assert len(deep.bridge) < 16
    assert deep.id != HOME.id


def test_the_block_avoids_every_route() -> None:
    first = network.choose(HOME.id, taken=(), is_free=always)
    second = network.choose(HOME.id, taken=(first.block,), is_free=always)
    inside = network.choose(HOME.id, taken=(IPv4Network(f"{first.gateway}/32"),), is_free=always)
    assert not first.block.overlaps(second.block)
    assert not first.block.overlaps(inside.block)
    crowded = network.choose(HOME.id, taken=(IPv4Network("172.16.0.0/12"),), is_free=always)
    assert crowded.block.subnet_of(IPv4Network("10.0.0.0/8"))


def test_what_an_engine_had_before_is_kept_while_it_is_free() -> None:
    assert network.choose(HOME.id, taken=(), is_free=always, before=NETWORK) == NETWORK
    other = network.choose(HOME.id, taken=(NETWORK.block,), is_free=lambda port: port != 5123, before=NETWORK)
    assert other.block != NETWORK.block
    assert other.port != NETWORK.port


def test_no_room() -> None:
    with pytest.raises(errors.Missing, match="no free private address block"):
        network.choose(HOME.id, taken=(IPv4Network("0.0.0.0/0"),), is_free=always)


def test_a_port_in_use_is_not_free() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        assert not network.is_free(server.server_address[1])


def test_routes_and_name_servers() -> None:
    table = (
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )
    assert network.parse_routes(table) == (IPv4Network("192.0.2.0/24"),)
    resolver = "search x.test\nnameserver 172.17.0.53\nnameserver fe80::1%eth0\n"
    assert network.parse_nameservers(resolver) == (IPv4Network("172.17.0.53/32"),)


def test_a_recycled_pid_is_neither_ours_nor_ended() -> None:
    child = process.spawn(("sleep", "60"))
    try:
        ours = identity.of(child.pid)
        assert ours is not None
        assert identity.alive(ours)
        for other in (
            dataclasses.replace(ours, started=ours.started - 1),
            dataclasses.replace(ours, boot="another boot"),
        ):
            assert not identity.alive(other)
            identity.end(other)
            assert child.poll() is None
        assert ours in identity.running((Path(f"/proc/{child.pid}/exe").readlink(),))
        identity.end(ours)
        assert not identity.alive(ours)  # a zombie is nobody
    finally:
        child.kill()
        child.wait()
    assert identity.of(child.pid) is None
    identity.end(ours)


def test_a_deaf_process_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = process.spawn(("sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"), log=log)
    while "deaf" not in log.read_text():
        time.sleep(0.01)
    ours = identity.of(child.pid)
    assert ours is not None
    identity.end(ours, term_s=0.1)
    assert child.wait() == -9


def test_state_is_read_back_and_a_torn_one_is_none(tmp_path: Path) -> None:
    home = Home(root=tmp_path)
    assert embedded.read_state(home) is None
    state = embedded.State(
        network=NETWORK,
        dockerd=identity.Identity(pid=7, started=8, boot="b"),
        server_version="28.5.2",
    )
    embedded.write_state(home, state)
    assert embedded.read_state(home) == state
    home.state.write_text(home.state.read_text()[:40])
    assert embedded.read_state(home) is None


def test_an_engine_of_another_boot_is_not_found(tmp_path: Path) -> None:
    now = identity.of(os.getpid())
    assert now is not None
    before = dataclasses.replace(now, boot="another boot")
    state = embedded.State(network=NETWORK, dockerd=before, registry=before, server_version="28.5.2")
    embedded.write_state(Home(root=tmp_path), state)
    assert embedded.find(tmp_path) is None


def test_mounts_below_an_engine() -> None:
    mountinfo = (
        "42 27 254:0 /a /srv/kiln/engine/data rw shared:1 - ext4 /dev/vda rw\n"
        "43 27 0:4 net:[1] /run/kiln-x\\040y/exec/netns/1 rw - nsfs nsfs rw\n"
        "44 27 254:0 / /srv/kiln/engines rw - ext4 /dev/vda rw\n"
    )
    assert embedded.mount_points((Path("/srv/kiln/engine"), Path("/run/kiln-x y")), mountinfo) == (
        Path("/srv/kiln/engine/data"),
        Path("/run/kiln-x y/exec/netns/1"),
    )


def test_the_environment_of_the_embedded_engine_leads_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/bin")
    monkeypatch.setenv("DOCKER_CONTEXT", "far")
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CONFIG", "/home/someone/.docker")
    monkeypatch.setenv("BUILDX_BUILDER", "far")
    own = Engine(
        host=HOME.host,
        embedded=True,
        server_version="28.5.2",
        registry=NETWORK.registry,
        docker=str(HOME.docker),
        buildx=(str(HOME.buildx),),
        buildx_config=HOME.buildx_config,
        tools=HOME.tools,
    )
    environment = own.environment()
    assert environment["PATH"] == "/srv/kiln/engine/root/usr/bin:/srv/kiln/engine/root/usr/sbin:/bin"
    assert environment["DOCKER_HOST"] == HOME.host
    assert environment["DOCKER_CONFIG"] == "/home/someone/.docker"
    assert environment["BUILDX_CONFIG"] == "/srv/kiln/engine/buildx"
    assert "BUILDX_BUILDER" not in environment
    assert "BUILDX_CONFIG" not in own.environment(builder="theirs")
    assert "DOCKER_CONTEXT" not in environment
    assert "DOCKER_TLS_VERIFY" not in environment
    assert own.build_network == "host"
    other = Engine(host="unix:///var/run/docker.sock", embedded=False, server_version="27.0")
    assert other.environment() == dict(os.environ)
    assert (other.build_network, other.registry, other.docker) == ("default", None, "docker")
    assert other.buildx == ("docker", "buildx")


def test_not_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(errors.Missing, match=r"needs Debian, Linux and root \(not root\)") as caught:
        engine.up(tmp_path / "engine", Reporter(io.StringIO()))
    assert "docker-buildx" in caught.value.hint
    assert not (tmp_path / "engine").exists()


def test_only_embedded_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILN_ENGINE", "podman")
    with pytest.raises(errors.BadInput, match="KILN_ENGINE=podman"):
        engine.find(tmp_path)


def test_down_where_nothing_is(tmp_path: Path) -> None:
    assert not engine.down(tmp_path / "engine", Reporter(io.StringIO()))
    assert not (tmp_path / "engine").exists()


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"Version": "27.1", "ApiVersion": "1.46"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...

    def address_string(self) -> str:
        return "unix"


@pytest.fixture
def engine_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "d.sock"
    with socketserver.ThreadingUnixStreamServer(str(path), _Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        monkeypatch.delenv("KILN_ENGINE", raising=False)
        yield path
        server.shutdown()
        thread.join()


def stub_docker(folder: Path, monkeypatch: pytest.MonkeyPatch, *, code: int, version: str = "v0.19.0") -> None:
    said = f"github.com/docker/buildx {version} 48d6a39"
    (folder / "docker").write_text(f"#!/bin/sh\necho {said}\nexit {code}\n")
    (folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_engine_that_answers_is_used(engine_socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_docker(tmp_path, monkeypatch, code=0)
    found = engine.find(tmp_path / "engine")
    assert found == Engine(host=f"unix://{engine_socket}", embedded=False, server_version="27.1")
    monkeypatch.setenv("KILN_ENGINE", "embedded")
    assert engine.find(tmp_path / "engine") is None


def test_an_engine_without_buildx_is_refused(
    engine_socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub_docker(tmp_path, monkeypatch, code=1)
    with pytest.raises(errors.Missing, match="`docker buildx` does not work") as caught:
        machine.find()
    assert "install buildx" in caught.value.hint
    assert str(engine_socket) in engine.status(tmp_path / "engine").problem


@pytest.mark.parametrize("version", ["v0.18.1", "0.9.0+ds1"])
@pytest.mark.usefixtures("engine_socket")
def test_a_buildx_that_is_too_old_is_refused(version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_docker(tmp_path, monkeypatch, code=0, version=version)
    with pytest.raises(errors.Missing) as caught:
        machine.find()
    assert f"its buildx is {version}, and 0.19 is needed" in caught.value.message


def test_a_named_engine_that_is_silent_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(errors.Missing, match="does not answer") as caught:
        engine.find(tmp_path / "engine")
    assert caught.value.hint.startswith("start it, or unset DOCKER_HOST")


def test_a_program_without_its_libraries_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "runc"
    broken.write_text("#!/bin/sh\necho libseccomp.so.2: cannot open shared object file >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(errors.Missing, match=r"runc .* libseccomp\.so\.2") as caught:
        tools._check_loads(broken)
    assert caught.value.hint == "apt-get install libseccomp2 libsystemd0"
