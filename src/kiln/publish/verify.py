"""Verifies a published image for someone who has nothing but the image: signature, statements, files, base, labels."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln.errors import Finding
from kiln.publish import attached, contents, statements
from kiln.registry import image as images
from kiln.registry import reference as references
from kiln.registry.client import connect
from kiln.registry.records import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.publish.attached import Attached, Signature
    from kiln.publish.sign import Verifier
    from kiln.publish.statements import Patches, Smoke
    from kiln.registry.client import Registry
    from kiln.registry.image import RemoteImage
    from kiln.registry.reference import Reference
    from kiln.report import Reporter


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found; `files` and `layers` count those that were read and compared, `waived` are tiers of the smoke."""

    image: str
    digest: str
    signature: Signature
    signed_by: str
    attestations: tuple[str, ...]
    waived: tuple[str, ...]
    target: str
    slsa_level: int
    files: int
    layers: int
    findings: tuple[Finding, ...]


def run(
    text: str, *, verifier: Verifier | None, reporter: Reporter, full: bool = False, ca: Path | None = None
) -> Verified:
    """Verify one image; what is wrong with it is in the result, what could not be asked is raised."""
    reference = references.parse(text)
    if not (reference.tag or reference.digest):
        raise errors.BadInput(f"{text}: names no tag and no digest", hint=f"kiln verify {reference}:TAG")
    with ExitStack() as stack:
        registry = stack.enter_context(connect(reference.host, ca=ca))
        try:
            with reporter.step(f"find {reference}"):
                image = images.open_image(registry, reference.repository, reference.digest or reference.tag)
        except Damaged as error:
            return _unopened(reference, error)
        with reporter.step("read what is attached to it"):
            found = attached.read(image, verifier, say=reporter.note)
        problems = [*_moved(registry, reference, image), *found.findings]
        about, wrong = _patches(found)
        smoked, unread = _smoked(found)
        problems += [*wrong, *_never_so_called(reference.tag, about), *unread]
        for smoke in smoked:
            problems += contents.smoked(image, smoke)
        for patches in about:
            problems += contents.described(image, patches)
        with reporter.step("read the patched files in it") as detail:
            for patches in about:
                problems += contents.files(image, patches, progress=detail)
        if full:
            with reporter.step("read every layer") as detail:
                problems += contents.layers(image, progress=detail)
    return Verified(
        image=str(reference),
        digest=image.digest,
        signature=found.signature,
        signed_by=verifier.whose if verifier else "",
        attestations=tuple(name for name, kinds in statements.ATTESTATIONS.items() if found.of(*kinds)),
        waived=tuple(dict.fromkeys(tier for smoke in smoked for tier in smoke.waived)),
        target=about[0].target if about else "",
        slsa_level=min((each.slsa.level for each in about), default=0),
        files=sum(len(contents.expected(each)) for each in about),
        layers=len(image.layers) if full else 0,
        findings=tuple(dict.fromkeys(problems)),
    )


def _patches(found: Attached) -> tuple[list[Patches], list[Finding]]:
    """Return every patch predicate that counts, equal ones once, and a finding for each that cannot be read."""
    good: list[Patches] = []
    wrong: list[Finding] = []
    for statement in found.of(statements.PATCHES):
        try:
            read = statements.read_patches(statement.predicate)
        except errors.BadInput as error:
            wrong.append(Finding(where="patches", problem=f"not as Kiln writes it: {error.message}"))
        else:
            good += [read] if read not in good else []
    return good, wrong


def _smoked(found: Attached) -> tuple[list[Smoke], list[Finding]]:
    """Return every smoke predicate that counts, and a finding for each that cannot be read."""
    good: list[Smoke] = []
    wrong: list[Finding] = []
    for statement in found.of(statements.SMOKE):
        try:
            good.append(statements.read_smoke(statement.predicate))
        except errors.BadInput as error:
            wrong.append(Finding(where="smoke evidence", problem=f"not as Kiln writes it: {error.message}"))
    return good, wrong


def _unopened(reference: Reference, error: Damaged) -> Verified:
    """Return what is known of an image whose manifest or config is not what it should be."""
    return Verified(
        image=str(reference),
        digest=reference.digest,
        signature="not checked",
        signed_by="",
        attestations=(),
        waived=(),
        target="",
        slsa_level=0,
        files=0,
        layers=0,
        findings=(Finding(where="image", problem=error.message),),
    )


def _moved(registry: Registry, reference: Reference, image: RemoteImage) -> Iterator[Finding]:
    """Yield a finding where what is asked for is more than the one manifest that is verified, or another by now."""
    if image.index_digest:
        problem = f"is an index, and Kiln publishes none: of {image.index_digest} Docker may run another image"
        yield Finding(where="image", problem=problem)
    if not reference.tag:
        return
    at = registry.head(reference.repository, reference.tag)
    wanted = reference.digest or image.index_digest or image.digest
    if at is None or at.digest != wanted:
        problem = f"names {at.digest if at else 'nothing'} now, not {wanted}: it was moved"
        yield Finding(where=f"tag {reference.tag}", problem=problem)


def _never_so_called(tag: str, about: list[Patches]) -> Iterator[Finding]:
    """Yield a finding where the image was asked for by a tag that none of its publications gave it."""
    if tag and about and not any(tag in patches.tags for patches in about):
        problem = f"this image is {about[0].tags[0]}, and was not published under this name: the tag was moved"
        yield Finding(where=f"tag {tag}", problem=problem)
