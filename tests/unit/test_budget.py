"""What a build may put on its base."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiln import catalog, errors
from kiln.catalog import records
from kiln.errors import Finding
from kiln.image import budget
from kiln.image.budget import Added

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "kiln/m3:latest"
BUDGET = records.Budget(added_mb=5, layers=2)
BUDGETS = records.Budgets(
    patched=BUDGET,
    install=records.Budget(added_mb=600, layers=2),
    thin=records.Budget(added_mb=1, layers=1),
    twin=records.Budget(added_mb=300, layers=8),
)


def test_what_is_added_is_what_the_base_does_not_have() -> None:
    assert budget.added(size=31_341_964, layers=4, base=(20_000_000, 11_026_658)) == Added(size=315_306, layers=2)
    assert budget.added(size=256_000_000, layers=5) == Added(size=256_000_000, layers=5)


def test_a_size_that_the_engine_does_not_know_is_not_taken_for_none() -> None:
    assert budget.added(size=0, layers=4, base=(20_000_000, 11_026_658)) == Added(size=None, layers=2)
    assert budget.check(IMAGE, Added(size=None, layers=2), BUDGET) == ()


@pytest.mark.parametrize("found", [Added(size=0, layers=0), Added(size=5_000_000, layers=2)])
def test_what_is_within_its_budget(found: Added) -> None:
    assert budget.check(IMAGE, found, BUDGET) == ()


def test_every_number_above_its_budget_is_found_with_the_budget() -> None:
    assert budget.check(IMAGE, Added(size=5_100_000, layers=3), BUDGET) == (
        Finding(
            where=IMAGE,
            problem="adds 5.1 MB to its base, and its budget is 5 MB",
            hint="see what takes the room: ./inv image.diff BASE kiln/m3:latest; "
            "or raise budgets in images/releases.yaml",
        ),
        Finding(
            where=IMAGE,
            problem="adds 3 layers to its base, and its budget is 2",
            hint="join steps of its Dockerfile; or raise budgets in images/releases.yaml",
        ),
    )
    one = records.Budget(added_mb=5, layers=0)
    assert budget.check(IMAGE, Added(size=0, layers=1), one)[0].problem.startswith("adds 1 layer to its base")
    assert len(budget.check(IMAGE, Added(size=5_000_001, layers=2), BUDGET)) == 1
    assert len(budget.check(IMAGE, Added(size=None, layers=3), BUDGET)) == 1


def test_an_image_above_its_budget_is_refused_with_exit_code_6() -> None:
    budget.require(IMAGE, Added(size=5_000_000, layers=2), BUDGET)
    with pytest.raises(errors.Findings) as caught:
        budget.require(IMAGE, Added(size=5_100_000, layers=3), BUDGET)
    assert caught.value.exit_code == 6
    assert caught.value.message.splitlines() == [
        "kiln/m3:latest: adds 5.1 MB to its base, and its budget is 5 MB",
        "kiln/m3:latest: adds 3 layers to its base, and its budget is 2",
    ]
    assert caught.value.hint.startswith("see what takes the room: ./inv image.diff BASE kiln/m3:latest")


def test_each_kind_has_its_own_budget_and_each_install_adds_to_it() -> None:
    assert budget.allowed(BUDGETS, "patched") == BUDGET
    assert budget.allowed(BUDGETS, "patched", installs=2) == records.Budget(added_mb=1205, layers=6)
    assert budget.allowed(BUDGETS, "thin") == BUDGETS.thin
    assert budget.allowed(BUDGETS, "twin") == BUDGETS.twin


def test_the_catalogs_budgets_are_small() -> None:
    """A patched image is its base: what it adds is counted in megabytes, and one layer of a thin build in less."""
    found = catalog.load(ROOT).releases.budgets
    assert found.patched.added_mb < 10
    assert found.thin == records.Budget(added_mb=found.thin.added_mb, layers=1)


def test_a_budget_below_nothing_is_refused(catalog_copy: Path) -> None:
    file = catalog_copy / "images/releases.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("thin: {added_mb: 3", "thin: {added_mb: -3"))
    with pytest.raises(errors.BadInput, match=r"images/releases.yaml: budgets.thin.added_mb"):
        catalog.load(catalog_copy)
