"""The command line: apply, verify, revert and status, for a person or as JSON."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kiln.patching import engine, errors, history, roots, series
from kiln.patching.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.patching.outcomes import FileReport, SeriesReport
    from kiln.patching.roots import Root
    from kiln.patching.series import Series

_PROGRAM = "kiln-patch"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SIGNALLED = 128  # a shell adds the number of the signal to it
_ABOUT = """\
Applies a series of source patches to an installed Python package, all of it or nothing,
says by content hash whether it is applied, and takes it back byte for byte.
Needs Python 3.10 or newer, nothing else: no git, no patch, no package."""
_EXAMPLES = """\
examples:
  kiln-patch.pyz apply --series /opt/kiln/series --fresh   in a Dockerfile: anything but APPLIED fails
  kiln-patch.pyz apply --series /kiln && exec vllm serve   at container start: applied once, then found applied
  kiln-patch.pyz verify                                    is the tree what its own ledger says?
  kiln-patch.pyz revert && kiln-patch.pyz apply --series X change from the series in the tree to series X
  kiln-patch.pyz status --series series --json             what is where, for a program

exit codes:
  0  done
  2  bad input: the series, the root, the version or an argument
  5  a patch did not apply, or verify found something; every file is named

A killed run is finished or rolled back by the next apply or revert. Two runs wait for each other.
SOURCE_DATE_EPOCH, where set, is the modification time of every file that is written."""
_COMMANDS = {
    "apply": (
        "apply the series: all of it or nothing",
        """\
Fits every patch exactly (no offset, no fuzz) to exactly the bytes it was made for, compiles what comes
out, and writes all files in one transaction: modules, RECORD, and in the .dist-info folder the ledger and
what revert needs. A tree that holds this very series is left alone. Anything else is named, file by file,
and nothing is written. Bytecode of changed modules is removed. Modes and the times of folders
stay, owners too where root runs it; written files get the time of the run.""",
    ),
    "verify": (
        "check files, ledger, RECORD and bytecode; writes nothing",
        """\
Says whether the tree still holds its series: every file by hash, its line in RECORD, and that no bytecode
of another source lies beside it. With --series: whether it is that series.""",
    ),
    "revert": (
        "take the series back: the files, modes and RECORD there were before",
        """\
Needs the tree only, not the series. Every file must be as the apply left it: a file that was edited since is
named, and nothing is written. Deleted files come back with their modes, created files and folders go, ledger
and RECORD lines with them. Written files get the time of the run. A tree without a series is left alone.""",
    ),
    "status": (
        "tell what each file holds; writes nothing, exit code 0",
        "Says for every patch and file what the tree holds now, by hash.",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        with _signals_heard():
            return _run(options)
    except errors.PatchingError as error:
        return _failed(error, as_json=options.json)
    except _Ended as error:
        name = signal.Signals(error.number).name
        _say(f"{_PROGRAM}: ended by {name}; what was begun is taken back: kiln-patch status says", sys.stderr)
        return _SIGNALLED + error.number


class _Ended(BaseException):
    """A signal that ends the run, raised where it was heard, so that a transaction is taken back."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def _signals_heard() -> Iterator[None]:
    """Turn the first signal that would end this process into an exception; later ones do not disturb the clean-up."""

    def end(number: int, _: object) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise _Ended(number)

    before = {each: signal.signal(each, end) for each in _ENDING if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=_PROGRAM, description=_ABOUT, epilog=_EXAMPLES, formatter_class=form)
    commands = parser.add_subparsers(
        dest="command",
        required=True,
        metavar="|".join(_COMMANDS),
        prog=_PROGRAM,  # given, so that it need not be formatted
    )
    for name, (summary, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=text, formatter_class=form)
        _add_common(command, series_needed=name == "apply")
        if name in {"apply", "revert"}:
            command.add_argument(
                "--wait", metavar="SECONDS", type=float, default=30.0, help="for another run to end (default: 30)"
            )
        if name == "apply":
            command.add_argument(
                "--fresh", action="store_true", help="fail unless every patch is applied by this very run"
            )
            command.add_argument(
                "--copy-ledger", metavar="PATH", type=Path, help="write a copy of the ledger there too"
            )
    return parser


def _add_common(command: argparse.ArgumentParser, *, series_needed: bool) -> None:
    default = "" if series_needed else " (default: what the ledger in the tree says)"
    command.add_argument(
        "--series", metavar="DIR", type=Path, required=series_needed, help=f"folder with series.json{default}"
    )
    command.add_argument(
        "--root", metavar="DIR", type=Path, help="the site-packages to work on (default: found on sys.path)"
    )
    command.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
    if not series_needed:
        command.add_argument(
            "--distribution", default="vllm", metavar="NAME", help="without --series: whose tree (default: vllm)"
        )


def _run(options: argparse.Namespace) -> int:
    wanted = series.read_series(options.series) if options.series else None
    distribution = wanted.distribution if wanted else options.distribution
    root = roots.find(distribution, root=options.root, release=wanted.release if wanted else None)
    report, code = _done(options, root, wanted)
    if options.command == "apply" and report.outcome is Outcome.ALREADY_APPLIED and code:
        report = replace(report, hint="--fresh: this was applied before, not by this run; start from an unpatched tree")
    report = replace(report, hint=report.hint.replace(history.TAKE_BACK, _take_back(options, root)))
    _tell(options, root, report, code)
    return code


def _done(options: argparse.Namespace, root: Root, wanted: Series | None) -> tuple[SeriesReport, int]:
    """Run the command and return its report and exit code."""
    if options.command == "apply":
        assert wanted is not None
        report = engine.apply(wanted, root, wait_s=options.wait)
        code = _apply_code(report, fresh=options.fresh)
        if code == 0 and options.copy_ledger:
            engine.copy_ledger(root, options.copy_ledger)
        return report, code
    if options.command == "revert":
        report = engine.revert(root, wanted, wait_s=options.wait)
        return report, 0 if report.outcome is Outcome.REVERTED else 5
    if options.command == "verify":
        report = engine.verify(root, wanted)
        return report, 0 if report.outcome is Outcome.ALREADY_APPLIED else 5
    return engine.status(root, wanted), 0


def _take_back(options: argparse.Namespace, root: Root) -> str:
    """Return the command line that changes the tree to the series that was asked for."""
    program = (sys.executable, sys.argv[0])
    revert = (*program, "revert", f"--root={root.path}", f"--distribution={root.distribution}")
    apply = (*program, "apply", f"--series={options.series}", f"--root={root.path}")
    return f"{shlex.join(revert)} && {shlex.join(apply)}"


def _apply_code(report: SeriesReport, *, fresh: bool) -> int:
    if not report.outcome.done:
        return 5
    applied_now = all(patch.outcome is Outcome.APPLIED for patch in report.patches)
    return 5 if fresh and not applied_now else 0


def _tell(options: argparse.Namespace, root: Root, report: SeriesReport, code: int) -> None:
    if options.json:
        value = {
            "schema": 1,
            "command": options.command,
            "distribution": root.distribution,
            "version": root.version,
            "root": str(root.path),
            "exit_code": code,
            "report": report.to_json(),
        }
        _print_json(value)
        return
    for line in _lines(report):
        _say(line)
    _say(f"{root.distribution} {root.version} in {root.path}: {report.outcome.value}")
    if report.hint:
        _say(f"next: {report.hint}" if code else report.hint, sys.stderr if code else sys.stdout)


def _say(text: str, stream: TextIO | None = None) -> None:
    """Print what the stream's encoding can hold, and escapes for the rest."""
    out = stream or sys.stdout
    print(text.encode(out.encoding, "backslashreplace").decode(out.encoding), file=out)


def _lines(report: SeriesReport) -> Iterator[str]:
    for patch in report.patches:
        yield f"{patch.outcome.value:<16} {patch.id}"
        if patch.hint:
            yield f"{'':<16} {patch.hint}"
        for file in patch.files:
            yield from _file_lines(file)
    for file in report.files:
        yield from _file_lines(file)


def _file_lines(file: FileReport) -> Iterator[str]:
    hunk = f", hunk {file.hunk}" if file.hunk else ""
    yield f"{file.outcome.value:<16}   {file.path}{hunk}"
    if not file.outcome.done:
        for label, text in (("expected", file.expected), ("found", file.found), ("next", file.hint)):
            if text:
                yield f"{'':<16}     {label + ':':<9} {text}"


def _failed(error: errors.PatchingError, *, as_json: bool) -> int:
    files = error.files if isinstance(error, errors.Interrupted) else ()
    if as_json:
        rows = [file.to_json() for file in files]
        value = {"message": error.message, "hint": error.hint, "files": rows}
        _print_json({"schema": 1, "exit_code": error.exit_code, "error": value})
    for file in files:
        _say("\n".join(_file_lines(file)), sys.stderr)
    _say(f"{_PROGRAM}: {error.message}", sys.stderr)
    if error.hint:
        _say(f"next: {error.hint}", sys.stderr)
    return error.exit_code


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))
