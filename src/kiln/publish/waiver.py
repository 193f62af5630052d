"""A written waiver: who lets an image out although a tier was not run, for which reason, and until when."""

from __future__ import annotations

from datetime import date  # noqa: TC003 - pydantic reads it
from pathlib import Path

from pydantic import Field

from kiln.catalog.load import read as read_record
from kiln.catalog.records import Digest, Name, Record, Text
from kiln.smoke.records import Tier  # noqa: TC001 - pydantic reads it


class Waiver(Record):
    """Holds for one digest of one target; it stands for tiers that were not run, never for a check that failed."""

    target: Name
    digest: Digest
    tiers: tuple[Tier, ...] = Field(min_length=1)
    reason: Text
    by: Text
    until: date


def read(path: Path) -> Waiver:
    """Read a waiver file; raises BadInput with one line for each problem."""
    return read_record(Waiver, path, root=Path.cwd())
