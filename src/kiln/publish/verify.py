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

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.publish.attached import Attached, Signature
    from kiln.publish.sign import Verifier
    from kiln.publish.statements import Patches
    from kiln.registry.client import Registry
    from kiln.registry.image import RemoteImage
    from kiln.registry.reference import Reference
    from kiln.report import Reporter


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was found; `files` and `layers` count those that were read and compared."""

    image: str
    digest: str
    signature: Signature
    signed_by: str
    attestations: tuple[str, ...]
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
        with reporter.step(f"find {reference}"):
            image = images.open_image(registry, reference.repository, reference.digest or reference.tag)
        digest = image.digest
        with reporter.step("read what is attached to it"):
            found = attached.read(registry, reference.repository, digest, verifier)
        problems = [*_moved(registry, reference, image), *found.findings]
        about, wrong = _patches(found)
        problems += [*wrong, *_never_so_called(reference.tag, about)]
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
        digest=digest,
        signature=found.signature,
        signed_by=verifier.whose if verifier else "",
        attestations=tuple(name for name, kinds in statements.ATTESTATIONS.items() if found.of(*kinds)),
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


def _moved(registry: Registry, reference: Reference, image: RemoteImage) -> Iterator[Finding]:
    """Yield a finding where the reference has a tag and a digest that do not belong together any more."""
    if not (reference.tag and reference.digest):
        return
    at = registry.head(reference.repository, reference.tag)
    if at is None or at.digest != image.digest:
        problem = f"names {at.digest if at else 'nothing'} now, not {reference.digest}: it was moved"
        yield Finding(where=f"tag {reference.tag}", problem=problem)


def _never_so_called(tag: str, about: list[Patches]) -> Iterator[Finding]:
    """Yield a finding where the image was asked for by a tag that none of its publications gave it."""
    if tag and about and not any(tag in patches.tags for patches in about):
        problem = f"this image is {about[0].tags[0]}, and was never published as {tag}: the tag was moved"
        yield Finding(where=f"tag {tag}", problem=problem)
