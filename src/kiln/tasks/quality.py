"""Tasks over Kiln itself: lint the catalog, check the code, run the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command

if TYPE_CHECKING:
    from invoke.context import Context


@command(help={"json": "print the findings as JSON"})
def lint(_: Context, *, json: bool = False) -> None:
    """Check recipes, patches and images: names and files by loading them, then every finding of patch.lint."""
    from kiln import catalog, plan
    from kiln import lint as linting
    from kiln.tasks.show_patch import show_findings

    loaded = catalog.load(catalog.find_root())
    targets = len(list(plan.possible(loaded)))
    clean = f"the catalog holds together: {len(loaded.patches)} patches, {targets} targets"
    show_findings(linting.patches(loaded), clean, json=json)


@command()
def check(_: Context) -> None:
    """Format, lint, types, unit tests: what must be green before a commit."""
    from kiln.tasks import suites

    suites.check()


@command()
def test(_: Context) -> None:
    """Run every test: check, then network and container tests, bringing up what they need."""
    from kiln.tasks import suites

    suites.test()
