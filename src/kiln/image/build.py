"""Builds the image of a target: rehearse, build, read the ledger back, compare, tag, write the receipt."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from docker.errors import ImageNotFound

from kiln import engine as engines
from kiln import errors
from kiln.image import accept, accept_remote, bake, base_image, buildkit, inspect, prepare, receipt, there
from kiln.image.destination import repository_of
from kiln.registry import client as registries
from kiln.registry import image as images

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from docker import DockerClient

    from kiln.catalog import Catalog
    from kiln.image.bake import Build, Made
    from kiln.image.base_image import Found
    from kiln.image.prepare import Ready
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan
    from kiln.registry.reference import Reference
    from kiln.report import Reporter

_STEP = "build the image"
_NOT_KEPT = {"store": "false"}


@dataclass(frozen=True, kw_only=True)
class How:
    """How a build is made: by which builder, and even of inputs that an image is there for.

    `repository` is where a builder with a store of its own pushes to; without it, what it made is loaded.
    """

    builder: str = ""
    rebuild: bool = False
    repository: str = ""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """An image in a registry: `reference` is HOST/REPOSITORY@DIGEST; `provenance` is BuildKit's, without proxies."""

    reference: str
    digest: str
    base: str
    provenance: dict[str, Any] | None


def run(catalog: Catalog, plan: Plan, *, twin: bool, reporter: Reporter, how: How | None = None) -> Receipt:
    """Build one image, unless its inputs are those of the one that is there.

    It is accepted only after its ledger was read out of it and equals the rehearsal's. Raises NotApplied before
    anything is built when the series does not apply, Missing when there is no engine or base.
    """
    how = how or How()
    to = repository_of(how.repository) if how.repository else None
    with prepared(catalog, plan, twin=twin, reporter=reporter, builder=how.builder) as ready:
        begun = base_image.require(ready)
        made = None if how.rebuild else _unchanged(ready, begun)
        if made is None:
            if to and not buildkit.is_own_driver(ready.job.engine, how.builder):
                made = _built_elsewhere(ready, begun, to, how.builder)
            else:
                built = _build(ready, ready.build, _STEP, how.builder)
                made = replace(_accepted(ready, begun, built.digest), builder=how.builder)
        receipt.write(catalog.output(plan.target.slug), made)
    return made


def push(catalog: Catalog, plan: Plan, *, twin: bool, repository: str, reporter: Reporter) -> Pushed:
    """Push what `run` built, by its digest, to HOST/REPOSITORY; the same builder does it, from the very same inputs.

    Raises BadInput where the inputs are not the receipt's any more, PublishRefused where the digest is another one.
    """
    to = repository_of(repository)
    again = f"./inv build --variant {plan.target.variant} --arch {plan.target.arch}{' --twin' if twin else ''}"
    found = receipt.read(catalog.output(plan.target.slug), "twin" if twin else plan.image.kind)
    if found is None:
        raise errors.BadInput(f"{plan.target.slug}: nothing has been built that could be pushed", hint=again)
    with prepared(catalog, plan, twin=twin, reporter=reporter, builder=found.builder) as ready:
        if found.inputs_sha256 != ready.inputs_sha256:
            raise errors.BadInput(f"{ready.job.name}: what it is made of was edited after it was built", hint=again)
        own = buildkit.is_own_driver(ready.job.engine, found.builder)
        if own:
            # it pushes under a tag alone: the digest, so that the tag never stands for anything else
            _compare(to, _build(ready, ready.build, "compare with what was accepted", found.builder), found, again)
            output = bake.pushed(str(to.tagged(f"digest-{found.digest.removeprefix('sha256:')}"))) | _NOT_KEPT
        else:
            output = bake.pushed_by_digest(to.name)
        made = _build(ready, replace(ready.build, output=output), f"push to {to}", found.builder)
    _compare(to, made, found, again)
    with registries.connect(to.host, ca=catalog.config.ca) as registry:
        if registry.head(to.repository, found.digest) is None:
            raise errors.CommandFailed(
                f"{to}: BuildKit says that it pushed {found.digest}, and the registry has it not"
            )
    return Pushed(
        reference=str(to.at(made.digest)), digest=made.digest, base=found.base, provenance=made.provenance or None
    )


@contextlib.contextmanager
def prepared(catalog: Catalog, plan: Plan, *, twin: bool, reporter: Reporter, builder: str = "") -> Iterator[Ready]:
    """Rehearse a plan and stage its build, for as long as the block lasts."""
    rehearsal = prepare.rehearse_target(catalog, plan, twin=twin, reporter=reporter)
    engine = engines.ensure(catalog.state / "engine", reporter)
    job = prepare.Job(catalog=catalog, plan=plan, twin=twin, rehearsal=rehearsal, engine=engine, reporter=reporter)
    shares = buildkit.is_own_driver(engine, builder)
    with prepare.staged(job) as ready:
        yield ready if shares else replace(ready, build=replace(ready.build, network=bake.OTHERS_NETWORK))


def patch_folder(catalog: Catalog, plan: Plan, *, twin: bool) -> Path:
    """Return the folder that a build has staged for its patch step: kiln-patch.pyz and series/."""
    return prepare.context_of(catalog, plan, twin=twin) / "patch"


def _compare(to: Reference, made: Made, found: Receipt, again: str) -> None:
    if made.digest != found.digest:
        raise errors.PublishRefused(
            f"{to}: from the same inputs came {made.digest}, and {found.digest} was accepted", hint=f"{again} --rebuild"
        )


def _build(ready: Ready, build: Build, step: str, builder: str) -> Made:
    return buildkit.run(build, engine=ready.job.engine, reporter=ready.job.reporter, step=step, builder=builder)


def _built_elsewhere(ready: Ready, begun: Found, to: Reference, builder: str) -> Receipt:
    """Build on a builder with a store of its own; what it pushed is read out of the registry.

    Raises NotApplied where that is not what was rehearsed; it has no tag, so nothing stands for it.
    """
    built = _build(ready, replace(ready.build, output=bake.pushed_by_digest(to.name)), _STEP, builder)
    with registries.connect(to.host, ca=ready.job.catalog.config.ca) as registry:
        pushed = images.open_image(registry, to.repository, built.digest)
        ledger = accept_remote.ledger_of(ready, pushed, begun.layers)
    accept.check_settings(ready.job, begun, base_image.settings(pushed))
    sizes = tuple(layer.size for layer in pushed.manifest.layers)
    accept.check_budget(ready.job, sum(sizes), len(sizes), begun.layers)
    return replace(
        _receipt(ready, built.digest, ledger),
        image=str(to.at(built.digest)),
        compressed_bytes=sum(sizes),
        layers=len(sizes),
        builder=builder,
    )


def _unchanged(ready: Ready, begun: Found) -> Receipt | None:
    """Return the receipt of an image with these inputs, if it is still where the receipt says.

    Raises Findings where it adds more to its base than its budget, which may have changed since.
    """
    job = ready.job
    found = receipt.read(job.catalog.output(job.plan.target.slug), job.kind)
    if found is None or found.thin or found.inputs_sha256 != ready.inputs_sha256:
        return None
    held, why = there.find(found, job.engine, job.catalog.config.ca)
    if held is None or (why := there.differs(held, ready.build.labels)):
        job.reporter.note(f"{found.image or 'the receipt'}: {why}; it is built again")
        return None
    accept.check_budget(job, held.size, held.layers, begun.layers)
    job.reporter.note(f"✓ unchanged: {found.image} has these inputs, and is not built again")
    return replace(
        found,
        compressed_bytes=held.size,
        layers=held.layers,
        base=ready.base.digest,
        series=tuple(use.id for use in job.plan.series),
        ledger_sha256=hashlib.sha256(job.rehearsal.ledger).hexdigest(),
        unchanged=True,
        seconds=dict(job.reporter.timings),
    )


def _accepted(ready: Ready, begun: Found, digest: str) -> Receipt:
    """Verify files, ledger, versions and size of an image in the engine, then tag it; a refused one is removed."""
    job = ready.job
    made_tag = f"kiln/{job.name}"
    with contextlib.closing(job.engine.client()) as client:
        try:
            size, layers = inspect.compressed_bytes(client, digest), len(inspect.layers(client, digest))
            with job.reporter.step("verify the patched files in the image"):
                ledger = accept.in_engine(job, client, digest)
            accept.check_settings(job, begun, client.images.get(digest).attrs.get("Config") or {})
            accept.check_budget(job, size, layers, begun.layers)
            _tag(client, digest, made_tag)
        except BaseException:
            inspect.discard(client, digest)
            raise
    return replace(_receipt(ready, digest, ledger), image=f"{made_tag}:latest", compressed_bytes=size, layers=layers)


def _tag(client: DockerClient, digest: str, name: str) -> None:
    """Give an image its name; the one that had it is removed, unless it has another one or is in use."""
    replaced = ""
    with contextlib.suppress(ImageNotFound):
        replaced = str(client.images.get(f"{name}:latest").id)
    client.images.get(digest).tag(name, tag="latest")
    if replaced and replaced != digest:
        inspect.discard(client, replaced)


def _receipt(ready: Ready, digest: str, ledger: bytes) -> Receipt:
    """Return what is known of an image that was accepted; where it lies and its size are the caller's to say."""
    job, labels = ready.job, ready.build.labels
    return receipt.Receipt(
        target=job.plan.target.slug,
        kind=job.kind,
        image="",
        digest=digest,
        base=ready.base.digest,
        series=tuple(use.id for use in job.plan.series),
        ledger_sha256=hashlib.sha256(ledger).hexdigest(),
        inputs_sha256=ready.inputs_sha256,
        compressed_bytes=0,
        layers=0,
        catalog_commit=labels["ai.kiln.catalog.commit"],
        catalog_dirty=labels["ai.kiln.catalog.dirty"] == "true",
        seconds=dict(job.reporter.timings),
    )
