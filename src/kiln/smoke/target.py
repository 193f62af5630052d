"""Smokes the image of a target: builds it, unless nothing changed, and serves it as its recipe says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln import engine as engines
from kiln import errors
from kiln.image import build
from kiln.smoke import run as tiers
from kiln.smoke import structural

if TYPE_CHECKING:
    from kiln.catalog import Catalog
    from kiln.plan import Plan
    from kiln.report import Reporter
    from kiln.smoke.records import SmokeResult

_FAMILY_FLAG = "--tool-call-parser"


def run(catalog: Catalog, plan: Plan, *, twin: bool, reporter: Reporter) -> SmokeResult:
    """Smoke the image of a plan, built first unless nothing changed, so that no stale one is smoked.

    A twin is served; of a real image, which needs its GPU for that, only tier structural is run so far.
    """
    family = _family(plan)
    receipt = build.run(catalog, plan, twin=twin, reporter=reporter)
    engine = engines.ensure(catalog.state / "engine", reporter)
    patched = structural.Patched(
        folder=build.patch_folder(catalog, plan, twin=twin),
        probes=tuple((use.id, catalog.root / "patches" / use.id / "probe.py") for use in plan.series),
    )
    if not twin:
        return tiers.look(engine, receipt.digest, patched, reporter=reporter)
    inputs = tiers.Inputs(
        image=receipt.digest,
        family=family,
        flags=tuple(word for flag in plan.serve.twin_flags for word in flag.words),
        patched=patched,
        not_served=tuple(" ".join(flag.words) for flag in plan.serve.flags if flag not in plan.serve.twin_flags),
    )
    return tiers.run(engine, inputs, cache=catalog.state, reporter=reporter)


def _family(plan: Plan) -> str:
    """Return the family of transcripts: the format the recipe's tool parser reads."""
    for flag in plan.serve.flags:
        if flag.name == _FAMILY_FLAG and flag.value:
            return flag.value
    raise errors.BadInput(f"{plan.target.model}: its recipe has no {_FAMILY_FLAG}, so no transcripts fit it")
