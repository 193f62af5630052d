"""What is said about an image: in-toto statements, each a subject, a type and a predicate."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, ValidationError

from kiln import errors
from kiln.catalog.records import Digest, Path, Record, Sha256, Text
from kiln.publish.evidence import Evidence  # noqa: TC001 - pydantic reads it
from kiln.publish.waiver import Waiver  # noqa: TC001 - pydantic reads it
from kiln.registry import records as registry
from kiln.smoke.records import Tier  # noqa: TC001 - pydantic reads it

if TYPE_CHECKING:
    from collections.abc import Mapping

R = TypeVar("R", bound=Record)
STATEMENT = "https://in-toto.io/Statement/v1"
SIGNATURE = "https://sigstore.dev/cosign/sign/v1"
PATCHES = "https://kiln.ai/attestation/patches/v1"
SMOKE = "https://kiln.ai/attestation/smoke/v1"
SBOM = "https://cyclonedx.org/bom"
PROVENANCE = ("https://slsa.dev/provenance/v1", "https://slsa.dev/provenance/v0.2")

# what every published image carries, by the name that people read
ATTESTATIONS: Mapping[str, tuple[str, ...]] = {
    "SBOM": (SBOM,),
    "provenance": PROVENANCE,
    "patches": (PATCHES,),
    "smoke evidence": (SMOKE,),
}
_STATEMENTS = (STATEMENT, "https://in-toto.io/Statement/v0.1")


@dataclass(frozen=True, kw_only=True)
class Statement:
    """`digests` are those of its subjects; `data` is the statement as it is attached and signed."""

    type: str
    digests: tuple[str, ...]
    predicate: Any
    data: bytes


class PatchFile(Record):
    path: Path
    pre: Sha256 | None
    post: Sha256 | None


class Patch(Record):
    id: Text
    edition_sha256: Sha256
    files: tuple[PatchFile, ...]


class Ledger(Record):
    """`series` names the series: it is over ids, editions and files, in order."""

    path: Path
    sha256: Sha256
    series: Sha256


class Base(Record):
    name: Text
    digest: Digest
    layers: tuple[Digest, ...] = Field(min_length=1)
    diff_ids: tuple[Digest, ...] = Field(min_length=1)


class Slsa(Record):
    """The build level of SLSA that the build meets, and why not a higher one."""

    level: Literal[1, 2]
    because: Text


class Patches(Record):
    """What was patched on which base: the files of `patches` lie under `root`, None where there is no patch.

    `tags` are the names it is published under, the one that never changes first.
    """

    kiln: Text
    target: Text
    kind: Text
    tags: tuple[Text, ...] = Field(min_length=1)
    root: Path | None
    patches: tuple[Patch, ...]
    ledger: Ledger
    base: Base
    pins: dict[Text, str]
    catalog_commit: Text
    inputs_sha256: Text
    slsa: Slsa


class Smoke(Record):
    """What was smoked, and the tiers that were not run and that the waiver stands for."""

    evidence: Evidence
    waiver: Waiver | None
    waived: tuple[Tier, ...]


def make(kind: str, predicate: Any, *, name: str, digest: str) -> Statement:
    """Return the statement of type `kind` about one image; `name` is host/repository."""
    algorithm, _, value = digest.partition(":")
    whole = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {algorithm: value}}],
        "predicateType": kind,
        "predicate": predicate,
    }
    data = json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return Statement(type=kind, digests=(digest,), predicate=predicate, data=data)


def signature(*, name: str, digest: str) -> Statement:
    """Return what cosign signs of an image: that there is this digest, no more."""
    return make(SIGNATURE, {}, name=name, digest=digest)


def provenance_type(predicate: Mapping[str, Any]) -> str:
    """Return which version of SLSA provenance BuildKit wrote."""
    return PROVENANCE[0] if "buildDefinition" in predicate else PROVENANCE[1]


def read(data: bytes) -> Statement:
    """Read a statement that anybody may have written; raises BadInput or Damaged for what is none."""
    whole = registry.read_json(data, "statement")
    kind, predicate = whole.get("predicateType"), whole.get("predicate")
    try:
        digests = tuple(f"{name}:{value}" for each in whole["subject"] for name, value in each["digest"].items())
    except (TypeError, KeyError, AttributeError) as error:
        raise errors.BadInput("no in-toto statement: its subjects have no digests") from error
    if whole.get("_type") not in _STATEMENTS or not isinstance(kind, str) or not isinstance(predicate, dict):
        raise errors.BadInput(f"no in-toto statement of a version that Kiln reads: {whole.get('_type')!r}")
    return Statement(type=kind, digests=digests, predicate=predicate, data=data)


def read_patches(predicate: Any) -> Patches:
    """Read the patch predicate strictly; raises BadInput with one line for each problem."""
    return _strictly(Patches, predicate)


def read_smoke(predicate: Any) -> Smoke:
    """Read the smoke predicate strictly; raises BadInput with one line for each problem."""
    return _strictly(Smoke, predicate)


def lasting(statement: Statement) -> tuple[str, Any]:
    """Return what a statement says, without what is another each time that the same is found out."""
    said = dict(statement.predicate)
    if statement.type == SBOM:
        said.pop("serialNumber", None)
        said["metadata"] = _without(said.get("metadata"), "timestamp")
    elif statement.type == PROVENANCE[0]:
        # when, in which session and out of which cache it was built is another each time: what of and by whom is not
        made = said.get("buildDefinition")
        said = {"of": made.get("resolvedDependencies") if isinstance(made, dict) else made}
    elif statement.type == PROVENANCE[1]:
        said = {"of": said.get("materials"), "by": said.get("builder")}
    return statement.type, said


def _without(value: Any, name: str) -> Any:
    return {key: each for key, each in value.items() if key != name} if isinstance(value, dict) else value


def _strictly(record: type[R], predicate: Any) -> R:
    try:
        return record.model_validate_json(json.dumps(predicate), strict=True)
    except ValidationError as error:
        lines = (f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())
        raise errors.BadInput("\n".join(lines)) from error
