"""Tasks over the Docker engine that builds and smokes use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command

if TYPE_CHECKING:
    from invoke.context import Context


@command(help={"json": "print the engine as JSON"})
def up(_: Context, *, json: bool = False) -> None:
    """Find a Docker engine, or bring up the embedded one (Linux, root, apt)."""
    from kiln import catalog, engine
    from kiln.report import Reporter
    from kiln.tasks.show import show_engine

    show_engine(engine.ensure(catalog.state_of(catalog.find_root()) / "engine", Reporter()), json=json)


@command(help={"purge": "also remove its packages, images and caches"})
def down(_: Context, *, purge: bool = False) -> None:
    """End the embedded engine; a Docker engine of the machine is never touched."""
    from kiln import catalog, engine
    from kiln.report import Reporter
    from kiln.tasks.show import show_purged

    home = catalog.state_of(catalog.find_root()) / "engine"
    there = home.exists()
    ran = engine.down(home, Reporter(), purge=purge)
    print("embedded engine ended" if ran else "no embedded engine was running")
    if purge:
        show_purged(home, removed=there)


@command(help={"json": "print the status as JSON"})
def status(_: Context, *, json: bool = False) -> None:
    """Say which engine would be used; starts nothing."""
    from kiln import catalog, engine
    from kiln.tasks.show import show_engine_status

    show_engine_status(engine.status(catalog.state_of(catalog.find_root()) / "engine"), json=json)
