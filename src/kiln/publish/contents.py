"""Compares an image in a registry with its predicates: tag, labels, base layers, ledger, patched files, smoke."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln import errors
from kiln.errors import Finding
from kiln.patching import errors as patching_errors
from kiln.patching import ledger as ledgers
from kiln.publish.tags import immutable_tag
from kiln.registry import layers as remote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from kiln.patching.series import FileChange
    from kiln.publish.statements import Patches, PatchFile, Smoke
    from kiln.registry.image import RemoteImage
    from kiln.registry.layers import Found


def expected(patches: Patches) -> dict[str, str | None]:
    """Return the sha256 of every patched file by its path in the image, None for one that must not be there."""
    return {f"{patches.root}/{file.path}": file.post for patch in patches.patches for file in patch.files}


def described(image: RemoteImage, patches: Patches) -> Iterator[Finding]:
    """Yield where labels or base layers are not those of the predicate."""
    if not patches.tags[0].endswith(immutable_tag("", patches.ledger.series)):
        yield Finding(where="patches", problem=f"{patches.tags[0]} is not the tag of series {patches.ledger.series}")
    labels = {
        "ai.kiln.target": patches.target,
        "ai.kiln.kind": patches.kind,
        "ai.kiln.series": ",".join(patch.id for patch in patches.patches),
        "ai.kiln.ledger.sha256": patches.ledger.sha256,
        "ai.kiln.catalog.commit": patches.catalog_commit,
        "ai.kiln.catalog.dirty": "false",
        "org.opencontainers.image.base.name": patches.base.name,
        "org.opencontainers.image.base.digest": patches.base.digest,
    }
    yield from _differing("label", labels, image.labels)
    begins = (
        ("layers", patches.base.layers, [layer.digest for layer in image.layers]),
        ("diff ids", patches.base.diff_ids, list(image.diff_ids)),
    )
    for name, wanted, found in begins:
        if tuple(found[: len(wanted)]) != wanted:
            problem = f"the first {len(wanted)} {name} of the image are not those of {patches.base.name}"
            yield Finding(where=f"base {patches.base.digest}", problem=problem)


def files(image: RemoteImage, patches: Patches, *, progress: Callable[[str], None]) -> Iterator[Finding]:
    """Yield every patched file, and the ledger, that is not in the image as the predicate has it."""
    wanted = expected(patches)
    try:
        found = remote.find(image, {patches.ledger.path, *wanted}, progress=progress)
    except (errors.Findings, errors.BadInput) as error:
        yield Finding(where="layers", problem=error.message)
        return
    for path, sha256 in {**wanted, patches.ledger.path: patches.ledger.sha256}.items():
        held = _held(found.get(path))
        if held != (sha256 or ""):
            yield Finding(where=path, problem=f"holds {held or 'nothing'}, not {sha256 or 'nothing'}")
    if ledger := found.get(patches.ledger.path):
        yield from _ledger(ledger.data or b"", patches)


def layers(image: RemoteImage, *, progress: Callable[[str], None]) -> Iterator[Finding]:
    """Yield every layer whose bytes, packed or unpacked, are not those that manifest and config name."""
    for number in range(len(image.layers)):
        try:
            remote.scan(image, lambda _: False, layers=(number,), progress=progress)
        except errors.Findings as error:
            yield Finding(where="layers", problem=error.message)


def smoked(image: RemoteImage, smoke: Smoke) -> Iterator[Finding]:
    """Yield what is wrong with the smoke evidence: it is of another image, or a check of it has failed."""
    found = {smoke.evidence.image_digest, smoke.evidence.smoke.image}
    found |= {smoke.waiver.digest} if smoke.waiver else set()
    if found != {image.digest}:
        problem = f"is about {' and '.join(sorted(found))}, not about {image.digest}"
        yield Finding(where="smoke evidence", problem=problem)
    for check in smoke.evidence.smoke.checks:
        if check.status == "failed":
            why = "; ".join(each.problem for each in check.findings) or "no reason"
            yield Finding(where="smoke evidence", problem=f"{check.tier}/{check.name} failed: {why}")


def _ledger(data: bytes, patches: Patches) -> Iterator[Finding]:
    """Yield what the ledger in the image says otherwise than the predicate."""
    where = patches.ledger.path
    try:
        ledger = ledgers.parse(data, where)
    except patching_errors.PatchingError as error:
        yield Finding(where=where, problem=error.message)
        return
    said = [(each.id, each.edition_sha256, _rows(each.files)) for each in ledger.patches]
    meant = [(each.id, each.edition_sha256, _rows(each.files)) for each in patches.patches]
    if ledger.series != patches.ledger.series or said != meant:
        yield Finding(where=where, problem="names other patches, editions or files than the predicate")


def _differing(kind: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Finding]:
    for name, value in wanted.items():
        if found.get(name, "") != value:
            yield Finding(where=f"{kind} {name}", problem=f"is {found.get(name)!r}, the predicate says {value!r}")


def _rows(changes: Iterable[FileChange | PatchFile]) -> list[tuple[str, str | None, str | None]]:
    return [(change.path, change.pre, change.post) for change in changes]


def _held(found: Found | None) -> str:
    """Return the sha256 of what an image has at a path, or what else is there."""
    if found is None:
        return ""
    return found.sha256 if found.kind == "file" else f"a {found.kind}"
