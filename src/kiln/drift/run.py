"""Runs drift: every chosen patch on every column, every recipe on every release, one report."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from kiln import errors, files
from kiln.drift import columns, names, probing, recipes, retire
from kiln.drift.judge import Judge, Subject
from kiln.drift.memory import Memory, code
from kiln.drift.records import Cell, Report, Verdict
from kiln.upstream.git_ref import UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.catalog import Catalog
    from kiln.drift.records import RecipeFact
    from kiln.report import Reporter

_NAMES = ("drift/names.py", "drift/arguments.py", "drift/fields.py")
_FORCED = re.compile(r"(?P<key>[^@\s]+@[^=\s]+)=(?P<verdict>[A-Z_]+)")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What to look at: "" means all. `ref` and `image` are columns of their own, in place of the releases.

    version: the release that a ref or image is judged as. force: PATCH@COLUMN=VERDICT, a verdict set by hand to see
    that the alerts work.
    """

    patch: str = ""
    release: str = ""
    since: str = ""
    ref: str = ""
    git: str = ""
    image: str = ""
    version: str = ""
    force: str = ""
    bisect: str = ""

    @property
    def whole(self) -> bool:
        """Say whether everything is looked at."""
        return not (self.patch or self.release or self.since or self.ref or self.image)


def run(catalog: Catalog, ask: Ask, reporter: Reporter) -> Report:
    """Return the verdicts; raises BadInput for an unknown patch, release or verdict."""
    check(catalog, ask)
    gc.disable()  # syntax trees are many objects in no circle: looking through them takes half of the time
    try:
        return _report(catalog, ask, reporter)
    finally:
        names.forget()
        gc.enable()


def _report(catalog: Catalog, ask: Ask, reporter: Reporter) -> Report:
    known = columns.releases(catalog, names.paths, reporter)
    memory = Memory(folder=catalog.state / "drift")
    releases = {subject.column.name: subject for subject in known.subjects}
    with probing.prober(catalog) as probe, _chosen(catalog, ask, known.subjects) as subjects:
        judge = Judge(catalog, releases, memory.attempt, probe)
        ids = [patch_id for patch_id in catalog.order if ask.patch in {"", patch_id}]
        with reporter.step(f"{len(ids)} patches on {len(subjects)} columns") as detail:
            cells = []
            for patch_id in ids:
                for subject in subjects:
                    detail(f"{patch_id} on {subject.column.name}")
                    cells.append(judge.cell(patch_id, subject))
            cells = list(_retired(catalog, judge, cells, known.subjects))
        facts = () if ask.patch else _recipes(catalog, known.subjects, subjects, reporter)
    reporter.note(f"read {known.fetched_bytes / 1e6:.1f} MB of {len(known.sources)} wheels, by range")
    return Report(
        columns=tuple(subject.column for subject in subjects),
        titles=tuple((patch_id, catalog.patches[patch_id].title) for patch_id in ids),
        cells=tuple(_forced(cells, ask.force)),
        recipes=facts,
    )


def check(catalog: Catalog, ask: Ask, *, written: bool = False, issues: bool = False, dry_run: bool = False) -> None:
    """Raise BadInput, all problems at once, for what cannot be asked; nothing that is asked for is left out silently.

    written: files or issues are wanted, too.
    """
    problems = [*_contradictions(ask)]
    if ask.patch and ask.patch not in catalog.patches:
        problems.append(errors.unknown("patch", ask.patch, catalog.patches))
    for flag, value in (("release", ask.release), ("since", ask.since), ("as", ask.version)):
        try:
            Version(value or "0")
        except InvalidVersion:
            problems.append(f"--{flag} {value}: no release; write it like 0.31.0")
    if ask.force and not ((match := _FORCED.fullmatch(ask.force)) and match["verdict"] in Verdict.__members__):
        words = ", ".join(Verdict.__members__)
        problems.append(f"--force {ask.force}: write it as PATCH@RELEASE=VERDICT; the verdicts are {words}")
    if dry_run and not issues:
        problems.append("--dry-run goes with --issues; without it nothing is done anyway")
    if ask.bisect and written:
        problems.append("--bisect writes neither files nor issues: leave --out, --issues and --dry-run out")
    if problems:
        raise errors.BadInput("\n".join(problems), hint="./inv drift --help")


def _contradictions(ask: Ask) -> Iterator[str]:
    """Yield what does not go together."""
    others = [f"--{name}" for name, value in vars(ask).items() if value and name not in {"bisect", "git"}]
    if ask.bisect and others:
        yield f"--bisect looks at every release: leave {', '.join(others)} out".replace("--version", "--as")
    if ask.git and not (ask.ref or ask.bisect):
        yield "--git goes with --ref, or with --bisect"
    if ask.version and not (ask.ref or ask.image):
        yield "--as goes with --ref or --image"
    if sum(map(bool, (ask.ref, ask.image, ask.release or ask.since))) > 1:
        yield "--ref, --image, and --release or --since are different things to look at: give one of them"


@contextlib.contextmanager
def _chosen(catalog: Catalog, ask: Ask, known: Sequence[Subject]) -> Iterator[tuple[Subject, ...]]:
    """Yield the columns that are asked for; raises BadInput where no release is left."""
    if ask.image:
        with columns.image(catalog, ask.image, known, names.paths, version=ask.version) as subject:
            yield (subject,)
        return
    if ask.ref:
        yield (columns.ref(catalog, ask.git or UPSTREAM, ask.ref, names.paths, version=ask.version),)
        return
    since, release = Version(ask.since or "0"), ask.release and Version(ask.release)
    subjects = tuple(
        subject
        for subject in known
        if Version(subject.version) >= since and (not release or Version(subject.version) == release)
    )
    if not subjects:
        listed = ", ".join(subject.column.name for subject in known)
        raise errors.BadInput(f"no such release; there are: {listed}")
    yield subjects


def _recipes(
    catalog: Catalog, known: Sequence[Subject], chosen: Sequence[Subject], reporter: Reporter
) -> tuple[RecipeFact, ...]:
    """Check the recipes on all columns in order, as a name is removed only where it was, and keep the chosen ones."""
    extra = [subject for subject in chosen if subject not in known]
    with reporter.step("flags, environment and parsers of the recipes"):
        rows = [(subject.column.name, _names(catalog, subject)) for subject in (*known, *extra)]
        facts = recipes.check(catalog, rows, {subject.column.name: subject.version for subject in extra})
    wanted = {subject.column.name for subject in chosen}
    return tuple(fact for fact in facts if fact.column in wanted)


def _names(catalog: Catalog, subject: Subject) -> names.Names | str:
    """Return what a column's vLLM takes, or why that is not known; parsed once for the same bytes."""
    if subject.column.problem:
        return subject.column.problem
    wanted = {path: data for path, data in subject.files.items() if path in set(names.paths(subject.files))}
    sums = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(wanted.items())]
    about = json.dumps([code(_NAMES), sums])
    kept = catalog.state / "drift" / f"names-{hashlib.sha256(about.encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, ValueError, errors.BadInput):
        return names.Names.from_json(files.read_summed(kept))
    found = names.read(wanted)
    files.write_summed(kept, found.to_json())
    return found


def _retired(catalog: Catalog, judge: Judge, cells: Sequence[Cell], known: Sequence[Subject]) -> Iterator[Cell]:
    """Yield the cells; those of a change that releases have got propose that the patch ends with the first of them."""
    released = {subject.column.name for subject in known}
    for cell in cells:
        if cell.verdict is Verdict.MERGED and not cell.known and cell.column in released:
            found = (judge.cell(cell.patch, subject) for subject in known)
            first = next(each.column for each in found if each.verdict is Verdict.MERGED and not each.known)
            yield _proposed(catalog, cell, first)
        else:
            yield cell


def _proposed(catalog: Catalog, cell: Cell, release: str) -> Cell:
    """Return the cell with a diff of patch.yaml and what to do with it."""
    new = f"add {release} to images/releases.yaml, " if release not in catalog.releases.releases else ""
    next_ = f"{new}git apply the diff below, then: ./inv lint; ./inv patch.prove {cell.patch} --release {release}"
    try:
        diff = retire.proposal(catalog, cell.patch, release).decode()
    except errors.KilnError as error:
        return replace(cell, first=release, next=error.hint or error.message)
    return replace(cell, first=release, diff=diff, next=next_)


def _forced(cells: Sequence[Cell], force: str) -> Iterator[Cell]:
    """Yield the cells, one with a verdict set by hand; raises BadInput where there is no such cell."""
    match = _FORCED.fullmatch(force)
    if match and match["key"] not in {cell.key for cell in cells}:
        raise errors.BadInput(f"--force {force}: no {match['key']} among the patches and columns looked at")
    for cell in cells:
        if match and cell.key == match["key"]:
            says = "set by hand with --force, to see that the alerts work"
            yield replace(cell, verdict=Verdict(match["verdict"]), known=False, forced=True, says=says)
        else:
            yield cell
