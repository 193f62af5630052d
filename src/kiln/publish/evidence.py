"""The JSON record of a smoke run, bound to the digest of the image that was smoked."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from kiln import __version__, files, report

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.plan import Plan
    from kiln.smoke.records import SmokeResult

SCHEMA = 1


def write(folder: Path, plan: Plan, result: SmokeResult, *, kind: str) -> Path:
    """Write `<kind>-evidence.json` into the target's folder, whole or not at all, and return its path."""
    data = {
        "schema": SCHEMA,
        "kiln": __version__,
        "target": plan.target.slug,
        "kind": kind,
        "image_digest": result.image,
        "passed": result.passed,
        "not_run": [f"{check.tier}/{check.name}: {check.reason}" for check in result.of("not_run")],
        "series": [{"id": use.id, "edition_sha256": use.sha256} for use in plan.series],
        "smoke": asdict(result),
    }
    return files.write(folder / f"{kind}-evidence.json", report.as_json(data) + "\n")
