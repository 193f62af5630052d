"""The command line: apply, verify and status, for a person or as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kiln.patching import engine, errors, roots, series
from kiln.patching.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.patching.outcomes import FileReport, SeriesReport
    from kiln.patching.roots import Root

_ABOUT = """\
Applies a series of source patches to an installed Python package, all of it or nothing,
and says by content hash whether it is applied. Needs Python 3.10 or newer, nothing else."""
_EXAMPLES = """\
examples:
  kiln-patch.pyz apply --series /opt/kiln/series --fresh   in a Dockerfile: anything but APPLIED fails
  kiln-patch.pyz verify                                    is the tree what its own ledger says?
  kiln-patch.pyz status --series series --json             what is where, for a program

exit codes:
  0  done
  2  bad input: the series, the root, the version or an argument
  5  a patch did not apply, or verify found something; every file is named

SOURCE_DATE_EPOCH, where set, is the modification time of every file that is written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    try:
        return _run(options)
    except errors.PatchingError as error:
        return _failed(error, as_json=options.json)


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="kiln-patch", description=_ABOUT, epilog=_EXAMPLES, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="apply|verify|status")
    apply = commands.add_parser("apply", help="apply the series: all of it or nothing")
    verify = commands.add_parser("verify", help="check files, ledger, RECORD and bytecode; writes nothing")
    status = commands.add_parser("status", help="tell what each file holds; writes nothing, exit code 0")
    for command in (apply, verify, status):
        needed = command is apply
        default = "" if needed else " (default: what the ledger in the tree says)"
        command.add_argument(
            "--series", metavar="DIR", type=Path, required=needed, help=f"folder with series.json{default}"
        )
        command.add_argument(
            "--root", metavar="DIR", type=Path, help="the site-packages to work on (default: found on sys.path)"
        )
        command.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else")
        if not needed:
            command.add_argument(
                "--distribution", default="vllm", metavar="NAME", help="without --series: whose tree (default: vllm)"
            )
    apply.add_argument("--fresh", action="store_true", help="fail unless every patch is applied by this very run")
    apply.add_argument("--copy-ledger", metavar="PATH", type=Path, help="write a copy of the ledger there too")
    apply.add_argument(
        "--wait", metavar="SECONDS", type=float, default=engine.WAIT_S, help="for another run to end (default: 30)"
    )
    return parser


def _run(options: argparse.Namespace) -> int:
    wanted = series.read_series(options.series) if options.series else None
    distribution = wanted.distribution if wanted else options.distribution
    root = roots.find(distribution, root=options.root, release=wanted.release if wanted else None)
    if options.command == "apply":
        assert wanted is not None
        report = engine.apply(wanted, root, wait_s=options.wait)
        code = _apply_code(report, fresh=options.fresh)
        if code == 0 and options.copy_ledger:
            engine.copy_ledger(root, options.copy_ledger)
    else:
        report = engine.verify(root, wanted) if options.command == "verify" else engine.status(root, wanted)
        code = 0 if options.command == "status" or report.outcome is Outcome.ALREADY_APPLIED else 5
    if code != 0 and report.outcome is Outcome.ALREADY_APPLIED:
        report = replace(report, hint="--fresh: this was applied before, not by this run; start from an unpatched tree")
    _tell(options, root, report, code)
    return code


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
        print(line)
    print(f"{root.distribution} {root.version} in {root.path}: {report.outcome.value}")
    if report.hint:
        print(f"next: {report.hint}" if code else report.hint, file=sys.stderr if code else sys.stdout)


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
        print("\n".join(_file_lines(file)), file=sys.stderr)
    print(f"kiln-patch: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"next: {error.hint}", file=sys.stderr)
    return error.exit_code


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, sort_keys=True))
