"""The records of a Docker engine: where it answers, and how programs and the SDK reach it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from docker import DockerClient

_API_TIMEOUT_S = 600
# These would lead the Docker CLI away from the embedded engine's socket.
_MISLEADING = ("DOCKER_CONTEXT", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_API_VERSION", "BUILDX_BUILDER")


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A Docker engine that answers; `registry` is the embedded one's own, HOST:PORT on loopback.

    `buildx` begins the argv of a build. The embedded engine's is a program of its own and no plugin of a CLI, so that
    the person's own Docker configuration, and with it their credentials, holds for it too.
    """

    host: str
    embedded: bool
    server_version: str
    registry: str | None = None
    docker: str = "docker"
    buildx: tuple[str, ...] = ("docker", "buildx")
    buildx_config: Path | None = None
    tools: tuple[Path, ...] = ()

    @property
    def build_network(self) -> Literal["host", "default"]:
        """The network of RUN steps: the embedded engine's bridge has no way out of the machine."""
        return "host" if self.embedded else "default"

    def client(self) -> DockerClient:
        """Return a new SDK client of this engine; the caller closes it."""
        from docker import DockerClient

        if self.embedded:
            return DockerClient(base_url=self.host, timeout=_API_TIMEOUT_S)
        return DockerClient.from_env(timeout=_API_TIMEOUT_S)

    def environment(self, *, builder: str = "") -> dict[str, str]:
        """Return the whole environment in which `docker` and `buildx` reach this engine, or a builder of the person's.

        Which builder is theirs by default must not matter to the embedded engine, so buildx keeps its records there.
        """
        if not self.embedded:
            return dict(os.environ)
        inherited = {name: value for name, value in os.environ.items() if name not in _MISLEADING}
        path = (*map(str, self.tools), os.environ.get("PATH", os.defpath))
        own = {} if builder else {"BUILDX_CONFIG": str(self.buildx_config)}
        return {**inherited, "PATH": os.pathsep.join(path), "DOCKER_HOST": self.host, **own}


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What is there: the engine that would be used, and what of the embedded one lives under `home`."""

    home: Path
    engine: Engine | None
    embedded_pids: tuple[int, ...]
    unpacked: bool
    logs: tuple[Path, ...]
    problem: str = ""
