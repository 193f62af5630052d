"""Prints a deployment in one of its forms; what a person must know beside it goes to stderr."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kiln import report
from kiln.deploy import argv, compose, kubernetes, text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kiln.deploy.records import Deployment


def show_notes(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def show_deployment(made: Deployment, form: str, *, json: bool) -> None:
    """Print the form alone, so that it can be piped into what takes it."""
    if json:
        print(report.as_json({"deployment": asdict(made), form: _data(made, form)}))
    elif form == "docker":
        print(argv.text(argv.render(made)))
    elif form == "compose":
        print(text.as_yaml([compose.render(made)]), end="")
    else:
        print(text.as_yaml(kubernetes.render(made)), end="")


def _data(made: Deployment, form: str) -> Any:
    if form == "docker":
        return argv.render(made)
    return compose.render(made) if form == "compose" else kubernetes.render(made)
