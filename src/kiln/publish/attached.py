"""Reads what is attached to an image in its registry, and says which of it counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kiln import errors
from kiln.errors import Finding
from kiln.publish import sign, statements
from kiln.registry.records import Damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.publish.sign import Verifier
    from kiln.publish.statements import Statement
    from kiln.registry.client import Registry
    from kiln.registry.image import RemoteImage
    from kiln.registry.records import Descriptor

STATEMENT = "application/vnd.in-toto+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
Signature = Literal["verified", "not checked", "unsigned"]

_KINDS = {statements.SIGNATURE, *(kind for kinds in statements.ATTESTATIONS.values() for kind in kinds)}
_MAX_BYTES = 200_000_000
# a publication attaches five; whoever can write to a repository can attach more, and cosign is asked about each
_MANY = 100


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """One attached statement; `bundle` is empty where nobody signed it."""

    statement: Statement
    bundle: bytes


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What counts of all that is attached: `statements` are about this image, and signed by who should have."""

    signature: Signature
    statements: tuple[Statement, ...]
    findings: tuple[Finding, ...]

    def of(self, *kinds: str) -> tuple[Statement, ...]:
        return tuple(each for each in self.statements if each.type in kinds)


def attach(registry: Registry, repository: str, subject: Descriptor, attachment: Attachment) -> str:
    """Attach a statement, in its bundle where it was signed, as cosign does; return what it is attached as."""
    if attachment.bundle:
        notes = {
            "dev.sigstore.bundle.content": "dsse-envelope",
            "dev.sigstore.bundle.predicateType": attachment.statement.type,
        }
        kind, data = BUNDLE, attachment.bundle
    else:
        notes = {"in-toto.io/predicate-type": attachment.statement.type}
        kind, data = STATEMENT, attachment.statement.data
    return registry.attach(repository, subject, artifact_type=kind, data=data, annotations=notes).digest


def read(image: RemoteImage, verifier: Verifier | None, *, say: Callable[[str], None]) -> Attached:
    """Return what counts of what is attached to an image, and what is missing.

    With a verifier only what it accepts counts; whoever can write to a repository can attach anything to its images.
    """
    digest = image.digest
    found: list[Attachment] = []
    problems: list[Finding] = []
    for each in _all(image, say):
        (found if isinstance(each, Attachment) else problems).append(each)  # type: ignore[arg-type]
    good: list[Statement] = []
    refused: list[tuple[str, str]] = []
    for attachment in found:
        kind = attachment.statement.type
        if kind not in _KINDS:
            continue
        if why := _refused(attachment, digest, verifier):
            refused.append((kind, why))
        else:
            good.append(attachment.statement)
    signed = any(each.bundle and each.statement.type == statements.SIGNATURE for each in found)
    if verifier:
        problems += _missing("signature", (statements.SIGNATURE,), good, refused)
    for name, kinds in statements.ATTESTATIONS.items():
        problems += _missing(name, kinds, good, refused)
    state: Signature = "verified" if verifier else "not checked" if signed else "unsigned"
    return Attached(signature=state, statements=tuple(good), findings=tuple(problems))


def _all(image: RemoteImage, say: Callable[[str], None]) -> Iterator[Attachment | Finding]:
    """Yield every attached statement, and a finding for each that cannot be read."""
    registry, repository = image.registry, image.repository
    try:
        listed = registry.referrers(repository, image.digest)
    except Damaged as error:
        yield Finding(where="attachments", problem=error.message)
        return
    if len(listed) > _MANY:
        say(f"! {len(listed)} attachments, and each is looked at: this takes long")
    for descriptor in listed:
        try:
            if found := _read(registry, repository, image.digest, descriptor):
                yield found
        except (errors.BadInput, errors.Findings) as error:
            yield Finding(where=f"attachment {descriptor.digest}", problem=error.message)
        except errors.Missing as error:
            if registry.head(repository, descriptor.digest) is not None:
                raise  # a registry that does not answer says nothing about the image
            yield Finding(where=f"attachment {descriptor.digest}", problem=error.message)


def _read(registry: Registry, repository: str, digest: str, descriptor: Descriptor) -> Attachment | None:
    manifest = registry.manifest(repository, descriptor.digest)
    kind = manifest.artifact_type
    if kind not in {STATEMENT, BUNDLE}:
        return None
    if manifest.subject is None or manifest.subject.digest != digest:
        of = manifest.subject.digest if manifest.subject else "no image"
        raise errors.BadInput(f"it is listed here, but belongs to {of}")
    if len(manifest.layers) != 1:
        raise errors.BadInput(f"{len(manifest.layers)} layers where one is expected")
    data = registry.read_blob(repository, manifest.layers[0], limit=_MAX_BYTES)
    if kind == STATEMENT:
        return Attachment(statement=statements.read(data), bundle=b"")
    return Attachment(statement=statements.read(sign.payload(data)), bundle=data)


def _refused(attachment: Attachment, digest: str, verifier: Verifier | None) -> str:
    """Return why an attached statement does not count, empty when it does."""
    statement = attachment.statement
    if digest not in statement.digests:
        return f"is about {', '.join(statement.digests) or 'nothing'}"
    if not verifier:
        return ""
    if not attachment.bundle:
        return "is not signed"
    return verifier.problem(attachment.bundle, kind=statement.type, digest=digest)


def _missing(
    name: str, kinds: tuple[str, ...], good: list[Statement], refused: list[tuple[str, str]]
) -> Iterator[Finding]:
    if any(statement.type in kinds for statement in good):
        return
    why = "; ".join(dict.fromkeys(reason for kind, reason in refused if kind in kinds))
    yield Finding(where=name, problem=f"there is one, but it does not count: {why}" if why else "missing")
