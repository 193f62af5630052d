"""Renders a deployment as the argv of `docker run`."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from kiln.deploy.records import API_KEY, CACHE, CAPABILITIES, STOP_S, TOKEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.deploy.records import Deployment


def render(made: Deployment, *, docker: str = "docker") -> tuple[str, ...]:
    """Return the whole command: nothing is shared with the host but GPUs, the cache and one port.

    The root file system stays writable: vLLM, Triton and AITER compile at the first request, AITER into its package.
    """
    program, *words = made.command
    return (docker, "run", "--rm", *_options(made), f"--entrypoint={program}", made.image, *words)


def text(argv: tuple[str, ...]) -> str:
    """Return a command as a person types it, one option a line."""
    lines = [""]
    for word in argv:
        # what follows `--flag=value` is no value of it
        if word.startswith("-") or (lines[-1].startswith("-") and "=" in lines[-1]):
            lines.append(shlex.quote(word))
        else:
            lines[-1] = f"{lines[-1]} {shlex.quote(word)}".lstrip()
    return " \\\n  ".join(lines)


def _options(made: Deployment) -> Iterator[str]:
    yield f"--name={made.name}"
    yield f"--pull={made.pull}"
    yield "--init"
    yield f"--stop-timeout={STOP_S}"
    if not made.devices:
        yield f"--gpus={made.gpus}"
    yield from (f"--device={device}" for device in made.devices)
    yield from (f"--group-add={group}" for group in made.groups)
    yield f"--cap-drop={CAPABILITIES}"
    yield from (f"--cap-add={capability}" for capability in made.cap_add)
    yield "--security-opt=no-new-privileges"
    if made.seccomp == "unconfined":
        yield "--security-opt=seccomp=unconfined"
    yield f"--shm-size={made.shm_gib}g"
    yield f"--ulimit=memlock={made.memlock}"
    yield f"--publish={made.address}:{made.port}:{made.server_port}"
    yield f"--mount=type={'bind' if made.host_folder else 'volume'},source={made.cache},target={CACHE}"
    yield from (f"--env={name}={value}" for name, value in made.env)
    yield from (f"--env={name}" for name in (TOKEN, API_KEY))
