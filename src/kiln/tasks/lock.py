"""Tasks that resolve what hand-edited files leave open, and write it down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command

if TYPE_CHECKING:
    from invoke.context import Context

IMAGES = {
    "release": "only the images of this release; default: all",
    "bases": "read the layers of each image, too: gigabytes, once for each digest",
    "accept_moved": "IMAGE:TAG whose tag moved: lock it to what the tag holds now",
    "update": "also look for releases that the catalog lacks, and print what to add",
    "offline": "ask no registry: take the digests from images/releases.yaml and the lock",
    "strict": "exit code 3 where a registry gave no answer",
    "dry_run": "ask and report; write nothing",
    "json": "print the result as JSON and nothing else on stdout",
}


@command(help=IMAGES)
def images(
    _: Context,
    *,
    release: str = "",
    bases: bool = False,
    accept_moved: str = "",
    update: bool = False,
    offline: bool = False,
    strict: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Ask the registries which digests the images have, and write images/lock.json; a build only reads it."""
    from kiln import catalog
    from kiln.lock import run as locking
    from kiln.lock import update as updating
    from kiln.report import Reporter
    from kiln.tasks.show_lock import show_lock

    loaded, reporter = catalog.load(catalog.find_root(), locked=False), Reporter()
    wish = locking.Wish(release=release, accepted=accept_moved, offline=offline, bases=bases, dry_run=dry_run)
    result = locking.run(loaded, wish, reporter)
    proposals = updating.proposals(loaded, reporter, offline=offline) if update else ()
    show_lock(result, proposals, strict=strict, json=json)


@command(help={"release": "the release whose twin to lock; default: the default release"})
def twin(_: Context, *, release: str = "") -> None:
    """Resolve images/twin/RELEASE.in to images/twin/RELEASE.lock, and record the Debian packages below it."""
    from kiln import catalog
    from kiln.catalog import locked
    from kiln.image import twin_lock
    from kiln.lock import packages
    from kiln.report import Reporter

    loaded = catalog.load(catalog.find_root(), locked=False)
    print(twin_lock.write(loaded, release or loaded.releases.default_release))
    if packages.write(loaded, Reporter()):
        print(loaded.root / locked.LOCK)
