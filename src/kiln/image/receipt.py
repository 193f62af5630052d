"""The receipt of a build: what was made, of what, and what was read back out of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from kiln import files, report

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """`digest` is the image's; `ledger_sha256` that of the ledger read out of it; sizes are of its layers as pushed.

    `inputs_sha256` is of all that the build read. `image` is its tag in the engine, or HOST/REPOSITORY@DIGEST of one
    that never was in the engine. `pushed` is HOST/REPOSITORY@DIGEST of one that was pushed beside. `unchanged`: the
    inputs were those of this image, so nothing was built.
    """

    target: str
    kind: str
    image: str
    digest: str
    base: str
    series: tuple[str, ...]
    ledger_sha256: str
    inputs_sha256: str
    compressed_bytes: int
    layers: int
    catalog_commit: str
    catalog_dirty: bool
    seconds: dict[str, float]
    builder: str = ""
    pushed: str = ""
    thin: bool = False
    unchanged: bool = False


def write(folder: Path, receipt: Receipt) -> Path:
    """Write `<kind>.json` into the target's folder, whole or not at all, and return its path."""
    return files.write(_path(folder, receipt.kind), report.as_json(asdict(receipt)) + "\n")


def read(folder: Path, kind: str) -> Receipt | None:
    """Return the receipt of the last build; None where there is none, or not one of this form."""
    try:
        return TypeAdapter(Receipt).validate_json(_path(folder, kind).read_bytes())
    except (OSError, ValidationError):
        return None


def _path(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.json"
