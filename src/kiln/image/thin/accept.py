"""Compares an image that was pushed with what was rehearsed, by what its registry hands out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kiln.errors import Finding
from kiln.image import accept, base_image
from kiln.patching import ledger
from kiln.registry import layers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kiln.catalog import lock_records
    from kiln.image.thin.layer import Member
    from kiln.plan import Plan
    from kiln.registry.image import RemoteImage
    from kiln.registry.layers import Found


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a pushed image must be: its base, whose config is `config`, one layer of these members, and these labels."""

    base: lock_records.Base
    plan: Plan
    ledger: bytes
    members: tuple[Member, ...]
    labels: Mapping[str, str]
    config: Mapping[str, Any]


def differences(image: RemoteImage, expected: Expected, progress: Callable[[str], None]) -> Iterator[Finding]:
    """Yield what of the image is not as it must be: layers, labels, files, removals, ledger."""
    digests = tuple(layer.digest for layer in image.manifest.layers)
    if digests[:-1] != expected.base.layers:
        yield Finding(where="layers", problem="not those of the base and one more")
        return
    yield from _of_labels(image, expected.labels)
    for problem in base_image.changed(expected.config, base_image.settings(image)):
        yield Finding(where="settings", problem=problem)
    found = layers.scan(image, lambda _: True, layers={len(digests) - 1}, progress=progress)
    yield from of_layer(found, expected.members)
    yield from of_series(found, expected)
    for path in layers.find(
        image, [each.removes for each in expected.members if each.removes], progress=progress, keep=False
    ):
        yield Finding(where=f"/{path}", problem="still there, and the build removes it")


def of_layer(found: Mapping[str, Found], members: Sequence[Member]) -> Iterator[Finding]:
    """Yield the entries of a layer that are not those that it was made of."""
    wanted = {member.path: member for member in members if not member.removes}
    for path in sorted(found.keys() - wanted.keys()):
        yield Finding(where=f"/{path}", problem="in the layer, and the build did not put it there")
    for path, member in sorted(wanted.items()):
        held = found.get(path)
        sha256 = "" if member.data is None else hashlib.sha256(member.data).hexdigest()
        if held is None:
            yield Finding(where=f"/{path}", problem="not in the layer")
        elif (held.kind, held.sha256) != ("folder" if member.data is None else "file", sha256):
            yield Finding(where=f"/{path}", problem="not the bytes that the build put there")
        elif held.mode != member.mode:
            yield Finding(where=f"/{path}", problem=f"mode {held.mode:04o}, and the build gave it {member.mode:04o}")


def of_series(found: Mapping[str, Found], expected: Expected) -> Iterator[Finding]:
    """Yield the files that the series does not leave so, and a ledger that is not the rehearsal's."""
    base = expected.base
    wanted = {f"{base.root}/{path}": post for use in expected.plan.series for path, _, post in use.files}
    ledger_sha256 = hashlib.sha256(expected.ledger).hexdigest()
    places = (f"{base.root}/{base.dist_info}/{ledger.NAME}", accept.LEDGER.removeprefix("/"))
    for path, sha256 in sorted((wanted | dict.fromkeys(places, ledger_sha256)).items()):
        held = found[path].sha256 if path in found else None
        if held != sha256:
            yield Finding(where=f"/{path}", problem=f"sha256 {held}, and the rehearsal gave {sha256}")


def _of_labels(image: RemoteImage, labels: Mapping[str, str]) -> Iterator[Finding]:
    held = image.config.get("config", {}).get("Labels") or {}
    for name, value in labels.items():
        if held.get(name) != value:
            yield Finding(where=f"label {name}", problem=f"{held.get(name)!r}, not {value!r}")
