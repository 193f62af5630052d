"""Every finding at once: the catalog's own rules, each edition made again from real files, each target planned."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from kiln import errors, git, plan
from kiln.catalog import edition_path, lint_installs
from kiln.catalog import lint as catalog_lint
from kiln.errors import Finding
from kiln.image.rehearsal import DISTRIBUTION
from kiln.patching import authoring, diff
from kiln.patching import errors as patching_errors
from kiln.patching import plan as patching
from kiln.patching.outcomes import digest, named, shown
from kiln.patching.series import Series
from kiln.patching.tree import Memory
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.catalog import Catalog, records
    from kiln.patching.outcomes import SeriesReport

_MAKE_AGAIN = "make it again from the release's files: git diff --full-index, a/ and b/, three lines of context"


def patches(catalog: Catalog) -> Iterator[Finding]:
    """Yield what is wrong with patches: their own files, their editions on real files, and the series they make.

    And with installs and pins, which patches are for.
    """
    yield from lint_installs.findings(catalog)
    yield from catalog_lint.patches(catalog)
    for release in catalog.releases.releases:
        yield from editions(catalog, release)
    yield from _clashes(catalog)


def editions(catalog: Catalog, release: str) -> Iterator[Finding]:
    """Make every edition of a release again, from the bytes that the release and the patches before it leave."""
    order = [catalog.patches[patch_id] for patch_id in catalog.order]
    editions = [_Edition(catalog.root, patch, release) for patch in order if release in patch.editions]
    paths = sorted({path for edition in editions for path in edition.files})
    pin = catalog.releases.releases[release].wheel
    try:
        pristine = wheel.read(pin, paths, cache=catalog.state / "wheels")
    except (errors.Missing, errors.BadInput) as error:
        for edition in editions:
            problem = f"could not be checked against the files of {pin.file}: {error.message}"
            yield Finding(where=edition.where, problem=problem, hint=error.hint)
        return
    states = {path: _Known() for path in paths}
    for path, data in pristine.items():
        states[path][digest(data)] = data
    for edition in editions:
        yield from list(edition.misnamed()) or list(edition.wrong_pre(states)) or edition.made_again(states)


class _Known(dict[str | None, bytes]):
    """Every content that a file has had so far, by sha256: pristine, and after each patch."""


class _Edition:
    """One edition of one patch, with what patch.yaml says of it."""

    def __init__(self, root: Path, patch: records.Patch, release: str) -> None:
        self.where = str(edition_path(patch.id, release))
        self.files = patch.editions[release].files
        self._patch_id, self._release = patch.id, release
        self._data = (root / self.where).read_bytes()

    def misnamed(self) -> Iterator[Finding]:
        """Compare the files it touches with those that patch.yaml names; yields too where it is no diff at all."""
        try:
            touched = {file.path for file in diff.parse(self._data, self.where)}
        except patching_errors.PatchingError as error:
            yield Finding(where=self.where, problem=error.message, hint=error.hint or _MAKE_AGAIN)
            return
        for path in sorted(touched - self.files.keys()):
            problem = f"touches {path}, which patch.yaml does not name"
            yield Finding(where=self.where, problem=problem, hint="name it under files")
        for path in sorted(self.files.keys() - touched):
            problem = f"does not touch {path}, which patch.yaml names"
            yield Finding(where=self.where, problem=problem, hint="remove it from files")

    def wrong_pre(self, states: dict[str, _Known]) -> Iterator[Finding]:
        for path, hashes in self.files.items():
            known = states[path]
            if hashes.pre in known or (hashes.pre is None and not known):
                continue
            found = " or ".join(named(sha256) for sha256 in known) or named(None)
            yield Finding(
                where=self._at(path, "pre"),
                problem=f"is {named(hashes.pre)}, but {self._release} and the patches before this one give {found}",
                hint="correct patch.yaml, or make the edition from the release's file",
            )

    def made_again(self, states: dict[str, _Known]) -> Iterator[Finding]:
        """Apply it, compare with post and with the diff that git makes, and add what it leaves to `states`."""
        before = {path: states[path][hashes.pre] for path, hashes in self.files.items() if hashes.pre}
        try:
            made = authoring.edition(self._patch_id, self._data, Memory(before))
            outcome = patching.plan(Series(DISTRIBUTION, self._release, (made,)), Memory(before))
        except patching_errors.PatchingError as error:
            yield Finding(where=self.where, problem=error.message, hint=error.hint or _MAKE_AGAIN)
            return
        for change in made.files:
            if (stated := self.files[change.path].post) != change.post:
                problem = f"is {named(stated)}, but the edition leaves {named(change.post)}"
                hint = "correct patch.yaml, or the edition"
                yield Finding(where=self._at(change.path, "post"), problem=problem, hint=hint)
        after: dict[str, bytes | None] = {**before, **{write.path: write.data for write in outcome.writes}}
        left = {path: data for path, data in after.items() if data is not None}
        for path, data in left.items():
            states[path][digest(data)] = data
        yield from _refused(self.where, outcome.report)
        canonical = git.diff(before, left) if outcome.writes else self._data
        if canonical != self._data:
            problem = f"is not canonical: {_difference(self._data, canonical)}"
            yield Finding(where=self.where, problem=problem, hint=_MAKE_AGAIN)

    def _at(self, path: str, key: str) -> str:
        return f"patches/{self._patch_id}/patch.yaml: editions.{self._release}.files.{path}.{key}"


def _refused(where: str, report: SeriesReport) -> Iterator[Finding]:
    """Yield what the engine would not write: a module that does not compile."""
    for row in (row for patch in report.patches for row in patch.files if not row.outcome.done):
        problem = f"{row.path}: {row.outcome.value}: expected {row.expected}, found {row.found}"
        yield Finding(where=where, problem=problem, hint=row.hint)


def _difference(data: bytes, canonical: bytes) -> str:
    """Name the first line at which an edition is not what git writes."""
    pairs = itertools.zip_longest(data.splitlines(keepends=True), canonical.splitlines(keepends=True))
    number, lines = next((number, pair) for number, pair in enumerate(pairs, 1) if pair[0] != pair[1])
    own, other = ("nothing" if line is None else repr(shown(line)) for line in lines)
    return f"line {number} is {own}, git writes {other}"


def _clashes(catalog: Catalog) -> Iterator[Finding]:
    """Yield each series problem once, with the targets that it keeps from being planned."""
    found: dict[str, list[str]] = {}
    for model, variant, arch, release in plan.possible(catalog):
        needed = plan.needed(catalog, model=model, variant=variant, arch=arch, release=release)
        for problem in plan.clashes(needed):
            found.setdefault(problem, []).append(f"{variant} on {arch} with {release}")
    for problem, targets in found.items():
        where, _, text = problem.partition(": ")
        more = f" and {len(targets) - 1} more targets" if len(targets) > 1 else ""
        yield Finding(
            where=f"{where}/patch.yaml",
            problem=f"{text}: {targets[0]}{more}",
            hint="edit applies, requires or conflicts of these patches",
        )
