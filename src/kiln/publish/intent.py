"""Collects all that a publication has to know before anything is pushed."""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln.image import build, prepare, receipt
from kiln.patching import ledger as ledgers
from kiln.plan import DEFAULT_MODEL
from kiln.publish import checkout, evidence, gate, sign, slsa, tags, waiver
from kiln.registry import reference

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.plan import Plan
    from kiln.publish.sign import Signer
    from kiln.publish.statements import Slsa
    from kiln.publish.tags import Names
    from kiln.registry.reference import Reference
    from kiln.report import Reporter

_GITHUB_ISSUER = "https://token.actions.githubusercontent.com"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a person asks for; `identity` and `issuer` are who signs without a key, as others will check it."""

    to: str = ""
    aliases: tuple[str, ...] = ()
    key: str = ""
    keyless: bool = False
    identity: str = ""
    issuer: str = ""
    waiver: Path | None = None
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A publication that could begin, if the gate lets `case` through."""

    catalog: Catalog
    plan: Plan
    twin: bool
    request: Request
    to: Reference
    names: Names
    case: gate.Case
    base: prepare.Base
    ledger: bytes
    signer: Signer | None
    slsa: Slsa

    @property
    def output(self) -> Path:
        return self.catalog.output(self.plan.target.slug)


def collect(catalog: Catalog, plan: Plan, request: Request, *, twin: bool, reporter: Reporter) -> Intent:
    """Rehearse the series, stage the build and read receipt, evidence and waiver; nothing is pushed.

    Raises BadInput for a request that cannot be met, Missing where it asks for signatures and there is no cosign.
    """
    to = _destination(catalog, request.to)
    signer = sign.signer(key=request.key, keyless=request.keyless, scratch=catalog.state)
    request = _identified(request)
    stands_for = waiver.read(request.waiver) if request.waiver else None
    with build.prepared(catalog, plan, twin=twin, reporter=reporter) as ready:
        wanted = _wanted(ready)
    ledger = ready.job.rehearsal.ledger
    series = ledgers.parse(ledger, "rehearsal").series
    folder = catalog.output(plan.target.slug)
    made = receipt.read(folder, wanted.kind)
    return Intent(
        catalog=catalog,
        plan=plan,
        twin=twin,
        request=request,
        to=to,
        names=tags.names(plan.target, twin=twin, series=series, aliases=request.aliases),
        case=gate.Case(
            wanted=wanted,
            receipt=made,
            evidence=evidence.read(folder, wanted.kind),
            waiver=stands_for,
            today=dt.datetime.now(tz=dt.UTC).date(),
        ),
        base=ready.base,
        ledger=ledger,
        signer=signer,
        slsa=slsa.level(os.environ, keyless=request.keyless, builder=made.builder if made else ""),
    )


def _destination(catalog: Catalog, to: str) -> Reference:
    named = to or catalog.config.publish
    if not named:
        hint = "--to HOST/REPOSITORY, or in kiln.yaml: publish: HOST/REPOSITORY"
        raise errors.BadInput("no repository is named to publish to", hint=hint)
    found = reference.parse(named)
    if found.tag or found.digest:
        raise errors.BadInput(f"{named}: Kiln names the tags itself", hint=f"--to {found.name}; other tags: --alias")
    return found


def _identified(request: Request) -> Request:
    """Return a keyless request with the identity that its signatures will have: in GitHub's workflows it is known."""
    if not request.keyless or (request.identity and request.issuer):
        return request
    server, workflow = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_WORKFLOW_REF")
    if request.identity or request.issuer or not (server and workflow):
        hint = "--identity EMAIL_OR_URI --issuer URL; in a GitHub workflow both are known"
        raise errors.BadInput("--keyless: as whom others shall expect the signature is not known", hint=hint)
    return replace(request, identity=f"{server}/{workflow}", issuer=_GITHUB_ISSUER)


def _wanted(ready: prepare.Ready) -> gate.Wanted:
    job = ready.job
    plan = job.plan
    # the labels have the commit of what is in images; what builds, smokes and judges them is no less to be committed
    commit, dirty = prepare.catalog_state(job.catalog.root)
    _, edited = checkout.state(job.catalog.root)
    return gate.Wanted(
        target=plan.target.slug,
        kind=job.kind,
        flags=_flags(job),
        inputs_sha256=ready.inputs_sha256,
        ledger_sha256=hashlib.sha256(job.rehearsal.ledger).hexdigest(),
        base=ready.base.digest,
        series=tuple((use.id, use.sha256) for use in plan.series),
        recipe_sha256=evidence.recipe_sha256(plan),
        commit=commit,
        dirty=dirty or edited,
    )


def _flags(job: prepare.Job) -> str:
    """Return the flags that name the target on the command line."""
    target, releases = job.plan.target, job.catalog.releases
    words = [f"--variant {target.variant} --arch {target.arch}"]
    words += [f"--release {target.release}"] if target.release != releases.default_release else []
    words += [f"--model {target.model}"] if target.model != DEFAULT_MODEL else []
    words += ["--twin"] if job.twin else []
    return " ".join(words)
