"""Reads what an image holds, without running it."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import TYPE_CHECKING

from docker.errors import APIError, NotFound

from kiln import errors

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_MAX_FILE_BYTES = 10_000_000
_NO_FILE = 0x8F28_0000  # the bits of a type in Go's FileMode: folder, link, device, pipe, socket


def read_file(container: Container, path: str) -> bytes:
    """Return one file of a container; raises NotApplied when it does not have it."""
    data = find_file(container, path)
    if data is None:
        raise errors.NotApplied(f"{path}: not in the image: its patch step did not run")
    return data


def find_file(container: Container, path: str) -> bytes | None:
    """Return one file of a container that may not have it; raises NotApplied for one that is too large, or no file."""
    try:
        stream, stat = container.get_archive(path)
    except NotFound:
        return None
    if stat is None or stat["mode"] & _NO_FILE or stat["size"] > _MAX_FILE_BYTES:
        raise errors.NotApplied(f"{path}: no regular file of at most {_MAX_FILE_BYTES} bytes")
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        member = archive.getmembers()[0]
        found = archive.extractfile(member) if member.isfile() else None
        if found is None:
            raise errors.NotApplied(f"{path}: no regular file")
        return found.read()


def layers(client: DockerClient, image: str) -> tuple[str, ...]:
    """Return the diff ids of an image's layers: equal ones mean equal files, whatever the labels say."""
    return tuple(client.images.get(image).attrs["RootFS"]["Layers"])


def compressed_bytes(client: DockerClient, image: str) -> int:
    """Return the size of the image's content as it is pushed; 0 where the engine's store does not keep it."""
    return int(client.images.get(image).attrs.get("Size", 0)) if _keeps_content(client) else 0


def _keeps_content(client: DockerClient) -> bool:
    return ["driver-type", "io.containerd.snapshotter.v1"] in (client.info().get("DriverStatus") or [])


def discard(client: DockerClient, image: str) -> None:
    """Remove an image that has no tag and is not in use; its layers stay in BuildKit's cache."""
    with contextlib.suppress(APIError):
        if not client.images.get(image).tags:
            client.images.remove(image, noprune=True)
