"""The records of the OCI image specification, read strictly out of what a registry sends."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from kiln import errors
from kiln.registry import reference

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEXES = (OCI_INDEX, DOCKER_INDEX)
MAX_MANIFEST_BYTES = 4 << 20

_MAX_TEXT = 4096
_MAX_DESCRIPTORS = 10_000
_MAX_SIZE = 1 << 43


class Damaged(errors.Findings):
    """What was sent is not what its digest says, or not what the specification allows."""


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """Names content by its digest, with its size and kind; `platform` is OS/ARCHITECTURE[/VARIANT]."""

    media_type: str
    digest: str
    size: int
    annotations: tuple[tuple[str, str], ...] = ()
    artifact_type: str = ""
    platform: str = ""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An image manifest, an artifact's, or an index: `data` has the digest of `descriptor`."""

    descriptor: Descriptor
    data: bytes
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    manifests: tuple[Descriptor, ...] = ()
    subject: Descriptor | None = None
    artifact_type: str = ""
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        return self.descriptor.digest

    @property
    def is_index(self) -> bool:
        return self.descriptor.media_type in INDEXES


def describe(data: bytes, media_type: str) -> Descriptor:
    """Return the descriptor of these bytes."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data))


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def read_manifest(data: bytes, media_type: str, where: str, *, default: str = "") -> Manifest:
    """Return the manifest in these bytes, sent as `media_type`; raises Damaged unless it is one, and one alone.

    Where neither the sender nor the bytes name its kind, it is `default`.
    """
    value = read_json(data, where)
    named = _text(value, "mediaType", where) or media_type or default
    if media_type and named != media_type:
        raise Damaged(f"{where}: sent as {media_type}, but says that it is {named}")
    if named not in (*MANIFESTS, *INDEXES):
        raise Damaged(f"{where}: a manifest of a kind that Kiln does not read: {named or 'not named'}")
    if value.get("schemaVersion") != 2:  # noqa: PLR2004 - the only one that the specification has
        raise Damaged(f"{where}: not schema version 2")
    index = named in INDEXES
    foreign = {"config", "layers"} if index else {"manifests"}
    if foreign & value.keys():
        raise Damaged(f"{where}: an image manifest and an index at once")
    if not index and "config" not in value:
        raise Damaged(f"{where}: an image manifest without a config")
    return Manifest(
        descriptor=describe(data, named),
        data=data,
        config=None if index else read_descriptor(value["config"], where),
        layers=_descriptors(value, "layers", where),
        manifests=_descriptors(value, "manifests", where),
        subject=read_descriptor(value["subject"], where) if value.get("subject") is not None else None,
        artifact_type=_text(value, "artifactType", where),
        annotations=_annotations(value, where),
    )


def read_descriptor(value: object, where: str) -> Descriptor:
    """Return the descriptor in a piece of JSON; raises Damaged."""
    if not isinstance(value, dict):
        raise Damaged(f"{where}: a descriptor that is no object")
    digest, size = _text(value, "digest", where), value.get("size")
    if not reference.is_digest(digest):
        raise Damaged(f"{where}: a descriptor whose digest is not sha256: {digest!r}")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise Damaged(f"{where}: a descriptor without a possible size")
    return Descriptor(
        media_type=_text(value, "mediaType", where),
        digest=digest,
        size=size,
        annotations=_annotations(value, where),
        artifact_type=_text(value, "artifactType", where),
        platform=_platform(value, where),
    )


def as_json(descriptor: Descriptor) -> dict[str, Any]:
    """Return a descriptor as manifests and indexes hold it."""
    value: dict[str, Any] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if descriptor.annotations:
        value["annotations"] = dict(descriptor.annotations)
    if descriptor.artifact_type:
        value["artifactType"] = descriptor.artifact_type
    if descriptor.platform:
        names = ("os", "architecture", "variant")
        value["platform"] = dict(zip(names, descriptor.platform.split("/"), strict=False))
    return value


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """Return the one JSON object in these bytes; raises Damaged, also for a key that stands twice."""
    try:
        value = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{where}: not JSON: {str(error)[:80]}") from None
    if not isinstance(value, dict):
        raise Damaged(f"{where}: JSON, but no object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands twice")
    return value


def _descriptors(value: dict[str, Any], key: str, where: str) -> tuple[Descriptor, ...]:
    found = value.get(key)
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) > _MAX_DESCRIPTORS:
        raise Damaged(f"{where}: {key} is no list, or has more than {_MAX_DESCRIPTORS} entries")
    return tuple(read_descriptor(each, where) for each in found)


def _text(value: dict[str, Any], key: str, where: str) -> str:
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str) or len(found) > _MAX_TEXT:
        raise Damaged(f"{where}: {key} is no text, or a very long one")
    return found


def _annotations(value: dict[str, Any], where: str) -> tuple[tuple[str, str], ...]:
    found = value.get("annotations")
    if found is None:
        return ()
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        raise Damaged(f"{where}: annotations that are not texts")
    return tuple(sorted(found.items()))


def _platform(value: dict[str, Any], where: str) -> str:
    found = value.get("platform")
    if found is None:
        return ""
    if not isinstance(found, dict):
        raise Damaged(f"{where}: a platform that is no object")
    parts = (_text(found, key, where) for key in ("os", "architecture", "variant"))
    return "/".join(part for part in parts if part)
