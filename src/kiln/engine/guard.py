"""Removes a run's containers whatever happens to the run, SIGKILL included, and what dead runs left behind.

A detached guard process waits at a pipe whose other end only the run holds: when the run dies in any way, the kernel
closes it and the guard removes every container with the run's label. Should the guard die too, the next run's
`sweep` removes containers whose owner is gone or whose deadline has passed. Standard library only: it starts at once.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import sys
import time
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln import errors, process
from kiln.engine import identity, unix_http

if TYPE_CHECKING:
    from collections.abc import Iterator

SESSION = "ai.kiln.session"
OWNER = "ai.kiln.owner"
DEADLINE = "ai.kiln.deadline"

_TIMEOUT_S = 60
_LATECOMERS_S = 3.0  # a container that was being created when the run died shows up late
_GIVE_UP_S = 60.0
_DONE = b"."


@dataclass(frozen=True, kw_only=True)
class Session:
    """One guarded run; containers that carry its labels are removed when it ends."""

    id: str
    labels: tuple[tuple[str, str], ...]


def owned(ttl_s: int) -> tuple[tuple[str, str], ...]:
    """Return the labels by which `sweep` knows a container of a run that is gone, or past its deadline."""
    return (
        (SESSION, uuid.uuid4().hex),
        (OWNER, owner(os.getpid()) or ""),
        (DEADLINE, str(int(time.time()) + ttl_s)),
    )


@contextlib.contextmanager
def guarded(host: str, *, ttl_s: int = 1800) -> Iterator[Session]:
    """Start the guard, yield the session, and remove everything that carries its label at the end."""
    _connection(host).close()  # an address that the guard cannot use is said now
    labels = owned(ttl_s)
    session = dict(labels)[SESSION]
    reading, writing = os.pipe()
    try:
        guard = process.spawn(
            process.python("-m", __name__, host, session, str(reading)), env=_environment(), pass_fds=(reading,)
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    try:
        yield Session(id=session, labels=labels)
    finally:
        try:
            remove(host, session)
            # not reached when the engine fails: the guard then sees a closed pipe and tries on its own
            with contextlib.suppress(BrokenPipeError):
                os.write(writing, _DONE)
        finally:
            os.close(writing)
        guard.wait()


def sweep(host: str) -> tuple[str, ...]:
    """Remove containers of dead runs and return their names."""
    orphans = [found for found in _containers(host, SESSION) if _is_orphan(found.get("Labels") or {})]
    for found in orphans:
        _remove(host, found["Id"])
    return tuple(str(found["Names"][0]).lstrip("/") for found in orphans)


def remove(host: str, session: str) -> int:
    """Remove the containers of one session and return how many there were."""
    found = _containers(host, f"{SESSION}={session}")
    for container in found:
        _remove(host, container["Id"])
    return len(found)


def owner(pid: int) -> str | None:
    """Return what names a living process beyond doubt: machine boot, process namespace, pid and start time."""
    found = identity.of(pid)
    return f"{_world()}:{found.pid}:{found.started}" if found else None


def _world() -> str:
    return f"{identity.boot()}:{Path('/proc/self/ns/pid').readlink().name}"


def _is_orphan(labels: dict[str, str]) -> bool:
    deadline = labels.get(DEADLINE, "0")
    if not deadline.isdecimal() or time.time() > int(deadline):
        return True
    name = labels.get(OWNER, "")
    parts = name.rsplit(":", 2)
    # of another machine or process namespace nothing is known here: there the deadline alone decides
    return len(parts) == len(("world", "pid", "start")) and parts[0] == _world() and owner(int(parts[1])) != name


def _environment() -> dict[str, str]:
    """Return this environment with Kiln importable, however this process came to import it."""
    source = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))}


def _connection(host: str) -> http.client.HTTPConnection:
    url = urllib.parse.urlsplit(host)
    if url.scheme == "unix":
        return unix_http.Connection(Path(url.path), timeout=_TIMEOUT_S)
    if url.scheme in {"tcp", "http", "https"} and url.hostname:
        certificates = os.environ.get("DOCKER_CERT_PATH")
        if url.scheme == "https" or os.environ.get("DOCKER_TLS_VERIFY"):
            context = ssl.create_default_context(cafile=f"{certificates}/ca.pem" if certificates else None)
            if certificates:
                context.load_cert_chain(f"{certificates}/cert.pem", f"{certificates}/key.pem")
            return http.client.HTTPSConnection(url.hostname, url.port or 2376, timeout=_TIMEOUT_S, context=context)
        return http.client.HTTPConnection(url.hostname, url.port or 2375, timeout=_TIMEOUT_S)
    raise errors.BadInput(f"DOCKER_HOST {host!r}: containers of a run need an engine at unix:// or tcp://")


def _ask(host: str, method: str, path: str) -> tuple[int, bytes]:
    with contextlib.closing(_connection(host)) as connection:
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise errors.Missing(f"{host}: the engine does not answer: {error}") from error


def _containers(host: str, label: str) -> list[dict[str, Any]]:
    wanted = urllib.parse.quote(json.dumps({"label": [label]}))
    status, body = _ask(host, "GET", f"/containers/json?all=1&filters={wanted}")
    if status != http.HTTPStatus.OK:
        raise errors.CommandFailed(f"{host}: cannot list containers: {status} {body.decode(errors='replace')}")
    found: list[dict[str, Any]] = json.loads(body)
    return found


def _remove(host: str, container: str) -> None:
    status, body = _ask(host, "DELETE", f"/containers/{container}?force=1&v=1")
    # gone already, or somebody else is removing it
    if status not in {http.HTTPStatus.NO_CONTENT, http.HTTPStatus.NOT_FOUND, http.HTTPStatus.CONFLICT}:
        raise errors.CommandFailed(f"{host}: cannot remove {container}: {body.decode(errors='replace')}")


def _watch(host: str, session: str, pipe: int) -> None:
    """Wait for the run's end; unless it said that all is removed, remove what it left."""
    if os.read(pipe, 1) == _DONE:
        return
    start = time.monotonic()
    quiet_since = start
    while time.monotonic() - start < _GIVE_UP_S and time.monotonic() - quiet_since < _LATECOMERS_S:
        try:
            if remove(host, session):
                quiet_since = time.monotonic()
        except errors.KilnError:
            quiet_since = time.monotonic()
        time.sleep(0.2)


if __name__ == "__main__":
    _watch(sys.argv[1], sys.argv[2], int(sys.argv[3]))
