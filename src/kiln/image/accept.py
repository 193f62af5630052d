"""Accepts an image or not: patched files hashed in it, its ledger the rehearsal's, its versions and size as set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln import errors
from kiln.image import budget, inspect, versions
from kiln.image.rehearsal import describe
from kiln.trees import answer, containers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from docker import DockerClient

    from kiln.image.prepare import Job
    from kiln.registry.records import Descriptor

LEDGER = "/opt/kiln/ledger.json"
_VERIFY_TIMEOUT_S = 120


def in_engine(job: Job, client: DockerClient, digest: str) -> bytes:
    """Return the ledger of an image in the engine.

    Raises NotApplied where a patched file is not as it was rehearsed, Findings where another version is in the image
    than its pins say.
    """
    files_sent = [job.context / "patch" / name for name in ("kiln-patch.pyz", "series")]
    patcher, series = (f"{containers.ASKED}/{path.name}" for path in files_sent)
    argv = (patcher, "verify", "--json", "--series", series)
    with containers.answering(client, digest, files_sent, argv, seconds=_VERIFY_TIMEOUT_S) as (place, result):
        said = answer.read(argv, result, tree=place.name, again="./inv build")
        if said.exit_code:
            found = [f"{digest}: not what the rehearsal gave, so it was not tagged", *describe(said.report)]
            raise errors.NotApplied("\n".join(found), hint="look for a step after the patch step in the Dockerfile")
        ledger = inspect.read_file(place.container, LEDGER)
        facts = None if job.twin else inspect.read_file(place.container, versions.FILE)
    compare(job, digest, ledger, hint=f"the base is not this release's: docker run --rm {digest} cat {LEDGER}")
    if facts is not None:
        check_versions(job, facts)
    return ledger


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
    if over := budget.check(job.name, found, allowed):
        told = "\n".join(f"{each.where}: {each.problem}" for each in over)
        raise errors.Findings(f"{told}; so it was not tagged", hint=over[0].hint)


def compare(job: Job, digest: str, ledger: bytes, *, hint: str) -> None:
    """Raise NotApplied unless a ledger is byte for byte the rehearsal's."""
    if ledger != job.rehearsal.ledger:
        raise errors.NotApplied(f"{digest}: its ledger is not the rehearsal's, so it was not tagged", hint=hint)
