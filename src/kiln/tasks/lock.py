"""Tasks that resolve what hand-edited files leave open, and write it down."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command

if TYPE_CHECKING:
    from invoke.context import Context


@command(help={"release": "the release whose twin to lock; default: the default release"})
def twin(_: Context, *, release: str = "") -> None:
    """Resolve images/twin/RELEASE.in to exact versions and hashes: images/twin/RELEASE.lock."""
    from kiln import catalog
    from kiln.image import twin_lock

    loaded = catalog.load(catalog.find_root(), locked=False)
    print(twin_lock.write(loaded, release or loaded.releases.default_release))
