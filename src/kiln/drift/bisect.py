"""Names the first release, and with a git repository the first commit, on which an edition no longer fits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln.drift import columns, fit, names
from kiln.drift.judge import Judge, Subject
from kiln.drift.memory import Memory
from kiln.drift.records import Column, FileVerdict, Verdict
from kiln.upstream import git_ref

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kiln.catalog import Catalog
    from kiln.report import Reporter
    from kiln.upstream.git_ref import Commit


@dataclass(frozen=True, kw_only=True)
class Break:
    """How far an edition reaches: made for `edition`, fits up to `fits`, not on `broken` ("" while it fits the newest).

    files: what does not fit there. commit: the first one after `fits` with which it does not; None without --git, or
    where `why` says that the repository does not show it.
    """

    patch: str
    edition: str
    fits: str
    broken: str
    verdict: Verdict
    files: tuple[FileVerdict, ...]
    commit: Commit | None = None
    why: str = ""


def run(catalog: Catalog, patch_id: str, *, repository: str, reporter: Reporter) -> tuple[Break, ...]:
    """Return one break for each different edition of a patch, in order of release.

    Raises BadInput for a patch without editions, Missing where a release between could not be read.
    """
    if patch_id not in catalog.patches:
        raise errors.BadInput(errors.unknown("patch", patch_id, catalog.patches))
    if not catalog.patches[patch_id].editions:
        raise errors.BadInput(f"{patch_id}: has no edition that could break", hint=f"./inv patch.explain {patch_id}")
    known = columns.releases(catalog, names.paths, reporter).subjects
    if unread := [f"{subject.column.name}: {subject.column.problem}" for subject in known if subject.column.problem]:
        raise errors.Missing("\n".join(unread), hint="check the index: pip config list")
    memory = Memory(folder=catalog.state / "drift")
    judge = Judge(catalog, {subject.column.name: subject for subject in known}, memory.attempt)
    found = tuple(_breaks(catalog, judge, patch_id, known))
    if not repository:
        return found
    with reporter.step(f"commits of {repository}") as detail:
        return tuple(
            _explained(judge, each, _commits(catalog, each, repository), detail) if each.broken else each
            for each in found
        )


def _breaks(catalog: Catalog, judge: Judge, patch_id: str, known: Sequence[Subject]) -> Iterator[Break]:
    """Follow each edition from the first release that has it."""
    editions = catalog.patches[patch_id].editions
    seen = set()
    for number, subject in enumerate(known):
        edition = editions.get(subject.column.name)
        if edition is None or edition.sha256 in seen:
            continue
        seen.add(edition.sha256)
        fits, last = (
            subject.column.name,
            Break(patch=patch_id, edition=subject.column.name, fits="", broken="", verdict=Verdict.CLEAN, files=()),
        )
        for later in known[number:]:
            files = judge.edition_on(patch_id, subject.column.name, later)
            verdict = fit.worst(row.verdict for row in files)
            if verdict is not Verdict.CLEAN:
                wrong = tuple(row for row in files if row.verdict is not Verdict.CLEAN)
                last = replace(last, broken=later.column.name, verdict=verdict, files=wrong)
                break
            fits = later.column.name
        yield replace(last, fits=fits)


def _commits(catalog: Catalog, broken: Break, repository: str) -> Iterator[tuple[Subject, Commit]]:
    """Yield what changed the edition's files between the last release that it fits and the first that it does not."""
    paths = sorted(catalog.patches[broken.patch].editions[broken.edition].files)
    between = git_ref.between(repository, f"v{broken.fits}", f"v{broken.broken}", paths, state=catalog.state)
    for files, commit in between:
        there = Subject(
            column=Column(name=files.commit, kind="ref", identity=files.commit, in_catalog=False),
            version=broken.fits,
            files=files.read(columns.paths(catalog)),
            names=frozenset(files.stamps()),
            find=dict,
        )
        yield there, commit


def _explained(
    judge: Judge, broken: Break, commits: Iterator[tuple[Subject, Commit]], detail: Callable[[str], None]
) -> Break:
    """Return the break with the first commit on which the edition does not fit, or with why none is named."""
    count = 0
    for there, commit in commits:
        detail(f"{commit.date} {commit.subject}")
        count += 1
        rows = judge.edition_on(broken.patch, broken.edition, there)
        if fit.worst(row.verdict for row in rows) is not Verdict.CLEAN:
            return replace(broken, commit=commit)
    between = f"v{broken.fits} and v{broken.broken}"
    why = f"none of the {count} commits between {between} breaks it: the tags do not hold what the releases do"
    return replace(broken, why=why)
