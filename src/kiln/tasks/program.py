"""The `kiln` program: Invoke over the same namespace as tasks.py, with exit code 2 for a mistyped command line."""

from __future__ import annotations

import difflib
import os
import re
import sys
from typing import TYPE_CHECKING

from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from kiln import __version__, errors

if TYPE_CHECKING:
    from invoke.parser.argument import Argument

_INTERRUPTED, _BROKEN_PIPE = 130, 141  # 128 and the number of the signal


class KilnProgram(Program):
    def core_args(self) -> list[Argument]:
        """Keep `--list`, which a program with its own namespace would lose."""
        return [*super().core_args(), *(arg for arg in self.task_args() if "list" in arg.names[0])]

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002, FBT001, FBT002
        del exit
        try:
            self.create_config()
            self.parse_core(argv)
            sys.dont_write_bytecode = False  # Invoke turns it on, which would make every start slower
            self.parse_collection()
            self.parse_tasks()
            self.parse_cleanup()
            self.update_config()
            self.execute()
        except ParseError as error:
            print(f"✗ {self._near(str(error))}\n  next: kiln --list, or kiln TASK --help", file=sys.stderr)
            sys.exit(errors.BadInput.exit_code)
        except Exit as error:
            if error.message:
                print(error.message, file=sys.stderr)
            sys.exit(error.code)
        except BrokenPipeError:  # the reader, such as head, has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(_BROKEN_PIPE)
        except KeyboardInterrupt:
            print("interrupted; what was started has been removed", file=sys.stderr)
            sys.exit(_INTERRUPTED)

    def _near(self, message: str) -> str:
        """Say Invoke's parse errors in the words of a command line."""
        if needs_value := re.match(r"Flag <Argument: (\w+).*needed value", message):
            return f"--{needs_value[1].replace('_', '-')} needs a value"
        if not message.startswith("No idea what"):
            return message
        name = message.split("'")[1]
        if name.startswith("-"):
            flags = {flag for context in self.parser.contexts.values() for flag in context.flags}
            near = difflib.get_close_matches(name, flags, n=1)
            return f"unknown option {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        return errors.unknown("task", name, self.collection.task_names) + " (arguments are flags: --variant mxfp8)"


def main() -> None:
    from kiln.tasks import namespace

    KilnProgram(name="Kiln", binary="kiln", version=__version__, namespace=namespace()).run()
