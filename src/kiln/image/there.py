"""Finds the image of a receipt, and says whether it is what the receipt takes it for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docker.errors import APIError

from kiln import errors
from kiln.image import inputs, inspect
from kiln.registry import client as registries
from kiln.registry import image as images
from kiln.registry import reference

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kiln.engine import Engine
    from kiln.image.receipt import Receipt

_GONE = "is not there any more"


@dataclass(frozen=True, kw_only=True)
class Held:
    """An image as its engine or registry has it; `size` is of its layers as they are pushed."""

    labels: Mapping[str, str]
    size: int
    layers: int


def find(receipt: Receipt, engine: Engine, ca: Path | None) -> tuple[Held | None, str]:
    """Return the image of a receipt, in its registry or in the engine under its tag; None, and why, where it is not.

    What a receipt says is not trusted: one that names no image, or a registry that does not answer, has none.
    """
    try:
        at = reference.parse(receipt.image)
        return (_in_registry(receipt, ca) if at.digest else _in_engine(receipt, engine)), _GONE
    except errors.KilnError as error:
        return None, error.message


def differs(held: Held, labels: Mapping[str, str]) -> str:
    """Say which label of an image is not that of the build it is taken for; "" where all are."""
    wrong = [name for name, value in inputs.labels(labels).items() if held.labels.get(name) != value]
    return f"its label {wrong[0]} is {held.labels.get(wrong[0])!r}" if wrong else ""


def _in_registry(receipt: Receipt, ca: Path | None) -> Held | None:
    at = reference.parse(receipt.image)
    if at.digest != receipt.digest:
        return None
    with registries.connect(at.host, ca=ca) as registry:
        if registry.head(at.repository, at.digest) is None:
            return None
        image = images.open_image(registry, at.repository, at.digest)
    return Held(labels=image.labels, size=sum(layer.size for layer in image.layers), layers=len(image.layers))


def _in_engine(receipt: Receipt, engine: Engine) -> Held | None:
    """Return the image that has the receipt's tag, if that is the receipt's."""
    with contextlib.closing(engine.client()) as client:
        try:
            named, made = (client.images.get(name) for name in (receipt.image, receipt.digest))
            if named.id != made.id:
                return None
            return Held(
                labels=made.labels,
                size=inspect.compressed_bytes(client, receipt.digest),
                layers=len(inspect.layers(client, receipt.digest)),
            )
        except APIError:
            return None
