"""Where the embedded engine keeps things, and the exact settings and arguments of its two daemons."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ipaddress import IPv4Network

# sid's engine needs only an old libc; sid's runc does not, so runc and the registry come from a stable release.
PACKAGES = (
    ("sid", ("docker.io", "docker-cli", "docker-buildx", "containerd")),
    ("bookworm", ("runc", "docker-registry", "tini")),
)
_DAEMONS = (
    "sbin/dockerd",
    "bin/containerd",
    "bin/containerd-shim-runc-v2",
    "sbin/runc",
    "sbin/docker-proxy",
    "bin/docker-registry",
)
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """The folders of one embedded engine: all under `root`, but for the sockets, whose paths must be short."""

    root: Path

    @property
    def id(self) -> str:
        return hashlib.sha256(str(self.root.resolve()).encode()).hexdigest()[:8]

    @property
    def run(self) -> Path:
        return Path("/run") / f"kiln-{self.id}"

    @property
    def socket(self) -> Path:
        return self.run / "docker.sock"

    @property
    def host(self) -> str:
        return f"unix://{self.socket}"

    @property
    def exec_root(self) -> Path:
        return self.run / "exec"

    @property
    def runc_root(self) -> Path:
        return self.exec_root / "runtime-runc" / "moby"

    @property
    def bridge(self) -> str:
        return f"kiln{self.id}"

    @property
    def unpacked(self) -> Path:
        return self.root / "root"

    @property
    def tools(self) -> tuple[Path, ...]:
        return (self.unpacked / "usr/bin", self.unpacked / "usr/sbin")

    @property
    def docker(self) -> Path:
        return self.unpacked / "usr/bin/docker"

    @property
    def buildx(self) -> Path:
        return self.unpacked / "usr/libexec/docker/cli-plugins/docker-buildx"

    @property
    def buildx_config(self) -> Path:
        return self.root / "buildx"

    @property
    def daemon_json(self) -> Path:
        return self.root / "daemon.json"

    @property
    def registry_yml(self) -> Path:
        return self.root / "registry.yml"

    @property
    def dockerd_log(self) -> Path:
        return self.root / "log/dockerd.log"

    @property
    def registry_log(self) -> Path:
        return self.root / "log/registry.log"

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def daemons(self) -> tuple[Path, ...]:
        """The programs that run for the engine, and not for a user as the CLI does."""
        return tuple(self.unpacked / "usr" / program for program in _DAEMONS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What one engine takes of the machine: a block of private addresses, and a loopback port for its registry."""

    block: IPv4Network
    port: int

    @property
    def bridge(self) -> IPv4Network:
        return next(self.block.subnets(new_prefix=24))

    @property
    def pool(self) -> IPv4Network:
        return tuple(self.block.subnets(prefixlen_diff=1))[1]

    @property
    def gateway(self) -> str:
        return f"{next(self.bridge.hosts())}"

    @property
    def registry(self) -> str:
        return f"{_LOOPBACK}:{self.port}"


def daemon_settings(home: Home, network: Network) -> str:
    """Return dockerd's configuration file.

    Its own bridge and no rules at all: with `"iptables": true` a second dockerd rewrites the chains of the first,
    with `"bridge": "none"` it deletes docker0, whoever owns it. Published ports go through docker-proxy.
    """
    settings = {
        "bridge": home.bridge,
        "data-root": str(home.root / "data"),
        "default-address-pools": [{"base": str(network.pool), "size": 24}],
        "exec-root": str(home.exec_root),
        "features": {"containerd-snapshotter": True},
        "init-path": str(home.unpacked / "usr/bin/tini-static"),
        "insecure-registries": [network.registry],
        "ip": _LOOPBACK,
        "ip-forward": False,
        "ip-masq": False,
        "ip6tables": False,
        "iptables": False,
        "log-driver": "json-file",
        "log-opts": {"max-file": "2", "max-size": "20m"},
        "pidfile": str(home.run / "docker.pid"),
        "userland-proxy": True,
        "userland-proxy-path": str(home.unpacked / "usr/sbin/docker-proxy"),
    }
    return json.dumps(settings, indent=2) + "\n"


def registry_settings(home: Home, network: Network) -> str:
    """Return the registry's configuration file; JSON is YAML."""
    settings = {
        "version": 0.1,
        "log": {"level": "warn", "accesslog": {"disabled": True}},
        "storage": {
            "filesystem": {"rootdirectory": str(home.root / "registry")},
            "delete": {"enabled": True},
        },
        "http": {"addr": network.registry},
    }
    return json.dumps(settings, indent=2) + "\n"


def dockerd_argv(home: Home) -> tuple[str, ...]:
    return (
        str(home.unpacked / "usr/sbin/dockerd"),
        f"--config-file={home.daemon_json}",
        f"--host={home.host}",
    )


def registry_argv(home: Home) -> tuple[str, ...]:
    return (str(home.unpacked / "usr/bin/docker-registry"), "serve", str(home.registry_yml))
