"""Locks the images of the catalog: asks the registries, decides, reads bases, and writes images/lock.json."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kiln import errors, files
from kiln.catalog import lock_records, locked
from kiln.errors import Finding
from kiln.lock import ask, base, judge, reading
from kiln.registry import client, image, reference

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """The lock before and after, which images it was about, what was found, and who gave no answer."""

    before: lock_records.Lock
    lock: lock_records.Lock
    images: tuple[str, ...]
    findings: tuple[Finding, ...]
    silent: tuple[ask.Silence, ...]
    written: bool

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
    there; a registry that gives no answer is no error.
    """
    chosen = _chosen(catalog, wish)
    questions = [
        ask.Question(
            image=name,
            pulled=catalog.mirrored(name),
            want=judge.expected(pinned.pin, catalog.lock.images.get(name)),
        )
        for name, pinned in ({} if wish.offline else chosen).items()
    ]
    answers, silent = ask.every(questions, catalog.config.ca, reporter) if questions else ({}, ())
    job = _Job(catalog=catalog, wish=wish, reporter=reporter)
    entries = {name: job.entry(name, pinned, answers.get(name)) for name, pinned in chosen.items()}
    written = job.write(entries)
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
    )


def _chosen(catalog: Catalog, wish: Wish) -> dict[str, Pinned]:
    """Return the images that a wish is about; raises BadInput where there are none of that name."""
    if wish.offline and (wish.accepted or wish.bases):
        what = "--accept-moved" if wish.accepted else "--bases"
        raise errors.BadInput(f"{what} asks a registry, and --offline asks none: leave one of them out")
    pins = locked.pins(catalog.releases)
    if wish.release and wish.release not in catalog.releases.releases:
        raise errors.BadInput(errors.unknown("release", wish.release, catalog.releases.releases))
    uses = {name: {release for release, _ in pinned.uses} for name, pinned in pins.items()}
    chosen = {name: pinned for name, pinned in pins.items() if not wish.release or wish.release in uses[name]}
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

    def lock(self, entries: Mapping[str, lock_records.LockedImage]) -> lock_records.Lock:
        """Return the lock with these entries, and those of the releases that were not asked for."""
        before = self.catalog.lock
        kept = {name: old for name, old in before.images.items() if self.wish.release and name not in entries}
        return before.model_copy(update={"images": dict(sorted({**kept, **entries}.items()))})

    def write(self, entries: Mapping[str, lock_records.LockedImage]) -> bool:
        """Write the lock with these entries where it is not the file's; say whether it was written."""
        lock, at = self.lock(entries), self.catalog.root / locked.LOCK
        if self.wish.dry_run or (lock == self.catalog.lock and at.exists()):
            return False
        files.write(at, locked.text(lock))
        return True

    def entry(self, name: str, pinned: Pinned, answer: judge.Answer | None) -> lock_records.LockedImage:
        """Return what an image is locked to after an answer, or after none."""
        old = self.catalog.lock.images.get(name)
        if answer is None:
            return judge.entry(pinned.pin, old, judge.expected(pinned.pin, old), self.now)
        is_accepted = self.wish.accepted == name
        ruling = judge.rule(pinned.pin, old, answer, now=self.now, is_accepted=is_accepted)
        self.findings.extend(ruling.findings)
        return ruling.entry

    def with_base(self, name: str, pinned: Pinned, made: lock_records.LockedImage) -> lock_records.LockedImage:
        """Return an entry with what its layers hold, read once for a digest and the files that patches touch."""
        paths = base.touched(self.catalog, pinned.releases)
        if made.manifest is None or (made.base and not set(paths) - made.base.files.keys()):
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
            return made
        return made.model_copy(update={"base": read, "locked": self.now})
