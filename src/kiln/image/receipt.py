"""The receipt of a build: what was made, of what, and what was read back out of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from kiln import files, report

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """`digest` is the image's; `ledger_sha256` that of the ledger read out of it; sizes are of its layers as pushed."""

    target: str
    kind: str
    image: str
    digest: str
    base: str
    series: tuple[str, ...]
    ledger_sha256: str
    compressed_bytes: int
    layers: int
    catalog_commit: str
    catalog_dirty: bool
    seconds: dict[str, float]


def write(folder: Path, receipt: Receipt) -> Path:
    """Write `<kind>.json` into the target's folder, whole or not at all, and return its path."""
    return files.write(folder / f"{receipt.kind}.json", report.as_json(asdict(receipt)) + "\n")
