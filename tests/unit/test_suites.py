"""What `test` runs, and that it says what it could not run."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from kiln import errors
from kiln.errors import Finding
from kiln.proof import prove
from kiln.proof.prove import Proof
from kiln.tasks import suites

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.proof.cases import Case


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, catalog_copy: Path) -> list[tuple[str, ...]]:
    """Record the commands instead of running them, in a copy of the catalog."""
    monkeypatch.chdir(catalog_copy)
    commands: list[tuple[str, ...]] = []
    monkeypatch.setattr(suites, "_run", commands.append)
    return commands


def test_without_torch_the_patches_are_not_run_and_this_is_said(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(*_: object) -> NoReturn:
        raise errors.Missing("torch-2.13.0: not on the package index")

    monkeypatch.setattr(prove, "run", absent)
    suites.test()
    assert capsys.readouterr().out.splitlines()[-1] == "NOT RUN patch.prove: torch-2.13.0: not on the package index"
    assert [command[1] for command in ran if command[0] == "pytest"] == ["tests/device", "tests/unit"]


def test_a_patch_that_is_not_proven_ends_the_tests_red(
    ran: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(_catalog: object, cases: tuple[Case, ...], _reporter: object) -> tuple[Proof, ...]:
        wrong = Finding(where="patches/toy on 0.31.0", problem="its probe is not red")
        return (Proof(case=cases[0], rules=0, unready=0, tests=0, skipped=(), findings=(wrong,), seconds=0.0),)

    monkeypatch.setattr(prove, "run", found)
    with pytest.raises(errors.Findings, match=r"^1 finding$"):
        suites.test()
    assert ran
