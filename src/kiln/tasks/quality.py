"""Tasks over Kiln itself: lint the catalog, check the code, run the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command

if TYPE_CHECKING:
    from invoke.context import Context


@command()
def lint(_: Context) -> None:
    """Check recipes, patches and images, and list every finding at once."""
    from kiln import catalog, plan

    loaded = catalog.load(catalog.find_root())
    targets = list(plan.possible(loaded))
    for model, variant, arch, release in targets:
        plan.make(loaded, model=model, variant=variant, arch=arch, release=release)
    print(f"the catalog holds together: {len(loaded.patches)} patches, {len(targets)} targets")


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
