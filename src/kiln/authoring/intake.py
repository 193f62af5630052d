"""Takes somebody's diff in as a new patch: judged hunk by hunk, and made only where all of it fits exactly."""

from __future__ import annotations

import functools
import re
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors, git
from kiln import plan as planning
from kiln.authoring import base, drafts, gate, judge, sections, skeleton, worktree
from kiln.authoring.judge import FileIntake, HunkIntake, Intake
from kiln.catalog import lint as catalog_lint
from kiln.patching import paths
from kiln.patching.outcomes import Outcome
from kiln.proof import trees
from kiln.upstream import wheel

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.authoring.sections import Split
    from kiln.catalog import Catalog
    from kiln.errors import Finding
    from kiln.report import Reporter

__all__ = ["FileIntake", "HunkIntake", "Intake", "New", "new", "read"]

_ID = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")


@dataclass(frozen=True, kw_only=True)
class New:
    """What became of a diff: `made` are the files that were written, `todo` what lint says of them."""

    intake: Intake
    made: tuple[str, ...] = ()
    todo: tuple[Finding, ...] = ()


def read(file: Path) -> bytes:
    """Return the bytes of somebody's diff, no more than a patch may have; raises BadInput."""
    if str(file).startswith(("http:", "https:")):
        raise errors.BadInput(f"{file}: an address, not a file", hint=f"curl -fLO {file}, then --from that file")
    if not file.name:
        raise errors.BadInput("--from is missing", hint="./inv patch.new ID --from DIFF --release RELEASE")
    if not file.is_file():
        raise errors.BadInput(f"{file}: no such file", hint="--from names a diff, such as a pull request's .diff")
    with file.open("rb") as opened:
        data = opened.read(paths.LARGEST + 1)
    if len(data) > paths.LARGEST:
        raise errors.BadInput(f"{file}: larger than {paths.LARGEST} bytes; a patch is a small change")
    return data


def new(  # noqa: PLR0913 - what is made, of what, and how it is shown
    catalog: Catalog,
    patch_id: str,
    file: Path,
    release: str,
    *,
    reporter: Reporter,
    title: str = "",
    dry_run: bool = False,
) -> New:
    """Make a patch of a diff where all of it fits: folder, edition, skeletons and its place in the series, or nothing.

    Raises BadInput where the patch is there already, or the file is no diff.
    """
    _refuse(catalog, patch_id, release)
    split = _split(read(file), file.name)
    intake, before = _looked(catalog, split, release, reporter)
    if intake.outcome is not Outcome.APPLIED:
        return New(intake=intake)
    after = {each.path: each.after for each in intake.files if each.after is not None}
    data = git.diff(before, after)
    if not data:
        return New(intake=replace(intake, outcome=Outcome.MERGED, problem="its parts undo each other: nothing changes"))
    made = skeleton.make(
        catalog,
        patch_id=patch_id,
        title=title or split.subject,
        release=release,
        data=data,
        edition=drafts.record(patch_id, data, before),
    )
    with drafts.candidate(catalog, made) as candidate:
        try:
            base.after(candidate, release, (patch_id,), before)
        except errors.NotApplied as error:
            return New(intake=replace(intake, outcome=Outcome.CONFLICT, problem=error.message))
        if clash := next(gate.clashes(candidate, patch_id, release), None):
            return New(intake=_clashing(intake, clash, candidate, patch_id))
        own = f"patches/{patch_id}/"
        todo = tuple(found for found in catalog_lint.patches(candidate) if found.where.startswith(own))
    if not dry_run:
        _write(catalog.root, patch_id, made)
    return New(intake=intake, made=() if dry_run else tuple(map(str, made)), todo=todo)


def _refuse(catalog: Catalog, patch_id: str, release: str) -> None:
    if not patch_id:
        hint = "./inv patch.new what-it-changes --from DIFF --release RELEASE"
        raise errors.BadInput("--id is missing: the name of the new patch", hint=hint)
    if patch_id in catalog.patches or (catalog.root / "patches" / patch_id).exists():
        raise errors.BadInput(
            f"patches/{patch_id}: is there already",
            hint=f"./inv patch.edit {patch_id} --release {release}, or ./inv patch.port {patch_id} --to {release}",
        )
    if not _ID.fullmatch(patch_id):
        raise errors.BadInput(
            f"{patch_id[:80]!r}: a patch id is lower-case letters, digits, '.', '_' and '-', at most 64",
            hint="./inv patch.new what-it-changes --from DIFF --release RELEASE",
        )
    if release not in catalog.releases.releases:
        raise errors.BadInput(errors.unknown("release", release, catalog.releases.releases))


def _split(data: bytes, name: str) -> Split:
    """Split a diff; raises BadInput too where it holds nothing of the package."""
    split = sections.split(data, name)
    if not split.files and not split.lost:
        rows = "".join(f"\n  left out: {path}: {why}" for path, why in split.left_out)
        raise errors.BadInput(f"{name}: changes no file of the installed package{rows}")
    return split


def _looked(catalog: Catalog, split: Split, release: str, reporter: Reporter) -> tuple[Intake, dict[str, bytes]]:
    """Return the judgement and the files that it is about, as they are before."""
    touched = {file.path for file in split.files}
    with reporter.step(f"the files of {release}"):
        before = base.pristine(catalog, release, touched)
        intake = _judge(catalog, split, release, before)
        ids = tuple(each for each in _first_series(catalog, release) if _touches(catalog, each, release, touched))
        if ids:  # where it fits on top of the patches that change these files too, that is what its series needs
            left = {
                path: data for path, data in base.left_by(catalog, release, ids, touched).items() if path in touched
            }
            over = _judge(catalog, split, release, left)
            if over.outcome is Outcome.APPLIED:
                return over, left
    if intake.outcome is Outcome.APPLIED:
        return intake, before
    with reporter.step("the other releases") as detail:
        others = []
        for other in catalog.releases.releases:
            detail(other)
            if other != release and not split.lost and _fits(catalog, split, other, reporter):
                others.append(other)
    return replace(intake, fits=tuple(others), problem=_problem(intake, split), advice=_advice(intake, split)), before


def _judge(catalog: Catalog, split: Split, release: str, before: dict[str, bytes]) -> Intake:
    @functools.cache
    def names() -> list[str]:
        tree = trees.released(catalog, release)
        return [path.relative_to(tree).as_posix() for path in (tree / "vllm").rglob("*.py")]

    found = judge.files(split.files, before.get, names)
    outcomes = [file.outcome for file in found] + [Outcome.UNKNOWN] * bool(split.lost)
    return Intake(release=release, outcome=judge.whole(outcomes), files=found, left_out=split.left_out)


def _fits(catalog: Catalog, split: Split, release: str, reporter: Reporter) -> bool:
    """Say whether all of it fits another release; one that cannot be read is named."""
    pin = catalog.releases.releases[release].wheel
    try:
        before = wheel.read(pin, [file.path for file in split.files], cache=catalog.state / "wheels")
    except errors.Missing as error:
        reporter.note(f"{release} was not looked at: {error.message}")
        return False
    return all(file.outcome is Outcome.APPLIED for file in judge.files(split.files, before.get, tuple))


def _first_series(catalog: Catalog, release: str) -> tuple[str, ...]:
    """Return the patches of the first target of a release: a patch that is bound to nothing comes after them."""
    for model, variant, arch, each in planning.possible(catalog):
        if each == release:
            needed = planning.needed(catalog, model=model, variant=variant, arch=arch, release=release)
            return tuple(patch.id for patch in needed if release in patch.editions)
    return ()


def _touches(catalog: Catalog, patch_id: str, release: str, touched: set[str]) -> bool:
    return not touched.isdisjoint(catalog.patches[patch_id].editions[release].files)


def _problem(intake: Intake, split: Split) -> str:
    if split.lost:
        return f"part of the change is in a form that no edition can hold: {', '.join(split.lost)}"
    if intake.outcome is Outcome.MERGED:
        return f"{intake.release} has all of this already"
    rows = [hunk for file in intake.files for hunk in file.hunks]
    wrong = sum(hunk.outcome is not Outcome.APPLIED for hunk in rows)
    return f"{wrong} of {len(rows)} hunks do not fit {intake.release} exactly where the diff says"


def _clashing(intake: Intake, clash: Finding, candidate: Catalog, patch_id: str) -> Intake:
    """Return that a diff fits, but not on what the patches before it leave; those that it has to stand on are named."""
    release, touched = intake.release, {file.path for file in intake.files}
    others = {
        each.id: None
        for _, patches in base.series(candidate, patch_id, release)
        for each in patches
        if each.id != patch_id and _touches(candidate, each.id, release, touched)
    }
    advice = f"make the diff on top of {' and '.join(others)}"
    if others:
        folder = worktree.place(candidate, last := list(others)[-1], release)
        advice += (
            f": ./inv patch.edit {last} --release {release}, make the change in that worktree, "
            f"then git -C {folder} diff HEAD > new.diff"
        )
    problem = f"it fits {release}, but not every series: {clash.problem}"
    return replace(intake, outcome=Outcome.CONFLICT, problem=problem, advice=advice if others else clash.hint)


def _advice(intake: Intake, split: Split) -> str:
    """Return what to do with a diff that no other release helps with; "" where one may."""
    if split.lost:
        return "make it with git diff --no-renames; what is binary or a link, no edition can hold"
    if intake.outcome is Outcome.MERGED:
        return f"make nothing: {intake.release} needs no such patch"
    if intake.outcome is Outcome.AMBIGUOUS:
        return "make the diff with more context, so that it says which place is meant: git diff -U10"
    return ""


def _write(root: Path, patch_id: str, made: dict[Path, bytes]) -> None:
    try:
        drafts.write_all(root, made)
    except BaseException:
        shutil.rmtree(root / "patches" / patch_id, ignore_errors=True)
        raise
