from __future__ import annotations

import pytest

from kiln import errors


def test_exit_codes() -> None:
    kinds: list[type[errors.KilnError]] = [errors.KilnError, *errors.KilnError.__subclasses__()]
    assert {kind.__name__: kind.exit_code for kind in kinds} == {
        "KilnError": 1,
        "BadInput": 2,
        "Missing": 3,
        "CommandFailed": 4,
        "NotApplied": 5,
        "Findings": 6,
        "SmokeFailed": 7,
        "PublishRefused": 8,
    }


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = {
        (line.split()[1], int(line.split()[2]))
        for line in (errors.__doc__ or "").splitlines()
        if line.startswith(("├", "└"))
    }
    assert drawn == {(kind.__name__, kind.exit_code) for kind in errors.KilnError.__subclasses__()}


def test_an_error_holds_message_and_hint() -> None:
    error = errors.BadInput("a.yaml: id: missing", hint="edit a.yaml")
    assert (str(error), error.message, error.hint) == ("a.yaml: id: missing", "a.yaml: id: missing", "edit a.yaml")
    assert not errors.BadInput("x").hint


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("gfx94", ("gfx942", "sm90"), "unknown arch 'gfx94'; did you mean 'gfx942'?"),
        ("zzz", ("sm90", "gfx942"), "unknown arch 'zzz'; known: gfx942, sm90"),
        ("", ("sm90",), "unknown arch ''; known: sm90"),
    ],
)
def test_unknown(name: str, known: tuple[str, ...], expected: str) -> None:
    assert errors.unknown("arch", name, known) == expected
