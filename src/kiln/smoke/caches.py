"""Volumes that make a second start of the same files fast; named by those files, the oldest ones dropped."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docker.errors import APIError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docker import DockerClient

LABEL = "ai.kiln.cache"
_KEPT = 8  # two for each of the last four images, about 100 MB an image


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A named cache volume, kept from run to run."""

    name: str
    path: str


def volumes(layers: Sequence[str]) -> tuple[Volume, ...]:
    """Return the caches of an image with these layers.

    Times inside an image are all the same, so bytecode made from other files of the same size would pass for fresh:
    an image with one other layer gets caches of its own, one with other labels only does not.
    """
    key = hashlib.sha256("\n".join(layers).encode()).hexdigest()[:16]
    return (Volume(name=f"kiln-pyc-{key}", path="/pyc"), Volume(name=f"kiln-vc-{key}", path="/vc"))


def create(client: DockerClient, volume: Volume) -> None:
    """Create the volume if it is not there."""
    client.volumes.create(volume.name, labels={LABEL: volume.path})


def prune(client: DockerClient, *, used: Sequence[Volume]) -> None:
    """Remove all but the newest caches; one that a running server uses stays."""
    names = {volume.name for volume in used}
    found = [volume for volume in client.volumes.list(filters={"label": LABEL}) if volume.name not in names]
    found.sort(key=lambda volume: str(volume.attrs["CreatedAt"]), reverse=True)
    for volume in found[max(0, _KEPT - len(names)) :]:
        with contextlib.suppress(APIError):
            volume.remove()
