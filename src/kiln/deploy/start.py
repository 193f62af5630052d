"""Starts the docker form of a deployment on this terminal, after what it needs was looked for."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING

from docker.errors import ImageNotFound, NotFound

from kiln import engine as engines
from kiln import errors, process
from kiln.deploy import argv, notes
from kiln.engine import guard

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from docker import DockerClient

    from kiln.deploy.records import Deployment, Gpu
    from kiln.engine import Engine

_BUILD = "build it: ./inv build, with the same --variant and --arch"
_TTL_S = 10 * 365 * 86_400  # a server runs until somebody ends it


def run(made: Deployment, home: Path, *, gpus: Sequence[Gpu]) -> None:
    """Serve on this machine's own engine; raises Missing where it, the GPUs or the target's image are not there."""
    _check_gpus(made, gpus)
    if made.doubt:
        raise errors.Missing(f"{made.doubt.where} {made.doubt.problem}", hint=made.doubt.hint)
    engine = engines.find(home)
    if engine is None:
        raise errors.Missing("no Docker engine answers", hint="./inv engine.status")
    if engine.embedded:
        raise errors.Missing(
            "only Kiln's embedded engine answers, and its containers have no GPUs and no way out of this machine",
            hint="install Docker with the GPU vendor's toolkit; what Kiln finds then: ./inv engine.status",
        )
    serve(made, engine)


def serve(made: Deployment, engine: Engine) -> None:
    """Run the container until it ends; it is ended and removed with this program, however this program ends.

    Raises Missing where the image is not there, BadInput where a container of this name is.
    """
    with contextlib.closing(engine.client()) as client:
        _check_engine(made, client)
    with guard.guarded(engine.host, ttl_s=_TTL_S) as session:
        program, verb, *words = argv.render(made, docker=engine.docker)
        labels = (f"--label={name}={value}" for name, value in session.labels)
        process.attach((program, verb, *labels, *words), env=engine.environment())


def _check_gpus(made: Deployment, gpus: Sequence[Gpu]) -> None:
    own = [gpu for gpu in gpus if gpu.arch == made.arch]
    if sum(gpu.parts == 1 for gpu in own) >= made.gpus:
        return
    found = Counter(f"{gpu.arch} that are parts of GPUs" if gpu.parts > 1 else gpu.arch for gpu in gpus)
    shown = ", ".join(f"{count} {what}" for what, count in sorted(found.items())) or "none"
    raise errors.Missing(
        f"{made.target} needs {made.gpus} {made.arch} GPUs; this machine has: {shown}",
        hint=notes.WHOLE
        if any(gpu.parts > 1 for gpu in own)
        else "leave --exec out, and run what is printed where the GPUs are",
    )


def _check_engine(made: Deployment, client: DockerClient) -> None:
    with contextlib.suppress(NotFound):
        there = client.containers.get(made.name)
        raise errors.BadInput(
            f"a container {made.name} is there already, and {there.status}", hint=f"docker rm --force {made.name}"
        )
    if made.pull == "never":
        _check_image(made, client)


def _check_image(made: Deployment, client: DockerClient) -> None:
    """Raise Missing where the engine's image is not there, or not the one of the receipt."""
    try:
        found = client.images.get(made.image).id
    except ImageNotFound as error:
        raise errors.Missing(f"{made.image}: the engine does not have it", hint=_BUILD) from error
    try:
        same = not made.digest or found == client.images.get(made.digest).id
    except ImageNotFound:
        same = False
    if not same:
        raise errors.Missing(f"{made.image} is not what its receipt says: {made.digest}", hint=_BUILD)
