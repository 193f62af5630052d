"""Locks the images of the catalog: asks the registries, decides, reads bases, and writes images/lock.json."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from kiln import errors
from kiln.catalog import lock_records, locked
from kiln.errors import Finding
from kiln.lock import ask, base, judge, reading, store
from kiln.registry import client, image, reference

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kiln.catalog import Catalog
    from kiln.catalog.locked import Pinned
    from kiln.report import Reporter


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a person asks for: `accepted` is an image whose moved tag is taken; `bases` reads the layers, too."""

    release: str = ""
    accepted: str = ""
    offline: bool = False
    bases: bool = False
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Result:
    """The lock before and after, which images it was about, what was found, and who gave no answer.

    `damaged` are entries that somebody else had changed: they were made anew. `undone` says of each image what was
    asked for by name, and could not be done because its registry was silent.
    """

    before: lock_records.Lock
    lock: lock_records.Lock
    images: tuple[str, ...]
    findings: tuple[Finding, ...]
    silent: tuple[ask.Silence, ...]
    written: bool
    damaged: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return self.lock != self.before

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """Return the images whose digest only public records vouch for."""
        entries = ((name, self.lock.images[name].manifest) for name in self.images)
        return tuple(name for name, manifest in entries if manifest and not manifest.confirmed)

    @property
    def unknown(self) -> tuple[str, ...]:
        """Return the images that nobody knows a digest of: no build starts from them."""
        return tuple(name for name in self.images if not self.lock.images[name].manifest)


def run(catalog: Catalog, wish: Wish, reporter: Reporter) -> Result:
    """Lock the images of a release, or of all; the file is always whole, and written again after each base is read.

    What differs from the lock is a finding, and stays as it was. Raises BadInput for a release or image that is not
    there; a registry that gives no answer is no error. A damaged entry is made anew, whichever release was asked for.
    """
    chosen = _chosen(catalog, wish)
    job = _Job(catalog=catalog, wish=wish, reporter=reporter)
    questions = [
        ask.Question(
            image=name,
            pulled=catalog.mirrored(name),
            want=judge.expected(pinned.pin, job.old(name)),
        )
        for name, pinned in ({} if wish.offline else chosen).items()
    ]
    answers, silent = ask.every(questions, catalog.config.ca, reporter) if questions else ({}, ())
    entries = {name: job.entry(name, pinned, answers.get(name)) for name, pinned in chosen.items()}
    written = job.write(entries)
    job.undone.extend(_unheard(wish, chosen, entries, answers))
    for name, pinned in chosen.items():
        if wish.bases and name in answers and pinned.releases:
            entries[name] = job.with_base(name, pinned, entries[name])
            written = job.write(entries) or written
        if held := entries[name].base:
            job.findings.extend(base.differences(catalog, name, pinned, held))
            job.findings.extend(base.other_versions(catalog, name, pinned, held))
    return Result(
        before=catalog.lock,
        lock=job.lock(entries),
        images=tuple(entries),
        findings=tuple(job.findings),
        silent=silent,
        written=written,
        damaged=tuple(sorted(job.damaged & chosen.keys())),
        undone=tuple(job.undone),
    )


def _unheard(
    wish: Wish,
    chosen: Mapping[str, Pinned],
    entries: Mapping[str, lock_records.LockedImage],
    answers: Mapping[str, judge.Answer],
) -> Iterator[str]:
    """Yield what was asked for by name, and no registry answered to."""
    for name, pinned in chosen.items():
        if name in answers:
            continue
        if wish.accepted == name:
            yield f"{name}: what its tag holds now is not known, so nothing was accepted"
        if wish.bases and pinned.releases and not entries[name].base:
            yield f"{name}: its layers were not read"


def _chosen(catalog: Catalog, wish: Wish) -> dict[str, Pinned]:
    """Return the images that a wish is about; raises BadInput where there are none of that name."""
    if wish.offline and (wish.accepted or wish.bases):
        what = "--accept-moved" if wish.accepted else "--bases"
        raise errors.BadInput(f"{what} asks a registry, and --offline asks none: leave one of them out")
    pins = locked.pins(catalog.releases)
    if wish.release and wish.release not in catalog.releases.releases:
        raise errors.BadInput(errors.unknown("release", wish.release, catalog.releases.releases))
    uses = {name: {release for release, _ in pinned.uses} for name, pinned in pins.items()}
    broken = locked.damaged(catalog.lock)
    chosen = {
        name: pinned
        for name, pinned in pins.items()
        if not wish.release or wish.release in uses[name] or name in broken
    }
    if wish.accepted and wish.accepted not in chosen:
        raise errors.BadInput(f"--accept-moved: {errors.unknown('image', wish.accepted, chosen)}")
    return chosen


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Makes the entries of one run and writes them; what is found on the way is gathered."""

    catalog: Catalog
    wish: Wish
    reporter: Reporter
    now: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    findings: list[Finding] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)

    @cached_property
    def damaged(self) -> frozenset[str]:
        return locked.damaged(self.catalog.lock)

    def old(self, name: str) -> lock_records.LockedImage | None:
        """Return what an image was locked to; a damaged entry says nothing."""
        return None if name in self.damaged else self.catalog.lock.images.get(name)

    def lock(
        self, entries: Mapping[str, lock_records.LockedImage], now: lock_records.Lock | None = None
    ) -> lock_records.Lock:
        """Return the lock with these entries, and those of the releases that were not asked for."""
        before = self.catalog.lock
        now = now or before
        known = now.images.keys() if self.wish.release else locked.pins(self.catalog.releases).keys()
        return store.merged(now, before, entries, known)

    def write(self, entries: Mapping[str, lock_records.LockedImage]) -> bool:
        """Write these entries where they are not the file's; say whether it was written."""
        return not self.wish.dry_run and store.update(self.catalog.root, lambda now: self.lock(entries, now))

    def entry(self, name: str, pinned: Pinned, answer: judge.Answer | None) -> lock_records.LockedImage:
        """Return what an image is locked to after an answer, or after none."""
        old = self.old(name)
        if answer is None:
            return locked.sealed(judge.entry(pinned.pin, old, judge.expected(pinned.pin, old), self.now))
        is_accepted = self.wish.accepted == name
        ruling = judge.rule(pinned.pin, old, answer, now=self.now, is_accepted=is_accepted)
        self.findings.extend(ruling.findings)
        return locked.sealed(ruling.entry)

    def with_base(self, name: str, pinned: Pinned, made: lock_records.LockedImage) -> lock_records.LockedImage:
        """Return an entry with what its layers hold, read once for a digest and the files that patches touch."""
        paths = base.touched(self.catalog, pinned.releases)
        held = made.base if made.base and made.base.reader == lock_records.READER else None
        if made.manifest is None or (held and not set(paths) - held.files.keys()):
            return made
        at = reference.parse(self.catalog.mirrored(name))
        try:
            with (
                self.reporter.step(f"read the layers of {name}") as progress,
                client.connect(at.host, ca=self.catalog.config.ca) as registry,
            ):
                opened = image.open_image(registry, at.repository, made.manifest.digest)
                read = reading.read(opened, paths, progress)
        except errors.KilnError as error:
            self.findings.append(Finding(where=name, problem=error.message, hint=error.hint))
            if isinstance(error, errors.Missing):
                self.undone.append(f"{name}: its layers were not read")
            return made
        return locked.sealed(made.model_copy(update={"base": read, "locked": self.now}))
