"""Makes the manifests of artifacts that refer to an image, and the index that lists them without an API."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kiln.registry import records
from kiln.registry.records import Descriptor, Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping


def manifest(subject: Descriptor, layer: Descriptor, *, artifact_type: str, annotations: Mapping[str, str]) -> Manifest:
    """Return the manifest of an artifact with one layer and the empty config: the same arguments, the same bytes."""
    empty = records.describe(records.EMPTY, records.OCI_EMPTY)
    # of the subject only what names it: its own annotations are no part of what is said about it
    named = Descriptor(media_type=subject.media_type, digest=subject.digest, size=subject.size)
    value: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": records.OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": records.as_json(empty),
        "layers": [records.as_json(layer)],
        "subject": records.as_json(named),
    }
    if annotations:
        value["annotations"] = dict(sorted(annotations.items()))
    return _made(value, records.OCI_MANIFEST)


def listed(made: Manifest) -> Descriptor:
    """Return an artifact's descriptor as lists of referrers hold it."""
    return replace(made.descriptor, artifact_type=made.artifact_type, annotations=made.annotations)


def fallback_tag(digest: str) -> str:
    """Return the tag under which the referrers of a manifest are listed where a registry has no API for them."""
    return digest.replace(":", "-")


def extended(known: Manifest | None, added: Descriptor) -> Manifest:
    """Return the index of what was listed before, and one more."""
    # what others wrote is kept as they wrote it
    before: dict[str, Any] = json.loads(known.data) if known else {"schemaVersion": 2}
    others = [each for each in before.get("manifests") or () if each["digest"] != added.digest]
    value = {**before, "mediaType": records.OCI_INDEX, "manifests": [*others, records.as_json(added)]}
    return _made(value, records.OCI_INDEX)


def _made(value: dict[str, Any], media_type: str) -> Manifest:
    data = json.dumps(value, separators=(",", ":")).encode()
    return records.read_manifest(data, media_type, "a manifest of Kiln's own")
