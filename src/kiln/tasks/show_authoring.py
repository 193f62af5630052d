"""Prints what authoring did: a row for each file and hunk, what was left out, the next command, or JSON alone."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from packaging.version import Version

from kiln import errors, report
from kiln.authoring import worktree
from kiln.patching.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.authoring.export import Export
    from kiln.authoring.intake import HunkIntake, Intake, New
    from kiln.errors import Finding

_HEADERS = ("outcome", "file", "hunk", "expected", "found")


def show_intake(told: New, patch_id: str, file: str, *, dry_run: bool, json: bool) -> None:
    """Print how a diff was judged and what was made of it; raises NotApplied where it does not fit."""
    intake = told.intake
    if json:
        print(report.as_json(intake.as_data()))
    else:
        print(report.table(_HEADERS, list(_rows(intake))))
        for hint in dict.fromkeys(f"{row.outcome.value}: {row.hint}" for row in _wrong(intake) if row.hint):
            print(f"  {hint}")
        for path, why in intake.left_out:
            print(f"left out: {path}: {why}")
    if intake.outcome is not Outcome.APPLIED:
        raise errors.NotApplied(f"{patch_id} was not made: {intake.problem}", hint=_instead(intake, patch_id, file))
    if json:
        return
    for made in told.made:
        print(f"wrote {made}")
    for found in told.todo:
        print(f"to do: {found.where}: {found.problem}{f'{chr(10)}  next: {found.hint}' if found.hint else ''}")
    if dry_run:
        print(f"all of it fits {intake.release}; nothing was written")
    else:
        print(f"made patches/{patch_id}; it is proven when this is: ./inv patch.prove {patch_id}")


def show_worktree(folder: Path, patch_id: str, release: str, *, json: bool) -> None:
    """Print where a worktree is, and what comes next."""
    if json:
        print(report.as_json({"folder": str(folder), "base": worktree.BASE, "patch": patch_id, "release": release}))
        return
    print(folder)
    print(f"  edit    files below {folder.name}/vllm, with any editor; commit or not")
    print(f"  look    git -C {folder} diff {worktree.BASE}")
    print(f"  export  ./inv patch.export {patch_id} --release {release}")
    print(f"  discard ./inv patch.edit {patch_id} --release {release} --discard")


def show_export(told: Export, *, dry_run: bool, json: bool) -> None:
    """Print what became of a worktree, file by file; raises Findings where something was found."""
    if json:
        print(report.as_json(asdict(told)))
    else:
        for file in told.files:
            print(f"{file.what:<8} {file.path}")
        for path, why in told.left_out:
            print(f"left out {path}: {why}")
        _print_findings(told.findings)
    if told.findings:
        count = f"{len(told.findings)} finding{'s' * (len(told.findings) > 1)}"
        raise errors.Findings(f"{told.edition} was not written: {count}")
    if json:
        return
    if not told.changed:
        print(f"unchanged: {told.edition} and its hashes are already this")
    elif dry_run:
        print(f"{told.edition} would be written: red without it, green with it")
    else:
        print(f"wrote {told.edition} and its hashes: red without it, green with it")


def _print_findings(findings: tuple[Finding, ...]) -> None:
    for found in findings:
        print(f"{found.where}: {found.problem}{f'{chr(10)}  next: {found.hint}' if found.hint else ''}")


def _rows(intake: Intake) -> Iterator[tuple[str, ...]]:
    for file in intake.files:
        if not file.hunks:
            yield file.outcome.value, file.path, "", "", ""
        for hunk in file.hunks:
            yield hunk.outcome.value, file.path, str(hunk.number), hunk.expected, hunk.found


def _wrong(intake: Intake) -> Iterator[HunkIntake]:
    return (hunk for file in intake.files for hunk in file.hunks if hunk.outcome is not Outcome.APPLIED)


def _instead(intake: Intake, patch_id: str, file: str) -> str:
    """Return the commands that bring a diff in on a release that takes it, and from there to the wanted one."""
    if intake.advice:
        return intake.advice
    if not intake.fits:
        return f"none of the other releases takes it as it is; make a diff of the files of {intake.release}"
    older = [each for each in intake.fits if Version(each) < Version(intake.release)]
    start = max(older, key=Version) if older else min(intake.fits, key=Version)
    return (
        f"./inv patch.new {patch_id} --from {file} --release {start}; then write its probe.py and tests, and let "
        f"applies.releases of patches/{patch_id}/patch.yaml cover {intake.release}; "
        f"then ./inv patch.port {patch_id} --to {intake.release}"
    )
