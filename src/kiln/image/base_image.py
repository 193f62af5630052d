"""Finds the base of a build before anything is built, and says what of it is missing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors
from kiln.registry import client, records, reference

if TYPE_CHECKING:
    from kiln.image.prepare import Ready
    from kiln.registry.records import Descriptor

_LAYOUT = "oci-layout://"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def require(ready: Ready) -> tuple[Descriptor, ...]:
    """Return the base's layers as they are pushed.

    Raises Missing, with the exact image and what to do, when no registry hands out the base.
    """
    if not ready.base.reference:
        return _of_layout(ready.build.contexts["base"], ready.base.digest)
    with ready.job.reporter.step(f"find {ready.base.reference}"):
        return _of_registry(ready)


def _of_registry(ready: Ready) -> tuple[Descriptor, ...]:
    base = ready.base
    at = reference.parse(base.reference)
    with client.connect(at.host, ca=ready.job.catalog.config.ca) as registry:
        try:
            gone = registry.head(at.repository, at.digest) is None
            layers = () if gone else registry.manifest(at.repository, at.digest).layers
        except errors.Missing as error:
            raise errors.Missing(
                f"the series applies, but its base image cannot be pulled: {base.reference} ({base.name})\n"
                f"{error.message}",
                hint=f"docker pull {base.reference}; "
                "or name a mirror in kiln.yaml: mirrors: {docker.io/vllm: MIRROR/vllm}",
            ) from error
    if gone:
        raise errors.Missing(
            f"{base.reference} is gone: its registry answers, and has no such image under the digest that "
            f"images/lock.json holds for {base.name}",
            hint="keep a mirror of what you build on; where upstream moved the tag: ./inv lock",
        )
    return layers


def _of_layout(context: str, digest: str) -> tuple[Descriptor, ...]:
    """Return the layers in an OCI layout that was made here."""
    folder = Path(context.removeprefix(_LAYOUT).partition("@")[0])
    data = (folder / "blobs" / digest.replace(":", "/")).read_bytes()
    return records.read_manifest(data, _MANIFEST, context).layers
