"""Builds a target whose only change is the series: one layer over its base, in the registry, the base never pulled."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from kiln import engine as engines
from kiln import errors
from kiln.image import (
    accept,
    bake,
    base_image,
    budget,
    buildkit,
    inputs,
    prepare,
    provenance,
    receipt,
    there,
)
from kiln.image.destination import repository_of
from kiln.image.thin import accept as accepting
from kiln.image.thin import base as bases
from kiln.image.thin import engine as engine_age
from kiln.image.thin import layer as making
from kiln.image.thin.layer import Member
from kiln.registry import client, reference
from kiln.registry import image as images
from kiln.upstream import wheel

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog, lock_records
    from kiln.errors import Finding
    from kiln.image.prepare import Ready
    from kiln.image.receipt import Receipt
    from kiln.image.thin.accept import Expected
    from kiln.image.thin.layer import Site
    from kiln.plan import Plan
    from kiln.registry.client import Registry
    from kiln.registry.image import RemoteImage
    from kiln.registry.reference import Reference
    from kiln.report import Reporter

LAYER = "kiln-thin-layer.tar"


def run(catalog: Catalog, plan: Plan, *, repository: str, reporter: Reporter, rebuild: bool = False) -> Receipt:
    """Push the image of a target to HOST/REPOSITORY as a layer over its base, and accept what is then there.

    Nothing is pushed where the repository has the image of the same inputs, unless `rebuild`. Raises BadInput for a
    target that needs more than the series, or whose base was not locked, NotApplied where a file of the base is not
    the wheel's, or the pushed image not what was rehearsed, Missing where the base is not at hand.
    """
    to = repository_of(repository)
    base = bases.required(catalog, plan)
    rehearsal = prepare.rehearse_target(catalog, plan, twin=False, reporter=reporter)
    engine = engines.ensure(catalog.state / "engine", reporter)
    engine_age.require(engine)
    job = prepare.Job(catalog=catalog, plan=plan, twin=False, rehearsal=rehearsal, engine=engine, reporter=reporter)
    with prepare.staged(job) as ready, client.connect(to.host, ca=catalog.config.ca) as registry:
        opened = _opened(ready, registry, to)
        site = bases.site(opened, base, catalog.state, reporter)
        with reporter.step("make the layer"):
            members = _members(ready, base, site)
            _stage(ready, members)
        build = _build(ready, to)
        expected = accepting.Expected(
            base=base,
            plan=plan,
            ledger=rehearsal.ledger,
            members=members,
            labels=build.labels,
            config=base_image.settings(opened),
        )
        made = None if rebuild else _unchanged(ready, build, to)
        made = made or _pushed(ready, build, opened, expected, to=to)
        receipt.write(catalog.output(plan.target.slug), made)
    return made


def _unchanged(ready: Ready, build: bake.Build, to: Reference) -> Receipt | None:
    """Return the receipt of the image with these inputs, if this very repository still has it."""
    job = ready.job
    found = receipt.read(job.catalog.output(job.plan.target.slug), job.kind)
    if found is None or not found.thin or found.inputs_sha256 != inputs.sha256(build):
        return None
    if found.image != f"{to}@{found.digest}":
        return None
    held, why = there.find(found, job.engine, job.catalog.config.ca)
    if held is None or (why := there.differs(held, build.labels)):
        job.reporter.note(f"{found.image}: {why}; it is built again")
        return None
    job.reporter.note(f"✓ unchanged: {found.image} has these inputs, and is not built again")
    return replace(found, unchanged=True, seconds=dict(job.reporter.timings))


def _pushed(ready: Ready, build: bake.Build, opened: RemoteImage, expected: Expected, *, to: Reference) -> Receipt:
    """Push the layer, and accept the image that the registry then hands out."""
    job, registry = ready.job, opened.registry
    _mount(opened, registry, to, job.reporter)
    # a removal lies wrongly in BuildKit's cache, all else may stay there
    removing = any(member.removes for member in expected.members)
    with engine_age.forgetting(job.engine, LAYER) if removing else contextlib.nullcontext():
        made = buildkit.run(build, engine=job.engine, reporter=job.reporter, step=f"push one layer to {to}")
    pushed = images.open_image(registry, to.repository, made.digest)
    with job.reporter.step("read the image back") as progress:
        found = list(accepting.differences(pushed, expected, progress))
    if found:
        _refuse(pushed, reference.parse(build.output["name"]), found)
    provenance.write(job.catalog.output(job.plan.target.slug), job.kind, made.digest, made.provenance)
    return _receipt(ready, pushed, build, to)


def _opened(ready: Ready, registry: Registry, to: Reference) -> RemoteImage:
    """Return the base as its registry has it; raises Missing for one from which nothing can be mounted in `to`."""
    base = ready.base
    at = reference.parse(base.reference)
    if at.host != to.host:
        raise errors.Missing(
            f"the base is {base.reference}: {to.host} cannot mount layers of another registry, so they would be copied",
            hint=f"copy it once: docker buildx imagetools create --tag {to.host}/{at.repository} {base.reference}; "
            f"then in kiln.yaml: mirrors: {{{reference.parse(base.name).name}: {to.host}/{at.repository}}}",
        )
    base_image.require(ready)
    return images.open_image(registry, at.repository, base.digest)


def _members(ready: Ready, base: lock_records.Base, site: Site) -> tuple[Member, ...]:
    """Return the entries of the layer: what the patch engine leaves, stale caches away, and /opt/kiln."""
    job = ready.job
    paths = [path for path, sha256 in bases.pristine(job.plan).items() if sha256]
    before = wheel.read(job.plan.wheel, paths, cache=job.catalog.state / "wheels")
    made = (
        *making.patched(job.rehearsal.series, before, site),
        *making.removals(base.caches),
        *making.read_tar((job.context / "rootfs.tar").read_bytes()),
        Member(path=accept.LEDGER.lstrip("/"), mode=0o644, data=job.rehearsal.ledger),
    )
    return making.whole(made, site)


def _stage(ready: Ready, members: tuple[Member, ...]) -> None:
    """Write the layer into the build's folder; raises Findings for one that is over its budget."""
    tar = making.render(members)
    # BuildKit packs with gzip, too
    added = budget.Added(size=len(zlib.compress(tar)), layers=1)
    budget.require(ready.job.name, added, budget.allowed(ready.job.catalog.releases.budgets, "thin"))
    folder = _folder(ready)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / LAYER).write_bytes(tar)


def _folder(ready: Ready) -> Path:
    return ready.job.context.with_name(f"{ready.job.name}-thin")


def _build(ready: Ready, to: Reference) -> bake.Build:
    """Return the build: pushed, and not kept in the engine, which is what spares it the base."""
    build = replace(
        ready.build,
        name=_folder(ready).name,
        dockerfile=ready.job.catalog.root / "images/thin/Dockerfile",
        context=_folder(ready),
        contexts={},
        args={"BASE": ready.base.reference},
    )
    # Docker's own driver pushes under a tag only; this one never stands for anything else
    made_of = hashlib.sha256(f"{inputs.sha256(build)} {sorted(build.labels.items())}".encode()).hexdigest()
    output = bake.pushed(f"{to}:thin-{made_of}") | {"store": "false", "oci-mediatypes": "true"}
    return replace(build, output=output)


def _mount(opened: RemoteImage, registry: Registry, to: Reference, reporter: Reporter) -> None:
    """Mount the base's layers in the repository, so that BuildKit finds them there; raises Missing where refused."""
    if opened.repository == to.repository:
        return
    layers = dict.fromkeys(layer.digest for layer in opened.manifest.layers)
    with reporter.step(f"mount {len(layers)} layers of the base in {to}"):
        for digest in layers:
            if not registry.mount(to.repository, digest, opened.repository):
                raise errors.Missing(
                    f"{to.host} does not mount {digest} of {opened.repository} in {to.repository}: the base would be "
                    "copied",
                    hint=f"--to {to.host}/{opened.repository}, or a plain build and publish",
                )


def _refuse(pushed: RemoteImage, tagged: Reference, found: list[Finding]) -> NoReturn:
    """Raise for an image that is not what was rehearsed; no tag stands for it any more."""
    here = pushed.registry
    # some registries take away a manifest with its tags, but no tag alone
    here.delete(pushed.repository, tagged.tag) or here.delete(pushed.repository, pushed.digest)
    told = "\n".join(f"  {each.where}: {each.problem}" for each in found)
    raise errors.NotApplied(
        f"{tagged.at(pushed.digest)} is not what was rehearsed, and counts as not built:\n{told}",
        hint="./inv lock --bases, then the same command; or build without --thin",
    )


def _receipt(ready: Ready, pushed: RemoteImage, build: bake.Build, to: Reference) -> Receipt:
    job, digest = ready.job, pushed.manifest.digest
    return receipt.Receipt(
        target=job.plan.target.slug,
        kind=job.kind,
        image=str(to.at(digest)),
        digest=digest,
        base=ready.base.digest,
        series=tuple(use.id for use in job.plan.series),
        ledger_sha256=hashlib.sha256(job.rehearsal.ledger).hexdigest(),
        inputs_sha256=inputs.sha256(build),
        compressed_bytes=sum(layer.size for layer in pushed.manifest.layers),
        layers=len(pushed.manifest.layers),
        catalog_commit=build.labels["ai.kiln.catalog.commit"],
        catalog_dirty=build.labels["ai.kiln.catalog.dirty"] == "true",
        seconds=dict(job.reporter.timings),
        thin=True,
    )
