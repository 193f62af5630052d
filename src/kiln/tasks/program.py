"""The `kiln` program: Invoke over the same namespace as tasks.py, with exit code 2 for a mistyped command line."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
import signal
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from kiln import __version__, errors
from kiln.tasks.command import BROKEN_PIPE, WORDS, drop_unwritable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from invoke.parser.argument import Argument
    from invoke.parser.context import ParserContext

_INTERRUPTED, _TERMINATED = 130, 143  # 128 and the number of the signal
_CLEAN = "containers and half-made files have been removed"


class _Terminated(BaseException):
    """SIGTERM, raised where the program stands, so that everything begun is undone."""


class KilnProgram(Program):
    def core_args(self) -> list[Argument]:
        """Keep `--list`, which a program with its own namespace would lose."""
        return [*super().core_args(), *(arg for arg in self.task_args() if "list" in arg.names[0])]

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002, FBT001, FBT002
        del exit
        try:
            with _terminable():
                self._steps(argv)
        except ParseError as error:
            program = self.binary
            print(f"✗ {self._near(error)}\n  next: {program} --list, or {program} TASK --help", file=sys.stderr)
            sys.exit(errors.BadInput.exit_code)
        except Exit as error:
            if error.message:
                print(error.message, file=sys.stderr)
            _end(error.code)
        except BrokenPipeError:
            _end(BROKEN_PIPE)
        except OSError as error:
            print(f"✗ {errors.of_system(error).message}", file=sys.stderr)
            _end(errors.BadInput.exit_code)
        except KeyboardInterrupt:
            print(f"interrupted; {_CLEAN}", file=sys.stderr)
            _end(_INTERRUPTED)
        except _Terminated:
            print(f"terminated; {_CLEAN}", file=sys.stderr)
            _end(_TERMINATED)

    def _steps(self, argv: list[str] | None) -> None:
        """Do what Invoke's own `run` does before it handles errors."""
        self.create_config()
        self.parse_core(argv)
        sys.dont_write_bytecode = False  # Invoke turns it on, which would make every start slower
        self.parse_collection()
        self.core.unparsed = list(self._with_ids(self.core.unparsed))
        self.parse_tasks()
        self.parse_cleanup()
        self.update_config()
        self.execute()

    def _with_ids(self, words: Sequence[str]) -> Iterator[str]:
        """Yield the words of a command line, with the flag before each bare word of a task that takes such.

        Invoke's positional arguments would take `TASK --help` for a value.
        """
        tasks = {name: self.collection[name] for name in self.collection.task_names}
        valued: set[str] = set()
        waits: list[str] = []
        is_value = False
        for word in words:
            if is_value:
                is_value = False
            elif word.startswith("-"):
                is_value = word in valued
                waits = [flag for flag in waits if flag != word.partition("=")[0]]
            elif word in tasks:
                # not task.get_arguments(), after which Invoke has no help for them any more
                given = inspect.signature(tasks[word].body).parameters
                valued = {
                    _flag(name)
                    for name, each in given.items()
                    if each.kind is each.KEYWORD_ONLY and not isinstance(each.default, bool)
                }
                waits = [_flag(name) for name in getattr(tasks[word].body, WORDS) if name in given]
            elif waits:
                yield waits.pop(0)
            yield word

    def _near(self, error: ParseError) -> str:
        """Say Invoke's parse errors in the words of a command line."""
        message = str(error)
        if needs_value := re.match(r"Flag <Argument: (\w+).*needed value", message):
            return f"--{needs_value[1].replace('_', '-')} needs a value"
        if not message.startswith("No idea what"):
            return message
        name = message.split("'")[1]
        if name.startswith("-"):
            return f"unknown option {name!r}{self._instead(name, error.context)}"
        return errors.unknown("task", name, self.collection.task_names) + " (arguments are flags: --variant mxfp8)"

    def _instead(self, name: str, context: ParserContext | None) -> str:
        """Return what to type for an unknown option: one of the task's, or where a task's option belongs."""
        if not (context and context.name):
            if any(name in each.flags for each in self.parser.contexts.values()):
                return f"; it belongs after a task: {self.binary} TASK {name}"
            near = difflib.get_close_matches(name, self.initial_context.flags, n=1)
            return f"; did you mean {near[0]!r}?" if near else ""
        flags = sorted(context.flags)
        if near := difflib.get_close_matches(name, [*flags, "--help"], n=1):
            return f"; did you mean {near[0]!r}?"
        return f"; {context.name} takes {', '.join(flags) or 'none'}"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Turn the first SIGTERM into an exception; later ones must not keep it from being cleaned up after."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can set a handler
        yield
        return

    def terminate(*_: object) -> NoReturn:
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _flag(name: str) -> str:
    return f"--{name.strip('_').replace('_', '-')}"


def _end(code: int) -> NoReturn:
    unread = drop_unwritable()
    sys.exit(code or (BROKEN_PIPE if unread else 0))


def main() -> None:
    from kiln.tasks import namespace

    binary = os.environ.get("KILN_PROGRAM", "kiln")  # what was typed: ./inv says so
    KilnProgram(name="Kiln", binary=binary, version=__version__, namespace=namespace()).run()
