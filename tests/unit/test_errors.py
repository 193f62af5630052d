from __future__ import annotations

import sys
from pathlib import Path

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
        ("MXFP8", ("bf16", "mxfp8"), "unknown arch 'MXFP8'; did you mean 'mxfp8'?"),
        ("minimax/m3", ("MiniMax/M3",), "unknown arch 'minimax/m3'; did you mean 'MiniMax/M3'?"),
        ("x", (), "unknown arch 'x'; none is known"),
    ],
)
def test_unknown(name: str, known: tuple[str, ...], expected: str) -> None:
    assert errors.unknown("arch", name, known) == expected


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file or directory", "/proc/nope"), "/proc/nope: No such file or directory"),
        (OSError(18, "Invalid cross-device link", "a", None, b"b"), "a -> b: Invalid cross-device link"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("no gzip file"), "OSError: no gzip file"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_what_the_system_refuses(error: OSError, message: str) -> None:
    found = errors.of_system(error)
    assert (found.message, found.exit_code) == (message, 2)


def test_a_lost_module_is_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = ImportError("numpy is broken")
    outer.__cause__ = ModuleNotFoundError("No module named 'numpy._core'", name="numpy._core")
    monkeypatch.setattr(sys, "prefix", "/somewhere")
    found = errors.damaged(outer)
    assert found is not None
    assert found.message == "the environment /somewhere is damaged: numpy._core cannot be imported"
    assert found.hint == "install Kiln into it again: pip install -e ."
    monkeypatch.setattr(sys, "prefix", str(Path(errors.__file__).parents[2] / ".venv"))
    found = errors.damaged(outer)
    assert found is not None
    assert found.message == "the environment .venv is damaged: numpy._core cannot be imported"
    assert (found.hint, found.exit_code) == ("rm -rf .venv, then the same command", 3)


@pytest.mark.parametrize("name", ["kiln.plan", "json", None])
def test_an_import_error_of_our_own_is_no_damage(name: str | None) -> None:
    assert errors.damaged(ImportError("x", name=name)) is None
