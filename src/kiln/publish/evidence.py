"""The JSON record of a smoke run, bound to the digest of the image that was smoked."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Literal

from pydantic import Field, ValidationError

from kiln import __version__, catalog, files, report
from kiln.catalog.records import Record, Text
from kiln.publish import checkout
from kiln.smoke.records import Status, Tier  # noqa: TC001 - pydantic reads them

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.plan import Plan
    from kiln.smoke.records import SmokeResult

SCHEMA = 1
_MAX_BYTES = 20_000_000


class Finding(Record):
    where: str
    problem: str
    hint: str


class Check(Record):
    tier: Tier
    name: str
    status: Status
    findings: tuple[Finding, ...]
    seconds: float
    reason: str


class Smoke(Record):
    image: str
    puppet: str
    started: str
    seconds: float
    checks: tuple[Check, ...]


class SeriesEntry(Record):
    id: Text
    edition_sha256: Text


class Evidence(Record):
    """What `write` wrote; `passed` is repeated for people, and decides nothing.

    `commit` is the last one to all that makes and smokes images, `dirty` says that something was edited since.
    """

    schema_version: Literal[1] = Field(alias="schema")
    kiln: Text
    target: Text
    kind: Text
    image_digest: Text
    commit: Text
    dirty: bool
    passed: bool
    not_run: tuple[str, ...]
    recipe_sha256: Text
    series: tuple[SeriesEntry, ...]
    smoke: Smoke

    def status(self, tier: Tier) -> Status:
        """Return failed if any check of the tier failed, else passed if one passed, else not_run."""
        found = {check.status for check in self.smoke.checks if check.tier == tier}
        order: tuple[Status, ...] = ("failed", "passed")
        return next((status for status in order if status in found), "not_run")


def write(folder: Path, plan: Plan, result: SmokeResult, *, kind: str) -> Path:
    """Write `<kind>-evidence.json` into the target's folder, whole or not at all, and return its path."""
    commit, dirty = checkout.state(catalog.find_root(folder))
    data = {
        "schema": SCHEMA,
        "kiln": __version__,
        "target": plan.target.slug,
        "kind": kind,
        "image_digest": result.image,
        "commit": commit,
        "dirty": dirty,
        "passed": result.passed,
        "not_run": [f"{check.tier}/{check.name}: {check.reason}" for check in result.of("not_run")],
        "recipe_sha256": recipe_sha256(plan),
        "series": [{"id": use.id, "edition_sha256": use.sha256} for use in plan.series],
        "smoke": asdict(result),
    }
    return files.write(path_of(folder, kind), report.as_json(data) + "\n")


def read(folder: Path, kind: str) -> Evidence | None:
    """Return the record of the last smoke run; None where there is none, or not one of this form."""
    try:
        with path_of(folder, kind).open("rb") as file:
            return Evidence.model_validate_json(file.read(_MAX_BYTES), strict=True)
    except (OSError, ValidationError):
        return None


def path_of(folder: Path, kind: str) -> Path:
    return folder / f"{kind}-evidence.json"


def recipe_sha256(plan: Plan) -> str:
    """Return what names the flags and environment that the plan serves with: another recipe, another value."""
    return hashlib.sha256(report.as_json(asdict(plan.serve)).encode()).hexdigest()
