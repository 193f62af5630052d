"""Decides what an image is locked to, from what people wrote, what was locked, and what a registry answered; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.catalog import lock_records, locked, records
from kiln.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a registry says: the digests behind a tag, "" for none, and whether it still has the locked manifest.

    `problem` says why an answer cannot be used; then nothing else of it counts.
    """

    index: str = ""
    manifest: str = ""
    has_locked: bool = True
    problem: str = ""

    @property
    def has_tag(self) -> bool:
        return bool(self.index or self.manifest)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The digests that an image has until something else is known."""

    index: lock_records.LockedDigest | None
    manifest: lock_records.LockedDigest | None

    @property
    def top(self) -> lock_records.LockedDigest | None:
        """What the tag itself names: the index, where there is one."""
        return self.index or self.manifest

    @property
    def is_confirmed(self) -> bool:
        """Say whether a registry has named all of it before."""
        return bool(self.manifest and self.manifest.confirmed and (self.index is None or self.index.confirmed))


@dataclass(frozen=True, kw_only=True)
class Ruling:
    entry: lock_records.LockedImage
    findings: tuple[Finding, ...] = ()


def expected(pin: records.ImagePin, old: lock_records.LockedImage | None) -> Expected:
    """Return what is locked; where a person edited the image since, what they wrote comes first."""
    if old and old.inputs_sha256 == locked.inputs_sha256(pin):
        return Expected(index=old.index, manifest=old.manifest)
    index = _edited(pin.index, old.index if old else None)
    same = old if old and old.index == index else None
    return Expected(index=index, manifest=_edited(pin.manifest, same.manifest if same else None))


def entry(
    pin: records.ImagePin, old: lock_records.LockedImage | None, want: Expected, now: str
) -> lock_records.LockedImage:
    """Return an image locked to these digests; one that stays as it was keeps its time, and what its layers hold."""
    is_same_base = bool(old and want.manifest and old.manifest and want.manifest.digest == old.manifest.digest)
    made = lock_records.LockedImage(
        repository=pin.repository,
        tag=pin.tag,
        inputs_sha256=locked.inputs_sha256(pin),
        index=want.index,
        manifest=want.manifest,
        locked=now,
        base=old.base if old and is_same_base else None,
    )
    is_unchanged = old is not None and made.model_copy(update={"locked": old.locked, "sha256": old.sha256}) == old
    return old if old and is_unchanged else made


def rule(
    pin: records.ImagePin, old: lock_records.LockedImage | None, answer: Answer, *, now: str, is_accepted: bool
) -> Ruling:
    """Return what the image is locked to after this answer; what differs is a finding, and stays as it was."""
    want = expected(pin, old)
    if answer.problem:
        problem = Finding(where=pin.reference, problem=f"what the registry says cannot be used: {answer.problem}")
        return Ruling(entry=entry(pin, old, want, now), findings=(problem,))
    offered = _offered(want, answer, now)
    if answer.has_tag and (is_accepted or not _has_moved(want, answer)):
        want = offered
    findings = tuple(_findings(pin, want, answer))
    return Ruling(entry=entry(pin, old, want, now), findings=findings)


def _findings(pin: records.ImagePin, want: Expected, answer: Answer) -> Iterator[Finding]:
    accept = f"look why; then take what the tag holds: ./inv lock --accept-moved {pin.reference}"
    if not answer.has_tag:
        yield Finding(
            where=pin.reference,
            problem="the registry has no such tag",
            hint="" if want.manifest else f"edit {pin.reference} in images/releases.yaml",
        )
    elif _has_moved(want, answer):
        yield Finding(where=pin.reference, problem=_moved(want, answer), hint=accept)
    if want.manifest and not answer.has_locked and want.manifest.digest != answer.manifest:
        yield Finding(
            where=pin.reference,
            problem=f"the locked {want.manifest.digest} is gone from the registry: no build can pull it",
            hint=accept if answer.has_tag else "name a mirror that has it in kiln.yaml, or edit images/releases.yaml",
        )


def _has_moved(want: Expected, answer: Answer) -> bool:
    return any(was and was.digest != now for was, now in _pairs(want, answer))


def _moved(want: Expected, answer: Answer) -> str:
    """Name each digest that differs, old and new, and what vouches for the old one."""
    parts = []
    for name, (was, now) in zip(("index", "linux/amd64"), _pairs(want, answer), strict=True):
        if was and was.digest != now:
            voucher = f"confirmed {was.confirmed}" if was.confirmed else f"public records, confidence {was.confidence}"
            parts.append(f"{name} {was.digest} ({voucher}) -> {now or 'none'}")
    if want.manifest and want.manifest.digest == answer.manifest:
        parts.append(f"linux/amd64 is {answer.manifest} as before")
    if want.index and want.index.digest == answer.index and want.is_confirmed:
        word = "the lock names another image than its own index does"
    else:
        word = "the tag moved" if want.is_confirmed else "the tag holds something else than is locked"
    return f"{word}: {'; '.join(parts)}; it stays locked to the old one"


def _pairs(want: Expected, answer: Answer) -> tuple[tuple[lock_records.LockedDigest | None, str], ...]:
    return (want.index, answer.index), (want.manifest, answer.manifest)


def _offered(want: Expected, answer: Answer, now: str) -> Expected:
    return Expected(
        index=_confirmed(want.index, answer.index, now),
        manifest=_confirmed(want.manifest, answer.manifest, now),
    )


def _confirmed(was: lock_records.LockedDigest | None, digest: str, now: str) -> lock_records.LockedDigest | None:
    """Return a digest that a registry named just now; one that was named before keeps its time."""
    if not digest:
        return None
    if was and was.confirmed and was.digest == digest:
        return was
    return lock_records.LockedDigest(digest=digest, confidence="registry", confirmed=now)


def _edited(
    written: records.DigestPin | None, old: lock_records.LockedDigest | None
) -> lock_records.LockedDigest | None:
    """Return what is written now; what a registry vouches for stays where nothing else is written."""
    if old and old.confirmed and (written is None or old.digest == written.digest):
        return old
    return lock_records.LockedDigest(digest=written.digest, confidence=written.confidence) if written else None
