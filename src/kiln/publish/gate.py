"""Says, of records alone and all at once, why an image must not be published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.errors import Finding
from kiln.smoke import checks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import date

    from kiln.image.receipt import Receipt
    from kiln.publish.evidence import Evidence
    from kiln.publish.waiver import Waiver
    from kiln.smoke.records import Tier

# the tiers that must have passed, by kind of image
REQUIRED: Mapping[str, tuple[Tier, ...]] = {
    "twin": ("structural", "serve"),
    "rocm": ("structural", "serve", "device"),
    "cuda": ("structural", "serve", "device"),
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the catalog makes of the target now; `flags` are those that name it on the command line."""

    target: str
    kind: str
    flags: str
    inputs_sha256: str
    ledger_sha256: str
    base: str
    series: tuple[tuple[str, str], ...]
    recipe_sha256: str
    commit: str
    dirty: bool


@dataclass(frozen=True, kw_only=True)
class Case:
    """Everything the gate looks at."""

    wanted: Wanted
    receipt: Receipt | None
    evidence: Evidence | None
    waiver: Waiver | None
    today: date


def findings(case: Case) -> tuple[Finding, ...]:
    """Return every reason to refuse, none when the image may go out."""
    return (*_catalog(case.wanted), *_receipt(case), *_waiver(case), *_evidence(case))


def waived(case: Case) -> tuple[Tier, ...]:
    """Return the required tiers that were not run, and that the waiver stands for."""
    if not (case.evidence and case.waiver):
        return ()
    left_out = [tier for tier in REQUIRED[case.wanted.kind] if case.evidence.status(tier) == "not_run"]
    return tuple(tier for tier in left_out if tier in case.waiver.tiers)


def _catalog(wanted: Wanted) -> Iterator[Finding]:
    if wanted.commit == "none":
        problem = "no commit says what the image is made of"
        yield Finding(where="catalog", problem=problem, hint="publish from a git checkout: git add, git commit")
    elif wanted.dirty:
        problem = f"changed since commit {wanted.commit[:12]}"
        yield Finding(
            where="catalog", problem=problem, hint="git status; commit the change, then build and smoke again"
        )


def _receipt(case: Case) -> Iterator[Finding]:
    wanted, receipt, again = case.wanted, case.receipt, f"./inv build {case.wanted.flags}"
    where = f"receipt build/{wanted.target}/{wanted.kind}.json"
    if receipt is None:
        yield Finding(where=where, problem="there is none of this form: this target was not built here", hint=again)
        return
    if (receipt.target, receipt.kind) != (wanted.target, wanted.kind):
        yield Finding(where=where, problem=f"is of {receipt.target} ({receipt.kind})", hint=again)
    if receipt.inputs_sha256 != wanted.inputs_sha256 and not receipt.thin:  # a thin build reads other files
        problem = f"was built of other inputs: {receipt.inputs_sha256[:12]}, now {wanted.inputs_sha256[:12]}"
        yield Finding(where=where, problem=problem, hint=again)
    elif receipt.catalog_commit != wanted.commit:
        # the commit is in the image's labels
        problem = f"was built at commit {receipt.catalog_commit[:12]}, the catalog is at {wanted.commit[:12]}"
        yield Finding(where=where, problem=problem, hint=f"{again} --rebuild")
    if receipt.ledger_sha256 != wanted.ledger_sha256:
        problem = f"its ledger is {receipt.ledger_sha256[:12]}, the rehearsal's is {wanted.ledger_sha256[:12]}"
        yield Finding(where=where, problem=problem, hint=again)
    if receipt.base != wanted.base:
        problem = f"its base is {receipt.base}, the catalog's is {wanted.base or 'not known'}"
        yield Finding(where=where, problem=problem, hint=again)
    if receipt.catalog_dirty:
        yield Finding(where=where, problem="was built from a catalog with changes that no commit holds", hint=again)


def _waiver(case: Case) -> Iterator[Finding]:
    waiver, receipt = case.waiver, case.receipt
    if waiver is None:
        return
    if waiver.target != case.wanted.target:
        yield Finding(where="waiver", problem=f"is for {waiver.target}, not for {case.wanted.target}")
    if receipt and waiver.digest != receipt.digest:
        yield Finding(where="waiver", problem=f"is for {waiver.digest}, not for {receipt.digest}")
    if waiver.until < case.today:
        yield Finding(where="waiver", problem=f"has ended on {waiver.until}", hint=f"ask {waiver.by} for a new one")


def _evidence(case: Case) -> Iterator[Finding]:
    wanted, evidence, again = case.wanted, case.evidence, f"./inv smoke {case.wanted.flags}"
    where = f"evidence build/{wanted.target}/{wanted.kind}-evidence.json"
    if evidence is None:
        yield Finding(where=where, problem="there is none of this form: this image was not smoked", hint=again)
        return
    digests = {evidence.image_digest, evidence.smoke.image}
    if case.receipt and digests != {case.receipt.digest}:
        problem = f"is about {' and '.join(sorted(digests))}, not about {case.receipt.digest}"
        yield Finding(where=where, problem=problem, hint=again)
    if (evidence.target, evidence.kind) != (wanted.target, wanted.kind):
        yield Finding(where=where, problem=f"is of {evidence.target} ({evidence.kind})", hint=again)
    if tuple((entry.id, entry.edition_sha256) for entry in evidence.series) != wanted.series:
        yield Finding(where=where, problem="the series was changed since: patches or editions differ", hint=again)
    if evidence.recipe_sha256 != wanted.recipe_sha256:
        yield Finding(where=where, problem="the recipe was changed since: it was served in another way", hint=again)
    if evidence.dirty:
        problem = "was made with changes that no commit holds"
        yield Finding(where=where, problem=problem, hint=f"git status; git commit; {again}")
    yield from _tiers(case, evidence, again)


def _tiers(case: Case, evidence: Evidence, again: str) -> Iterator[Finding]:
    stood_for = waived(case)
    for check in evidence.smoke.checks:
        if check.status == "failed":
            why = "; ".join(f"{found.where}: {found.problem}" for found in check.findings)
            yield Finding(where=f"{check.tier}/{check.name}", problem=f"failed: {why or 'no reason'}", hint=again)
    for tier in REQUIRED[case.wanted.kind]:
        if evidence.status(tier) == "not_run" and tier not in stood_for:
            reasons = "; ".join(check.reason for check in evidence.smoke.checks if check.tier == tier)
            problem = f"NOT_RUN{f': {reasons}' if reasons else ''}, and it is required of a {case.wanted.kind} image"
            yield Finding(where=f"tier {tier}", problem=problem, hint=f"{again}; or --waiver FILE")
        elif evidence.status(tier) == "passed":
            passed = {check.name for check in evidence.smoke.checks if (check.tier, check.status) == (tier, "passed")}
            for name in _required(tier, case.wanted):
                if name not in passed:
                    yield Finding(where=f"{tier}/{name}", problem="was not run, and it is required", hint=again)


def _required(tier: Tier, wanted: Wanted) -> tuple[str, ...]:
    """Return the checks without which a tier has not passed; those of tier device are not settled so far."""
    if tier == "structural":
        return ("verify", *(f"probe {patch}" for patch, _ in wanted.series))
    return ("start", *(check.name for check in checks.SERVE), "shutdown") if tier == "serve" else ()
