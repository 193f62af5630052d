"""Finds the Docker engine that the machine's own settings name: DOCKER_HOST, else the CLI's context."""

from __future__ import annotations

import os
from pathlib import Path

from kiln import errors, process
from kiln.engine.records import Engine

_ANSWER_S = 4
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
    if not process.succeeds(("docker", "buildx", "version")):
        raise errors.Missing(
            f"the Docker engine at {host} answers, but `docker buildx` does not work", hint=_BUILDX_HINT
        )
    return Engine(host=host, embedded=False, server_version=version)


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
