"""Applies a target's series on the host to the release's real files, before any image is pulled or built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln.catalog import edition_path
from kiln.image import second_opinion
from kiln.patching import errors as patching_errors
from kiln.patching import plan as patching
from kiln.patching.outcomes import Outcome
from kiln.patching.series import FileChange, Patch, Series
from kiln.patching.tree import Memory
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from kiln.catalog import Catalog, records
    from kiln.patching.outcomes import FileReport, SeriesReport
    from kiln.plan import Plan

DISTRIBUTION = "vllm"


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """A series that applies: `ledger` is byte for byte what the image must hold after its build."""

    series: Series
    ledger: bytes


def rehearse(plan: Plan, catalog: Catalog, source: records.WheelPin) -> Rehearsal:
    """Apply the series in memory to the files of `source`, and with git for a second opinion.

    Raises NotApplied that names patch, file and hunk.
    """
    paths = sorted({path for use in plan.series for path, _, _ in use.files})
    pristine = wheel.read(source, paths, cache=catalog.state / "wheels")
    try:
        series = compile_series(plan, catalog)
        outcome = patching.plan(series, Memory(pristine))
    except patching_errors.PatchingError as error:
        raise errors.NotApplied(f"{plan.target.slug}: {error.message}", hint=error.hint or _next_step(plan)) from error
    if series.patches and outcome.report.outcome is not Outcome.APPLIED:
        raise errors.NotApplied("\n".join(describe(outcome.report)), hint=_next_step(plan))
    if series.patches:
        second_opinion.compare(series, pristine, outcome.writes)
    return Rehearsal(series=series, ledger=outcome.ledger)


def compile_series(plan: Plan, catalog: Catalog) -> Series:
    """Read the plan's editions from the catalog into the form the patch engine takes."""
    return series_of(catalog, plan.target.release, [use.id for use in plan.series])


def series_of(catalog: Catalog, release: str, ids: Iterable[str]) -> Series:
    """Read the editions of chosen patches, in the given order, into the form the patch engine takes."""
    editions = [(patch_id, catalog.patches[patch_id].editions[release]) for patch_id in ids]
    return Series(
        distribution=DISTRIBUTION,
        release=release,
        patches=tuple(
            Patch(
                id=patch_id,
                sha256=edition.sha256,
                files=tuple(
                    FileChange(path=path, pre=hashes.pre, post=hashes.post)
                    for path, hashes in sorted(edition.files.items())
                ),
                data=(catalog.root / edition_path(patch_id, release)).read_bytes(),
            )
            for patch_id, edition in editions
        ),
    )


def describe(report: SeriesReport) -> Iterator[str]:
    """Yield one line for each patch, file and hunk that is not as it should be.

    A patch that was not looked at because of another one (UNKNOWN) is left out.
    """
    wrong = [patch for patch in report.patches if not patch.outcome.done]
    known = [patch for patch in wrong if patch.outcome is not Outcome.UNKNOWN]
    for patch in known or wrong:
        yield f"patch {patch.id}: {patch.outcome.value}{f': {patch.hint}' if patch.hint else ''}"
        for file in patch.files:
            if not file.outcome.done:
                yield from _row(file)
    for file in report.files:
        if not file.outcome.done:
            yield from _row(file)


def _row(file: FileReport) -> Iterator[str]:
    yield f"  {file.path}{f' hunk {file.hunk}' if file.hunk else ''}: {file.outcome.value}"
    for name, value in (("expected", file.expected), ("found", file.found)):
        if value:
            yield f"    {name + ':':<9} {value}"


def _next_step(plan: Plan) -> str:
    names = ", ".join(f"patches/{use.id}/{use.edition}.patch" for use in plan.series)
    return f"nothing was built; compare {names} with patch.yaml: git diff patches/"
