"""Ports an edition to another release: through the gate where it merges, into a worktree where it does not."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from kiln import errors
from kiln import git as canonical
from kiln import plan as planning
from kiln.authoring import base, gate, worktree
from kiln.port import marks, sources, upstream_change
from kiln.port.attempt import Between, attempt
from kiln.port.merge import Labels
from kiln.proof import prove as proving

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from kiln.authoring.gate import Prover
    from kiln.catalog import Catalog
    from kiln.errors import Finding
    from kiln.port.records import Attempt, Problem
    from kiln.port.sources import Images
    from kiln.port.upstream_change import Change, History
    from kiln.report import Reporter


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is ported where; `origin` is the release of the edition, "" the nearest; `git` is upstream's repository."""

    patch: str
    to: str
    origin: str = ""
    git: str = ""
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class Ported:
    """How a port ended.

    written: the edition `diff` is in the catalog. fits: it would be, were this no dry run. merged: the release has the
    change. refused: it merges, but `findings` speak against it. conflict: `problems` need a person, each with the
    upstream change beside it. `worktree` is where a person goes on, None where none was made.
    """

    patch: str
    to: str
    origin: str
    state: Literal["written", "fits", "merged", "refused", "conflict"]
    files: tuple[str, ...]
    moved: Mapping[str, str] = field(default_factory=dict)
    definitions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[tuple[Problem, Change], ...] = ()
    findings: tuple[Finding, ...] = ()
    diff: bytes = b""
    worktree: Path | None = None


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What a port was made from: the files, all Python files of the new release, and what git knows."""

    images: Images
    find: Callable[[], Mapping[str, bytes]]
    git: History | None


def port(catalog: Catalog, wanted: Wanted, reporter: Reporter, *, prove: Prover = proving.run) -> Ported:
    """Port an edition; what is written has passed the gate.

    Raises BadInput for what cannot be asked for, NotApplied where an earlier patch has to be ported first, Missing
    where the releases' files or what the gate needs cannot be had.
    """
    origin, past = _checked(catalog, wanted), None
    if wanted.git:
        with reporter.step(f"what git knows from v{origin} to v{wanted.to}"):
            past = upstream_change.history(wanted.git, origin, wanted.to, state=catalog.state)
    with reporter.step(f"the change of {wanted.patch} for {origin}, merged into {wanted.to}"):
        images = sources.images(catalog, catalog.patches[wanted.patch], origin, wanted.to)
        find, before = (
            functools.cache(functools.partial(sources.tree, catalog, wanted.patch, release))
            for release in (wanted.to, origin)
        )
        between = Between(edition=origin, release=wanted.to, before=before)
        made = attempt(images.pre, images.post, images.theirs, find, between=between)
        found = _ended(wanted, origin, made, _Known(images=images, find=find, git=past))
    if found.state == "fits":
        judge = functools.partial(gate.accept, reporter=reporter, dry_run=wanted.dry_run, prove=prove)
        if findings := judge(catalog, wanted.patch, wanted.to, found.diff):
            found = replace(found, state="refused", findings=findings)
        elif not wanted.dry_run:
            found = replace(found, state="written")
    if found.state in {"merged", "written", "fits"} or wanted.dry_run:
        return found
    labels = Labels(edition=origin, release=wanted.to)
    shown = marks.files(made, images, _theirs(made, images, find), labels)
    return replace(found, worktree=worktree.open(catalog, wanted.patch, wanted.to, shown, reporter=reporter))


def _checked(catalog: Catalog, wanted: Wanted) -> str:
    """Return the release of the edition to port; raises BadInput and NotApplied."""
    patch, to = base.known(catalog, wanted.patch, wanted.to, flag="--to"), wanted.to
    if to in patch.editions:
        hint = f"change it with: ./inv patch.edit {patch.id} --release {to}"
        raise errors.BadInput(f"{patch.id} has an edition for {to} already", hint=hint)
    if not planning.covers(patch.applies, to):
        problem = f"{patch.id} is not needed on {to}: it applies to {patch.applies.releases}"
        hint = f"if it is: let applies.releases of patches/{patch.id}/patch.yaml cover {to}, then the same command"
        raise errors.BadInput(problem, hint=f"{hint}; ./inv patch.explain {patch.id}")
    if not wanted.dry_run and (missing := next(gate.unproven(catalog, (patch.id,)), None)):
        raise errors.BadInput(f"{missing.where}: {missing.problem}", hint=missing.hint)
    origin = sources.origin(patch, to, wanted.origin)
    if other := sources.unready(catalog, patch, to, set(patch.editions[origin].files)):
        problem = f"{patch.id} comes after {other}, which changes the same files and has no edition for {to}"
        raise errors.NotApplied(problem, hint=f"port that one first: ./inv patch.port {other} --to {to}")
    return origin


def _ended(wanted: Wanted, origin: str, made: Attempt, known: _Known) -> Ported:
    """Say how the merge ended, without the gate; a moved file is compared with what it was moved from."""
    images = known.images
    came = {new: old for old, new in made.moved.items()}
    theirs = _theirs(made, images, known.find)
    pre = {path: images.pre[path] if path in images.pre else images.pre[came[path]] for path in made.files}
    problems = tuple(
        (each, upstream_change.explain(each, pre[each.path], theirs[each.path], known.git)) for each in made.problems
    )
    return Ported(
        patch=wanted.patch,
        to=wanted.to,
        origin=origin,
        state="conflict" if problems else "merged" if made.merged else "fits",
        files=tuple(made.files),
        moved=made.moved,
        definitions=made.definitions,
        problems=problems,
        diff=b"" if problems or made.merged else canonical.diff(_there(theirs), _there(made.files)),
    )


def _theirs(made: Attempt, images: Images, find: Callable[[], Mapping[str, bytes]]) -> dict[str, bytes | None]:
    return {path: images.theirs[path] if path in images.theirs else find()[path] for path in made.files}


def _there(files: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if data is not None}
