"""Finds the Docker engine that the machine's own settings name: DOCKER_HOST, else the CLI's context."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kiln import errors, process
from kiln.engine.records import Engine

_ANSWER_S = 4
_NEEDED = (0, 19)
_VERSION = re.compile(r" v?(\d+)\.(\d+)\S*")
_UNIX = "unix://"
_NAMED_BY = ("DOCKER_HOST", "DOCKER_CONTEXT")
_BUILDX_HINT = (
    "install buildx for your Docker CLI (package docker-buildx or docker-buildx-plugin), check: docker buildx version"
)


def find() -> Engine | None:
    """Return the engine that answers, or nothing; one named by the environment that is silent is an error."""
    host = _host()
    version = _server_version(host)
    named = [f"{name}={os.environ[name]}" for name in _NAMED_BY if os.environ.get(name)]
    if version is None and named:
        raise errors.Missing(
            f"{named[0]}: the Docker engine at {host} does not answer",
            hint=f"start it, or unset {named[0].partition('=')[0]}; then ./inv engine.status",
        )
    if version is None:
        return None
    _require_buildx(host)
    return Engine(host=host, embedded=False, server_version=version)


def _require_buildx(host: str) -> None:
    """Raise Missing where buildx does not work, or cannot be told what a build may read (`bake --allow`)."""
    try:
        said = process.run(("docker", "buildx", "version"))
    except errors.Missing:
        said = None
    if said is None or said.code:
        raise errors.Missing(
            f"the Docker engine at {host} answers, but `docker buildx` does not work", hint=_BUILDX_HINT
        )
    found = _VERSION.search(said.stdout)
    if found and (int(found[1]), int(found[2])) < _NEEDED:
        needed = ".".join(map(str, _NEEDED))
        raise errors.Missing(
            f"the Docker engine at {host} answers, but its buildx is {found[0].strip()}, and {needed} is needed",
            hint=_BUILDX_HINT,
        )


def _host() -> str:
    named = os.environ.get("DOCKER_HOST")
    if named:
        return named
    import docker

    try:
        settings = docker.ContextAPI.kwargs_from_context()
    except docker.errors.DockerException as error:
        raise errors.Missing(f"the Docker CLI's context cannot be read: {error}", hint="docker context ls") from error
    return str(settings.get("base_url", ""))


def _server_version(host: str) -> str | None:
    if host.startswith(_UNIX) and not Path(host.removeprefix(_UNIX)).exists():
        return None
    import docker
    import requests

    try:
        client = docker.from_env(timeout=_ANSWER_S)
        try:
            return str(client.version()["Version"])
        finally:
            client.close()
    except (docker.errors.DockerException, requests.RequestException):
        return None
