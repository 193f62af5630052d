"""Makes a plan into a build: what its Dockerfile reads is staged, its base named by digest, its inputs hashed."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, files, process
from kiln.image import bake, base, context, inputs, installs
from kiln.image.rehearsal import Rehearsal, rehearse
from kiln.lock import packages as locked_packages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.catalog import Catalog, records
    from kiln.engine import Engine
    from kiln.plan import Plan
    from kiln.report import Reporter

_CATALOG = (
    *("images", "patches", "recipes", "src/kiln/patching", "src/kiln/image"),
    # what proves a patch is in no image
    *(":(exclude,glob)patches/*/tests/**", ":(exclude,glob)patches/*/EVIDENCE.md", ":(exclude)patches/conftest.py"),
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One build after its rehearsal: `context` is the staged folder that the Dockerfile reads."""

    catalog: Catalog
    plan: Plan
    twin: bool
    rehearsal: Rehearsal
    engine: Engine
    reporter: Reporter

    @property
    def name(self) -> str:
        return self.context.name

    @property
    def kind(self) -> str:
        return "twin" if self.twin else self.plan.image.kind

    @property
    def context(self) -> Path:
        return context_of(self.catalog, self.plan, twin=self.twin)


@dataclass(frozen=True, kw_only=True)
class Base:
    """The image a build begins with: `name` is for people, `reference` is pulled, empty for one made here."""

    name: str
    digest: str
    reference: str = ""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A build that can be run: `inputs_sha256` is over all that it reads."""

    job: Job
    base: Base
    build: bake.Build
    inputs_sha256: str


def context_of(catalog: Catalog, plan: Plan, *, twin: bool) -> Path:
    """Return the folder that is staged for a build."""
    return catalog.state / "contexts" / (f"{plan.target.slug}-twin" if twin else plan.target.slug)


def twin_of(plan: Plan) -> records.Twin:
    """Return what the twin of a plan is made of; raises BadInput when the release has none."""
    if plan.twin:
        return plan.twin
    raise errors.BadInput(
        f"release {plan.target.release} has no twin: {plan.no_twin_because}",
        hint="see which releases have one: ./inv plan --list",
    )


def rehearse_target(catalog: Catalog, plan: Plan, *, twin: bool, reporter: Reporter) -> Rehearsal:
    """Apply the series to the files of the wheel that the image will hold."""
    source = twin_of(plan).wheel if twin else plan.wheel
    with reporter.step(f"rehearse {len(plan.series)} patches on {source.file}"):
        return rehearse(plan, catalog, source)


@contextlib.contextmanager
def staged(job: Job, *, secrets: Path | None = None) -> Iterator[Ready]:
    """Stage a job's files for as long as its build lasts; one build at a time has the folder.

    Secrets are gone afterwards, unless a folder is given that keeps them.
    """

    def waiting() -> None:
        job.reporter.note(f"{job.name} is being built by another run: waiting for its end")

    with files.locked(job.context, waiting=waiting), tempfile.TemporaryDirectory(prefix="kiln-secrets-") as scratch:
        held = secrets or Path(scratch)
        begun, build = _twin_build(job, held) if job.twin else _real_build(job)
        yield Ready(job=job, base=begun, build=build, inputs_sha256=inputs.sha256(build))


def _twin_build(job: Job, secrets: Path) -> tuple[Base, bake.Build]:
    catalog, twin = job.catalog, twin_of(job.plan)
    bases, data = catalog.state / "bases", catalog.root / "images/twin/base"
    if twin.base == "debian":
        root, builder = base.ensure_both(bases, job.reporter, data=data)
        named = {"base": root.context, "builder": builder.context}
        begun = Base(name="debian", digest=root.digest)
        packages = [asdict(package) for package in root.packages]
        for others in locked_packages.differences(catalog.lock, base=root.packages, builder=builder.packages):
            job.reporter.note(others)
    else:
        begun = _locked_base(job, twin.base)
        named = {"builder": base.ensure("builder", bases, job.reporter, data=data).context}
        packages = []
    pins = job.plan.as_data() | {"kind": job.kind, "base": {"digest": begun.digest, "packages": packages}}
    with job.reporter.step("stage the build context"):
        context.stage(job.context, job.rehearsal, pins)
        context.stage_twin(job.context, catalog, twin, catalog.releases.releases[job.plan.target.release])
        tools = context.stage_tools(catalog.state, twin)
        secret_files = context.stage_secrets(secrets, catalog.config.ca)
    return begun, bake.Build(
        name=job.name,
        dockerfile=catalog.root / "images/twin/Dockerfile",
        context=job.context,
        contexts=tools | named,
        args={"BASE": begun.reference or "base"},
        inherited=bake.PROXIES,
        secrets=secret_files,
        labels=labels(job, begun),
        network=job.engine.build_network,
    )


def _real_build(job: Job) -> tuple[Base, bake.Build]:
    catalog, plan, kind = job.catalog, job.plan, job.plan.image.kind
    release = catalog.releases.releases[plan.target.release]
    begun = _locked_base(job, (release.rocm if kind == "rocm" else release.cuda).image)
    with job.reporter.step("stage the build context"):
        pins = plan.as_data() | {"kind": job.kind, "base": {"digest": begun.digest}}
        context.stage(job.context, job.rehearsal, pins, catalog.root / "images" / kind / "tuned")
        installs.stage(job.context, catalog, plan)
        named = installs.contexts(catalog, plan)
    return begun, bake.Build(
        name=job.name,
        dockerfile=catalog.root / "images" / kind / "Dockerfile",
        context=job.context,
        contexts=named,
        args={"BASE": begun.reference} | installs.arguments(plan),
        inherited=bake.PROXIES,
        labels=labels(job, begun),
        network=job.engine.build_network,
    )


def _locked_base(job: Job, image: records.ImagePin) -> Base:
    """Return a base as locked, from where the mirrors say; a tag alone is refused, because it can move."""
    entry = job.catalog.lock.images.get(image.reference)
    if entry is None or entry.manifest is None:
        raise errors.BadInput(
            f"{image.reference}: no digest is known for this image, and a tag can move",
            hint="lock it where its registry can be reached: ./inv lock",
        )
    reference = job.catalog.mirrored(f"{image.repository}@{entry.manifest.digest}")
    return Base(name=image.reference, digest=entry.manifest.digest, reference=reference)


def labels(job: Job, begun: Base) -> dict[str, str]:
    """Return the image's labels: the standard ones are the annotation keys of the OCI image specification."""
    commit, dirty = catalog_state(job.catalog.root)
    return {
        "org.opencontainers.image.title": job.plan.target.slug,
        "org.opencontainers.image.version": job.plan.target.release,
        "org.opencontainers.image.revision": dict(job.plan.pins)["vllm_commit"],
        "org.opencontainers.image.base.name": begun.name,
        "org.opencontainers.image.base.digest": begun.digest,
        "ai.kiln.target": job.plan.target.slug,
        "ai.kiln.kind": job.kind,
        "ai.kiln.series": ",".join(use.id for use in job.plan.series),
        "ai.kiln.ledger.sha256": hashlib.sha256(job.rehearsal.ledger).hexdigest(),
        "ai.kiln.catalog.commit": commit,
        "ai.kiln.catalog.dirty": str(dirty).lower(),
    }


def catalog_state(root: Path) -> tuple[str, bool]:
    """Return the last commit that changed what images are made of, and whether that was edited since.

    ("none", True) outside of git. A commit to anything else leaves labels, and so digests, as they are.
    """
    git = ("git", "-C", str(root))
    at = process.run((*git, "log", "-1", "--format=%H", "--", *_CATALOG))
    if at.code or not at.stdout.strip():
        return "none", True
    return at.stdout.strip(), bool(process.ask((*git, "status", "--porcelain", "--", *_CATALOG)).strip())
