"""A container for as long as a `with` block lasts: named and labelled beforehand, so that no interrupt loses it."""

from __future__ import annotations

import contextlib
import secrets
from typing import TYPE_CHECKING, Any

from docker.errors import NotFound

from kiln.engine import guard

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker import DockerClient
    from docker.models.containers import Container

_TTL_S = 1800


@contextlib.contextmanager
def created(client: DockerClient, image: str, **options: Any) -> Iterator[Container]:
    """Create a container of an image, without network and not started, and remove it in any case.

    Raises what the SDK raises, ImageNotFound among it. A SIGKILL leaves it to the next run's sweep.
    """
    name = f"kiln-{secrets.token_hex(6)}"
    try:
        yield client.containers.create(
            image, name=name, network_mode="none", labels=dict(guard.owned(_TTL_S)), **options
        )
    finally:
        # by name: an interrupt can come after the engine made it and before its id was known
        with contextlib.suppress(NotFound):
            client.containers.get(name).remove(force=True, v=True)
