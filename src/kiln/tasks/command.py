"""Turns a function into an Invoke task whose failures are one message, a hint and an exit code."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from typing import TYPE_CHECKING, Any

from invoke.exceptions import Exit
from invoke.tasks import task as invoke_task

from kiln import errors, report

if TYPE_CHECKING:
    from collections.abc import Callable

WORDS = "kiln_words"  # the attribute of a task's body that tells them
BROKEN_PIPE = 141  # 128 and the number of the signal


def command(
    help: dict[str, str] | None = None,  # noqa: A002
    *,
    words: tuple[str, ...] = ("id_",),
) -> Callable[[Callable[..., None]], Any]:
    """Make an Invoke task: every argument is a long flag, and what a user can cause or fix becomes its exit code.

    `words` are the parameters whose flags may be left out, in the order in which their values then stand.
    """

    def wrap(body: Callable[..., None]) -> Any:
        @functools.wraps(body)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                body(*args, **kwargs)
                sys.stdout.flush()
            except errors.KilnError as error:
                raise _exit(error) from error
            except BrokenPipeError as error:  # the reader, such as head, has had enough
                drop_unwritable()
                raise Exit(code=BROKEN_PIPE) from error
            except OSError as error:
                drop_unwritable()
                raise _exit(errors.of_system(error)) from error
            except ImportError as error:
                if damage := errors.damaged(error):
                    raise _exit(damage) from error
                raise

        setattr(run, WORDS, words)
        return invoke_task(run, help=help or {}, positional=[], auto_shortflags=False)

    return wrap


def drop_unwritable() -> bool:
    """Send to nowhere what stdout holds and cannot write, or Python's end stumbles over it; say whether it did."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):  # a stream of a test has no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _exit(error: errors.KilnError) -> Exit:
    """Say what is wrong, then the next step; red only on a terminal that shows colours."""
    red, end = ("\x1b[31m", "\x1b[0m") if report.has_controls(sys.stderr) else ("", "")
    hint = f"\n  next: {error.hint}" if error.hint else ""
    return Exit(f"{red}✗ {error.message}{end}{hint}", code=error.exit_code)
