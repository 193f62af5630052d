"""Accepts an image or not: patched files hashed in it, its ledger the rehearsal's, its versions and size as set."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from kiln import errors
from kiln.engine import short_lived
from kiln.image import base_image, budget, files, inspect, versions
from kiln.image.rehearsal import DISTRIBUTION, describe
from kiln.trees import answer, containers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from docker import DockerClient
    from docker.models.containers import Container

    from kiln.image.base_image import Found
    from kiln.image.prepare import Job
    from kiln.registry.records import Descriptor

LEDGER = "/opt/kiln/ledger.json"
_VERIFY_TIMEOUT_S = 120


def in_engine(job: Job, client: DockerClient, digest: str) -> bytes:
    """Return the ledger of an image in the engine.

    Its own Python says first what it holds; then it is read without being run. Raises NotApplied where a patched file
    is not as it was rehearsed, Findings where another version is in the image than its pins say.
    """
    sent = [job.context / "patch" / name for name in ("kiln-patch.pyz", "series")]
    patcher, series = (f"{containers.ASKED}/{path.name}" for path in sent)
    argv = (patcher, "verify", "--json", "--series", series)
    with containers.answering(client, digest, sent, argv, seconds=_VERIFY_TIMEOUT_S) as (place, result):
        said = answer.read(argv, result, tree=place.name, again="./inv build")
        if said.exit_code:
            found = [f"{digest}: not what the rehearsal gave, so it was not tagged", *describe(said.report)]
            raise errors.NotApplied("\n".join(found), hint="look for a step after the patch step in the Dockerfile")
    with short_lived.created(client, digest, entrypoint=["true"]) as container:
        check_files(job, container, said.root)
        ledger = inspect.read_file(container, LEDGER)
        facts = None if job.twin else inspect.read_file(container, versions.FILE)
    compare(job, digest, ledger, hint=f"the base is not this release's: docker run --rm {digest} cat {LEDGER}")
    if facts is not None:
        check_versions(job, facts)
    return ledger


def check_files(job: Job, container: Container, told: str) -> None:
    """Hash the patched files wherever a Python would find them; `told` is where the image's own Python does.

    The container never ran: nothing of the image can show other bytes than those that are in its layers.
    """
    roots = dict.fromkeys((told, *files.roots(container, DISTRIBUTION)))
    expected = {f"{root}/{path}": post for root in roots for use in job.plan.series for path, _, post in use.files}
    wrong = list(_differences(container, expected))
    if wrong:
        raise errors.NotApplied(
            "\n".join([f"{job.name}: not what the rehearsal gave, when it is read without running it:", *wrong]),
            hint="the base changes files behind the patch step: check the base's digest",
        )


def _differences(container: Container, expected: Mapping[str, str | None]) -> Iterator[str]:
    for path, post in sorted(expected.items()):
        data = inspect.find_file(container, path)
        sha256 = None if data is None else hashlib.sha256(data).hexdigest()
        if sha256 != post:
            yield f"  {path}: sha256 {sha256 or 'none'}, not {post or 'none'}"


def check_settings(job: Job, base: Found, made: Mapping[str, Any]) -> None:
    """Raise NotApplied for a real image whose containers are started in another way than those of its base."""
    wrong = [] if job.twin else list(base_image.changed(base.config, made))
    if wrong:
        told = "\n  ".join([f"{job.name}: its containers are not started as those of its base:", *wrong])
        raise errors.NotApplied(told, hint="look for ENV, USER or the like in the Dockerfile")


def check_versions(job: Job, data: bytes) -> None:
    """Compare the versions that a real image's build read in it with the pins; say what no pin says anything of."""
    facts = versions.parse(data)
    versions.require(job.plan, facts)
    for line in versions.compare(job.plan, facts).recorded:
        job.reporter.note(f"  {line}")


def check_budget(job: Job, size: int, layers: int, base: Sequence[Descriptor]) -> None:
    """Raise Findings for an image that adds more to its base than its budget."""
    found = budget.added(size=size, layers=layers, base=[layer.size for layer in base])
    kind: budget.Kind = "twin" if job.twin else "patched"
    installs = 0 if job.twin else len(job.plan.installs)
    allowed = budget.allowed(job.catalog.releases.budgets, kind, installs=installs)
    budget.require(job.name, found, allowed)


def compare(job: Job, digest: str, ledger: bytes, *, hint: str) -> None:
    """Raise NotApplied unless a ledger is byte for byte the rehearsal's."""
    if ledger != job.rehearsal.ledger:
        raise errors.NotApplied(f"{digest}: its ledger is not the rehearsal's, so it was not tagged", hint=hint)
