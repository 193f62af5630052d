"""Finds the layers of the base that a published image stands on: in the lock, on this machine or in a registry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kiln.image import base as debian
from kiln.publish.statements import Base
from kiln.registry import image as images
from kiln.registry import records, reference
from kiln.registry.client import connect

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.image import prepare
    from kiln.report import Reporter


def layers(catalog: Catalog, base: prepare.Base, reporter: Reporter) -> Base:
    """Return the base as an image: its layers as a registry holds them, and what each unpacks to."""
    locked = catalog.lock.images.get(base.name)
    if locked and locked.base:
        found, diff_ids = locked.base.layers, locked.base.diff_ids
    elif base.reference:
        at = reference.parse(base.reference)
        with connect(at.host, ca=catalog.config.ca) as registry, reporter.step(f"find {at}"):
            image = images.open_image(registry, at.repository, base.digest)
        found, diff_ids = tuple(layer.digest for layer in image.layers), image.diff_ids
    else:
        data = catalog.root / "images/twin/base"
        layout = debian.ensure("base", catalog.state / "bases", reporter, data=data)
        blobs = layout.path / "blobs" / "sha256"
        manifest = records.read_manifest(_blob(blobs, base.digest), records.OCI_MANIFEST, base.name)
        assert manifest.config, "an image's manifest has a config"
        config = json.loads(_blob(blobs, manifest.config.digest))
        found = tuple(layer.digest for layer in manifest.layers)
        diff_ids = tuple(config["rootfs"]["diff_ids"])
    return Base(name=base.name, digest=base.digest, layers=found, diff_ids=diff_ids)


def _blob(folder: Path, digest: str) -> bytes:
    return (folder / digest.removeprefix("sha256:")).read_bytes()
