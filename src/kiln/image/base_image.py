"""Finds the base of a build before anything is built, and says what of it is missing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln import errors
from kiln.registry import client, records, reference
from kiln.registry import image as images

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kiln.image.prepare import Ready
    from kiln.registry.image import RemoteImage
    from kiln.registry.records import Descriptor

_LAYOUT = "oci-layout://"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
# how a container of an image is started: none of it is a build's to change
_SETTINGS = ("Env", "Entrypoint", "Cmd", "User", "WorkingDir")


@dataclass(frozen=True, kw_only=True)
class Found:
    """A base that is there: its layers as they are pushed, and its config; no config of one that is made here."""

    layers: tuple[Descriptor, ...]
    config: Mapping[str, Any] = field(default_factory=dict)


def require(ready: Ready) -> Found:
    """Return the base of a build.

    Raises Missing, with the exact image and what to do, when no registry hands out the base; Findings for one with
    ONBUILD steps, which would run in each build over it.
    """
    if not ready.base.reference:
        return Found(layers=_of_layout(ready.build.contexts["base"], ready.base.digest))
    with ready.job.reporter.step(f"find {ready.base.reference}"):
        return _of_registry(ready)


def changed(base: Mapping[str, Any], made: Mapping[str, Any]) -> Iterator[str]:
    """Yield every setting that an image's config has otherwise than its base's."""
    for name in _SETTINGS:
        # an engine may leave out what is empty
        below, here = (each.get(name) or "" for each in (base, made))
        if below != here:
            yield f"{name}: {here!r}, and its base has {below!r}"


def settings(image: RemoteImage) -> dict[str, Any]:
    """Return what an image's config says of its containers."""
    return image.config.get("config") or {}


def _of_registry(ready: Ready) -> Found:
    base = ready.base
    at = reference.parse(base.reference)
    with client.connect(at.host, ca=ready.job.catalog.config.ca) as registry:
        try:
            gone = registry.head(at.repository, at.digest) is None
            image = None if gone else images.open_image(registry, at.repository, at.digest)
        except errors.Missing as error:
            raise errors.Missing(
                f"the series applies, but its base image cannot be pulled: {base.reference} ({base.name})\n"
                f"{error.message}",
                hint=f"docker pull {base.reference}; "
                "or name a mirror in kiln.yaml: mirrors: {docker.io/vllm: MIRROR/vllm}",
            ) from error
    if image is None:
        raise errors.Missing(
            f"{base.reference} is gone: its registry answers, and has no such image under the digest that "
            f"images/lock.json holds for {base.name}",
            hint="keep a mirror of what you build on; where upstream moved the tag: ./inv lock",
        )
    config = settings(image)
    if steps := config.get("OnBuild"):
        told = "\n".join(f"  ONBUILD: {step}" for step in steps)
        raise errors.Findings(
            f"{base.reference} runs steps of its own in every build over it:\n{told}",
            hint="that is no base as vLLM releases it: look which image images/lock.json names",
        )
    return Found(layers=image.layers, config=config)


def _of_layout(context: str, digest: str) -> tuple[Descriptor, ...]:
    """Return the layers in an OCI layout that was made here."""
    folder = Path(context.removeprefix(_LAYOUT).partition("@")[0])
    data = (folder / "blobs" / digest.replace(":", "/")).read_bytes()
    return records.read_manifest(data, _MANIFEST, context).layers
