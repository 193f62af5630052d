"""Turns a function into an Invoke task whose failures are one message, a hint and an exit code."""

from __future__ import annotations

import functools
import sys
from typing import TYPE_CHECKING, Any

from invoke.exceptions import Exit
from invoke.tasks import task as invoke_task

from kiln import errors

if TYPE_CHECKING:
    from collections.abc import Callable


def command(help: dict[str, str] | None = None, name: str | None = None) -> Callable[[Callable[..., None]], Any]:  # noqa: A002
    """Make an Invoke task: every argument is a flag, and a KilnError becomes its exit code."""

    def wrap(body: Callable[..., None]) -> Any:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                body(*args, **kwargs)
            except errors.KilnError as error:
                raise Exit(_text(error), code=error.exit_code) from error

        return invoke_task(run, help=help or {}, name=name, positional=[])

    return wrap


def _text(error: errors.KilnError) -> str:
    """Return what is wrong, then the next step; red only on a terminal."""
    red, end = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    hint = f"\n  next: {error.hint}" if error.hint else ""
    return f"{red}✗ {error.message}{end}{hint}"
