"""Builds the image of a target: rehearse, build, read the ledger back, compare, tag, write the receipt."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import engine as engines
from kiln import errors, files, process
from kiln.image import base, buildx, context, inspect, receipt
from kiln.image.rehearsal import Rehearsal, describe, rehearse
from kiln.trees import answer, containers

if TYPE_CHECKING:
    from docker import DockerClient

    from kiln.catalog import Catalog, records
    from kiln.engine import Engine
    from kiln.plan import Plan
    from kiln.report import Reporter

LEDGER = "/opt/kiln/ledger.json"
_PULL_TIMEOUT_S = 60
_VERIFY_TIMEOUT_S = 120
# how BuildKit's plain progress shows the end of kiln-patch with exit code 5, and a line that a step printed
_PATCH_STEP_FAILED = re.compile(r"kiln-patch\.pyz apply .*exit code: 5\b")
_STEP_OUTPUT = re.compile(r"^#\d+ \d+\.\d+ (.*)$")
_CATALOG = (
    *("images", "patches", "recipes", "src/kiln/patching", "src/kiln/image"),
    # what proves a patch is in no image
    *(":(exclude,glob)patches/*/tests/**", ":(exclude,glob)patches/*/EVIDENCE.md", ":(exclude)patches/conftest.py"),
)
_PROXY_ARGS = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")


@dataclass(frozen=True, kw_only=True)
class _Job:
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
        return _context(self.catalog, self.plan, twin=self.twin)

    @property
    def metadata(self) -> Path:
        return self.context.with_name(f"{self.name}.metadata.json")


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


def run(catalog: Catalog, plan: Plan, *, twin: bool, reporter: Reporter) -> receipt.Receipt:
    """Build one image; it is tagged only after its ledger was read out of it and equals the rehearsal's.

    Raises NotApplied before anything is built when the series does not apply, Missing when there is no engine or base.
    """
    rehearsal = rehearse_target(catalog, plan, twin=twin, reporter=reporter)
    engine = engines.ensure(catalog.state / "engine", reporter)
    job = _Job(catalog=catalog, plan=plan, twin=twin, rehearsal=rehearsal, engine=engine, reporter=reporter)
    with files.locked(job.context), tempfile.TemporaryDirectory(prefix="kiln-secrets-") as secrets:
        build = _twin_build(job, Path(secrets)) if twin else _real_build(job)
        _run_buildkit(job, build)
        digest = json.loads(build.metadata.read_text(encoding="utf-8"))["containerimage.digest"]
        made = _accept(job, digest, build.labels["org.opencontainers.image.base.digest"])
    receipt.write(catalog.output(plan.target.slug), made)
    return made


def patch_folder(catalog: Catalog, plan: Plan, *, twin: bool) -> Path:
    """Return the folder that a build has staged for its patch step: kiln-patch.pyz and series/."""
    return _context(catalog, plan, twin=twin) / "patch"


def _context(catalog: Catalog, plan: Plan, *, twin: bool) -> Path:
    return catalog.state / "contexts" / (f"{plan.target.slug}-twin" if twin else plan.target.slug)


def _run_buildkit(job: _Job, build: buildx.Build) -> None:
    """Run the build; a patch step that fails is a patch that did not apply, with its own words."""
    printed: list[str] = []
    argv = buildx.command(build, docker=job.engine.docker)
    try:
        with job.reporter.step("build the image") as detail:

            def line(text: str) -> None:
                printed.append(text)
                detail(text)

            process.show(argv, line=line, env=job.engine.environment())
    except errors.CommandFailed as error:
        if not any(_PATCH_STEP_FAILED.search(text) for text in printed):
            raise
        said = dict.fromkeys(match[1] for text in printed if (match := _STEP_OUTPUT.match(text)))
        raise errors.NotApplied(
            "\n".join(["the patch step failed in the image, which was not tagged:", *said]),
            hint="the base holds other files than the wheel that was rehearsed: check the base's digest",
        ) from error


def _accept(job: _Job, digest: str, base_digest: str) -> receipt.Receipt:
    """Verify the patched files in the image, compare its ledger with the rehearsal's, then tag it."""
    with contextlib.closing(job.engine.client()) as client:
        try:
            with job.reporter.step("verify the patched files in the image"):
                ledger = _verified_ledger(job, client, digest)
        except errors.NotApplied:
            inspect.discard(client, digest)
            raise
        client.images.get(digest).tag(f"kiln/{job.name}", tag="latest")
        commit, dirty = catalog_state(job.catalog.root)
        return receipt.Receipt(
            target=job.plan.target.slug,
            kind=job.kind,
            image=f"kiln/{job.name}:latest",
            digest=digest,
            base=base_digest,
            series=tuple(use.id for use in job.plan.series),
            ledger_sha256=hashlib.sha256(ledger).hexdigest(),
            compressed_bytes=inspect.compressed_bytes(client, digest),
            layers=len(inspect.layers(client, digest)),
            catalog_commit=commit,
            catalog_dirty=dirty,
            seconds=dict(job.reporter.timings),
        )


def _verified_ledger(job: _Job, client: DockerClient, digest: str) -> bytes:
    """Return the ledger in the image, once every patched file was hashed there and the ledger is the rehearsal's."""
    files_sent = [job.context / "patch" / name for name in ("kiln-patch.pyz", "series")]
    patcher, series = (f"{containers.ASKED}/{path.name}" for path in files_sent)
    argv = (patcher, "verify", "--json", "--series", series)
    with containers.answering(client, digest, files_sent, argv, seconds=_VERIFY_TIMEOUT_S) as (place, result):
        said = answer.read(argv, result, tree=place.name, again="./inv build")
        if said.exit_code:
            found = [f"{digest}: not what the rehearsal gave, so it was not tagged", *describe(said.report)]
            raise errors.NotApplied("\n".join(found), hint="look for a step after the patch step in the Dockerfile")
        ledger = inspect.read_file(place.container, LEDGER)
    if ledger != job.rehearsal.ledger:
        raise errors.NotApplied(
            f"{digest}: its ledger is not the rehearsal's, so it was not tagged",
            hint=f"the base is not this release's: docker run --rm {digest} cat {LEDGER}",
        )
    return ledger


def _twin_build(job: _Job, secrets: Path) -> buildx.Build:
    catalog, twin = job.catalog, twin_of(job.plan)
    bases, data = catalog.state / "bases", catalog.root / "images/twin/base"
    if twin.base == "debian":
        root, builder = base.ensure_both(bases, job.reporter, data=data)
        named = {"base": root.context, "builder": builder.context}
        base_name, base_digest, argument = "debian", root.digest, "base"
        packages = [asdict(package) for package in root.packages]
    else:
        base_name, base_digest, argument = _registry_base(job, twin.base)
        named = {"builder": base.ensure("builder", bases, job.reporter, data=data).context}
        packages = []
    pins = job.plan.as_data() | {"kind": job.kind, "base": {"digest": base_digest, "packages": packages}}
    with job.reporter.step("stage the build context"):
        context.stage(job.context, job.rehearsal, pins)
        context.stage_twin(job.context, catalog, twin, catalog.releases.releases[job.plan.target.release])
        tools = context.stage_tools(catalog.state, twin)
        secret_files = context.stage_secrets(secrets)
    return buildx.Build(
        dockerfile=catalog.root / "images/twin/Dockerfile",
        context=job.context,
        contexts=tools | named,
        args={"BASE": argument},
        inherited=tuple(name for name in _PROXY_ARGS if name in os.environ),
        secrets=secret_files,
        labels=_labels(job, base_name=base_name, base_digest=base_digest),
        network=job.engine.build_network,
        metadata=job.metadata,
    )


def _real_build(job: _Job) -> buildx.Build:
    kind = job.plan.image.kind
    release = job.catalog.releases.releases[job.plan.target.release]
    base_name, base_digest, reference = _registry_base(job, (release.rocm if kind == "rocm" else release.cuda).image)
    with job.reporter.step("stage the build context"):
        pins = job.plan.as_data() | {"kind": job.kind, "base": {"digest": base_digest}}
        context.stage(job.context, job.rehearsal, pins, job.catalog.root / "images" / kind / "tuned")
    return buildx.Build(
        dockerfile=job.catalog.root / "images" / kind / "Dockerfile",
        context=job.context,
        contexts={},
        args={"BASE": reference},
        inherited=(),
        secrets={},
        labels=_labels(job, base_name=base_name, base_digest=base_digest),
        network=job.engine.build_network,
        metadata=job.metadata,
    )


def _registry_base(job: _Job, image: records.ImagePin) -> tuple[str, str, str]:
    """Return name, digest and the reference to pull of a base; a tag alone is refused, because it can move."""
    if image.manifest is None:
        raise errors.BadInput(
            f"{image.reference}: no digest is known for this image, and a tag can move",
            hint=f"add its manifest digest to releases.{job.plan.target.release} in images/releases.yaml",
        )
    reference = job.catalog.mirrored(f"{image.repository}@{image.manifest.digest}")
    with job.reporter.step(f"find {reference}"):
        _require_base(job.engine, reference, image.reference)
    return image.reference, image.manifest.digest, reference


def _require_base(engine: Engine, reference: str, tagged: str) -> None:
    """Raise Missing, with the exact image and what to do, when no registry hands out the base."""
    argv = (engine.docker, "buildx", "imagetools", "inspect", "--raw", reference)
    try:
        process.ask(argv, env=engine.environment(), timeout_s=_PULL_TIMEOUT_S)
    except errors.CommandFailed as error:
        raise errors.Missing(
            f"the series applies, but its base image cannot be pulled: {reference} ({tagged})\n"
            f"{error.message.splitlines()[-1]}",
            hint=f"docker pull {reference}; or name a mirror in kiln.yaml: mirrors: {{docker.io/vllm: MIRROR/vllm}}",
        ) from error


def _labels(job: _Job, *, base_name: str, base_digest: str) -> dict[str, str]:
    """Return the image's labels: the standard ones are the annotation keys of the OCI image specification."""
    commit, dirty = catalog_state(job.catalog.root)
    return {
        "org.opencontainers.image.title": job.plan.target.slug,
        "org.opencontainers.image.version": job.plan.target.release,
        "org.opencontainers.image.revision": dict(job.plan.pins)["vllm_commit"],
        "org.opencontainers.image.base.name": base_name,
        "org.opencontainers.image.base.digest": base_digest,
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
