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
from kiln.drift import columns, names, recipes, retire
from kiln.drift.judge import Judge, Subject
from kiln.drift.memory import Memory
from kiln.drift.records import Cell, Report, Verdict
from kiln.upstream.git_ref import UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kiln.catalog import Catalog
    from kiln.drift.records import RecipeFact
    from kiln.report import Reporter

_FORCED = re.compile(r"(?P<key>[^@\s]+@[^=\s]+)=(?P<verdict>[A-Z_]+)")


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What to look at: "" and () mean all. `ref` and `image` are columns of their own, in place of the releases.

    force: PATCH@COLUMN=VERDICT, a verdict set by hand to see that the alerts work.
    """

    patch: str = ""
    release: str = ""
    since: str = ""
    ref: str = ""
    git: str = ""
    image: str = ""
    force: str = ""

    @property
    def whole(self) -> bool:
        """Say whether everything is looked at."""
        return not (self.patch or self.release or self.since or self.ref or self.image)


def run(catalog: Catalog, ask: Ask, reporter: Reporter) -> Report:
    """Return the verdicts; raises BadInput for an unknown patch, release or verdict."""
    _check(catalog, ask)
    gc.disable()  # syntax trees are many objects in no circle: looking through them takes half of the time
    try:
        return _report(catalog, ask, reporter)
    finally:
        names.forget()
        gc.enable()


def _report(catalog: Catalog, ask: Ask, reporter: Reporter) -> Report:
    known = columns.releases(catalog, names.paths, reporter)
    reporter.note(f"read {known.fetched_bytes / 1e6:.1f} MB of {len(known.subjects)} wheels, by range")
    memory = Memory(folder=catalog.state / "drift")
    judge = Judge(catalog, {subject.column.name: subject for subject in known.subjects}, memory.attempt)
    with _chosen(catalog, ask, known.subjects) as subjects:
        ids = [patch_id for patch_id in catalog.order if ask.patch in {"", patch_id}]
        with reporter.step(f"{len(ids)} patches on {len(subjects)} columns") as detail:
            cells = []
            for patch_id in ids:
                detail(patch_id)
                cells += [judge.cell(patch_id, subject) for subject in subjects]
        facts = () if ask.patch else _recipes(catalog, known.subjects, subjects, reporter)
    released = {subject.column.name for subject in subjects if subject.column.kind == "release"}
    return Report(
        columns=tuple(subject.column for subject in subjects),
        titles=tuple((patch_id, catalog.patches[patch_id].title) for patch_id in ids),
        cells=tuple(_forced(list(_retired(catalog, cells, released)), ask.force)),
        recipes=facts,
    )


def _check(catalog: Catalog, ask: Ask) -> None:
    problems = []
    if ask.patch and ask.patch not in catalog.patches:
        problems.append(errors.unknown("patch", ask.patch, catalog.patches))
    for flag in ("release", "since"):
        try:
            Version(getattr(ask, flag) or "0")
        except InvalidVersion:
            problems.append(f"--{flag} {getattr(ask, flag)}: no release; write it like 0.31.0")
    if ask.force and not ((match := _FORCED.fullmatch(ask.force)) and match["verdict"] in Verdict.__members__):
        words = ", ".join(Verdict.__members__)
        problems.append(f"--force {ask.force}: write it as PATCH@RELEASE=VERDICT; the verdicts are {words}")
    if ask.git and not ask.ref:
        problems.append("--git goes with --ref, or with --bisect")
    if problems:
        raise errors.BadInput("\n".join(problems))


@contextlib.contextmanager
def _chosen(catalog: Catalog, ask: Ask, known: Sequence[Subject]) -> Iterator[tuple[Subject, ...]]:
    """Yield the columns that are asked for; raises BadInput where no release is left."""
    if ask.image:
        with columns.image(catalog, ask.image, names.paths) as subject:
            yield (subject,)
        return
    if ask.ref:
        yield (columns.ref(catalog, ask.git or UPSTREAM, ask.ref, names.paths),)
        return
    since = Version(ask.since or "0")
    subjects = tuple(
        subject for subject in known if ask.release in {"", subject.column.name} and Version(subject.version) >= since
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
        facts = recipes.check(catalog, rows)
    wanted = {subject.column.name for subject in chosen}
    return tuple(fact for fact in facts if fact.column in wanted)


def _names(catalog: Catalog, subject: Subject) -> names.Names | str:
    """Return what a column's vLLM takes, or why that is not known; parsed once for the same bytes."""
    if subject.column.problem:
        return subject.column.problem
    wanted = {path: data for path, data in subject.files.items() if path in set(names.paths(subject.files))}
    sums = [(path, hashlib.sha256(data).hexdigest()) for path, data in sorted(wanted.items())]
    kept = catalog.state / "drift" / f"names-{hashlib.sha256(json.dumps(sums).encode()).hexdigest()}.json"
    with contextlib.suppress(OSError, errors.BadInput):
        return names.Names.from_json(kept.read_text(encoding="utf-8"))
    found = names.read(wanted)
    files.write(kept, found.to_json())
    return found


def _retired(catalog: Catalog, cells: Sequence[Cell], released: Collection[str]) -> Iterator[Cell]:
    """Yield the cells; those of a change that releases have got propose that the patch ends with the first of them."""
    merged = [cell for cell in cells if cell.verdict is Verdict.MERGED and not cell.known and cell.column in released]
    first = {cell.patch: cell.column for cell in reversed(merged)}
    for cell in cells:
        if cell in merged:
            release = first[cell.patch]
            diff = retire.proposal(catalog, cell.patch, release).decode()
            next_ = f"git apply the diff below, then: ./inv patch.prove {cell.patch} --release {release}"
            yield replace(cell, first=release, diff=diff, next=next_)
        else:
            yield cell


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
