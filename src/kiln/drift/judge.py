"""Judges patches on columns of source files, each series replayed in order; reads nothing but editions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from packaging.version import Version

from kiln import errors, git
from kiln import plan as planning
from kiln.catalog import edition_path
from kiln.drift import fit
from kiln.drift.records import Cell, Verdict
from kiln.patching import errors as patching_errors
from kiln.patching.outcomes import digest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kiln.catalog import Catalog, records
    from kiln.drift.fit import State
    from kiln.drift.memory import Merge
    from kiln.drift.probing import Probe
    from kiln.drift.records import Column, FileVerdict

    class Attempt(Protocol):
        def __call__(self, images: Images, theirs: State, subject: Subject, *, thorough: bool) -> Merge: ...


Line = tuple[str, ...]
_NEVER = "99999"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A column with the files of it that patches touch; `version` is what a patch's `applies` is asked with.

    names: every path there, none where they cannot be listed. find: all Python files; expensive.
    """

    column: Column
    version: str
    files: Mapping[str, bytes]
    names: frozenset[str]
    find: Callable[[], Mapping[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Images:
    """The files of an edition before and after it, on its own release, all of whose Python files `find` gives."""

    release: str
    identity: str
    data: bytes
    pre: State
    post: State
    find: Callable[[], Mapping[str, bytes]]


def lines(catalog: Catalog) -> tuple[Line, ...]:
    """Return every distinct series, whatever the release: the patches that a model, variant and arch can need."""
    targets = dict.fromkeys(target[:3] for target in planning.possible(catalog))
    bound = (planning.bound(catalog, model=model, variant=variant, arch=arch) for model, variant, arch in targets)
    return tuple(dict.fromkeys(tuple(patch.id for patch in patches) for patches in bound))


class Judge:
    """Replays series on subjects, each step once.

    `releases` holds the subject of every release that a patch has an edition for; `attempt` merges an edition's change.
    """

    def __init__(
        self, catalog: Catalog, releases: Mapping[str, Subject], attempt: Attempt, probe: Probe | None = None
    ) -> None:
        self._catalog = catalog
        self._attempt = attempt
        self._probe = probe or (lambda *_: None)
        self._releases = releases
        self._lines = lines(catalog)
        self._steps: dict[tuple[Line, Column], tuple[Cell, State]] = {}

    def cell(self, patch_id: str, subject: Subject) -> Cell:
        """Return the worst verdict that the patch gets in any series."""
        series = {line[: line.index(patch_id) + 1] for line in self._lines if patch_id in line} or {(patch_id,)}
        cells = [self._step(line, subject)[0] for line in sorted(series)]
        worst = fit.worst(cell.verdict for cell in cells)
        return next(cell for cell in cells if cell.verdict is worst)

    def edition_on(self, patch_id: str, release: str, subject: Subject) -> tuple[FileVerdict, ...]:
        """Return what the edition for `release` meets on a subject, whatever edition the subject has of its own."""
        line = next((line[: line.index(patch_id) + 1] for line in self._lines if patch_id in line), (patch_id,))
        images = self.images(line, release)
        if not images:
            raise errors.NotApplied(
                f"{patch_id}: its edition for {release} does not fit there", hint="./inv patch.lint"
            )
        theirs = self._before(line, subject, images.pre)
        return fit.carried(images.data, images.pre, theirs, subject.names)

    def images(self, line: Line, release: str) -> Images | None:
        """Return the files around the last edition of a series; None where they are not as recorded."""
        subject = self._releases[release]
        if subject.column.problem:
            return None
        cell, after = self._recorded(_blank(line, subject), line, subject)
        if cell.verdict is not Verdict.CLEAN:
            return None
        paths = self._catalog.patches[line[-1]].editions[release].files
        pre = self._before(line, subject, paths)
        data, find = self._edition(line[-1], release), subject.find
        return Images(
            release=release,
            identity=subject.column.identity,
            data=data,
            pre=pre,
            post={path: after[path] for path in paths},
            find=find,
        )

    def _before(self, line: Line, subject: Subject, paths: Mapping[str, object]) -> State:
        """Return files as the series leaves them before its last patch, as far as it fits."""
        earlier = self._step(line[:-1], subject)[1] if line[:-1] else {}
        return {path: earlier[path] if path in earlier else subject.files.get(path) for path in paths}

    def _step(self, line: Line, subject: Subject) -> tuple[Cell, State]:
        """Return the verdict of the last patch of a series, and every file that the whole of it changes."""
        key = (line, subject.column)
        if key not in self._steps:
            earlier = self._step(line[:-1], subject)[1] if line[:-1] else {}
            try:
                cell, after = self._judge(line, subject)
            except (errors.KilnError, patching_errors.PatchingError) as error:  # of this cell; the others are judged
                says = f"could not be looked at: {error.message}"
                cell, after = replace(_blank(line, subject), says=says, next=error.hint), {}
            self._steps[key] = cell, earlier | after
        return self._steps[key]

    def _judge(self, line: Line, subject: Subject) -> tuple[Cell, State]:
        patch, version = self._catalog.patches[line[-1]], Version(subject.version)
        blank = _blank(line, subject)
        if told := _told(patch, subject):
            verdict, says, first = told
            known = verdict is not Verdict.UNKNOWN
            return replace(blank, verdict=verdict, says=says, first=first, known=known), {}
        since, until = (Version(release or _NEVER) for release in (patch.upstream_since, patch.withdrawn_in))
        if since <= version < until:
            return self._merged(blank, line, subject), {}
        if subject.version in patch.editions and subject.column.kind != "ref":
            return self._recorded(blank, line, subject)
        return self._carried(blank, line, subject)

    def _recorded(self, blank: Cell, line: Line, subject: Subject) -> tuple[Cell, State]:
        """Apply the edition that is made for this very release."""
        edition = self._catalog.patches[line[-1]].editions[subject.version]
        data = self._edition(line[-1], subject.version)
        if digest(data) != edition.sha256:
            says = "its edition is not the one that patch.yaml records"
            return replace(
                blank, verdict=Verdict.CONFLICT, edition=subject.version, says=says, next="./inv patch.lint"
            ), {}
        files, after = fit.recorded(data, edition, self._before(line, subject, edition.files))
        verdict = fit.worst(row.verdict for row in files)
        clean = verdict is Verdict.CLEAN
        cell = replace(
            blank,
            verdict=verdict,
            known=clean,
            says="its edition applies, every hash as recorded" if clean else "its own edition does not apply here",
            next="" if clean else "./inv patch.lint",
            edition=subject.version,
            files=files,
            diff=_text(data),
        )
        return cell, after if clean else {}

    def _merged(self, blank: Cell, line: Line, subject: Subject) -> Cell:
        """Look whether a release has the change that the catalog says it has."""
        patch = self._catalog.patches[line[-1]]
        since = str(patch.upstream_since)
        cell = replace(blank, verdict=Verdict.MERGED, known=True, first=since)
        if not patch.editions:
            return self._without_edition(cell, patch, subject)
        images = self.images(line, release := planning.nearest(patch, since))
        if not images:
            return replace(blank, says=f"its edition for {release} could not be made ready: see column {release}")
        cell = replace(cell, edition=images.release)
        theirs = self._before(line, subject, images.pre)
        files = fit.carried(images.data, images.pre, theirs, subject.names)
        if fit.old_lines_are_back(files):
            says = f"the catalog says that vLLM has it since {since}, and here the lines before it are back"
            hint = f"set withdrawn_in: {subject.column.name} in patches/{patch.id}/patch.yaml"
            hint = hint if subject.column.kind == "release" else ""
            return replace(cell, verdict=Verdict.WITHDRAWN, known=False, says=says, next=hint, files=files)
        found, total = fit.already(images.pre, images.post, theirs)
        if found == total and self._attempt(images, theirs, subject, thorough=False).merged:
            return replace(cell, says=f"vLLM has it since {since}, line by line as the edition has it")
        return self._in_other_words(cell, images, theirs, files)

    def _without_edition(self, cell: Cell, patch: records.Patch, subject: Subject) -> Cell:
        """Look at what has no edition to compare with: by its probe, which patch.prove runs on known releases."""
        told = f"vLLM has it since {cell.first}, says the catalog"
        if subject.column.in_catalog:
            return replace(cell, says=f"{told}, and ./inv patch.prove shows it on this release")
        if subject.column.kind == "image" and subject.version in self._catalog.releases.releases:
            shown = f"./inv patch.prove shows it on {subject.version}, which the image says it is"
            return replace(cell, says=f"{told}; {shown}; the image's own files were not looked at for it")
        green = self._probe(patch, subject)
        if green:
            return replace(cell, says=f"{told}, and its probe is green here")
        if green is None:
            return replace(cell, verdict=Verdict.UNKNOWN, known=False, says=f"{told}; no probe could look at it here")
        return replace(cell, verdict=Verdict.WITHDRAWN, known=False, says=f"{told}, and its probe is red here")

    def _in_other_words(self, cell: Cell, images: Images, theirs: State, files: tuple[FileVerdict, ...]) -> Cell:
        """Look whether what upstream changed in these files, on the first release that has it, is still there."""
        since = cell.first
        first = self._releases.get(since)
        if first is None or first.column.problem:
            says = f"the catalog says that vLLM has it since {since}, whose files are not there to compare with"
            return replace(cell, verdict=Verdict.UNKNOWN, known=False, says=says)
        upstream = {path: first.files.get(path) for path in images.pre}
        gone = [row for row in files if theirs[row.path] is None and upstream[row.path] is not None]
        if gone:
            says = f"the catalog says that vLLM has it since {since}, and a file that it is in is gone here"
            return replace(cell, verdict=fit.worst(row.verdict for row in gone), known=False, says=says, files=files)
        found, total = fit.already(images.pre, upstream, theirs)
        if not total:
            says = f"vLLM has it since {since}, in other files than the edition's: ./inv patch.prove shows it there"
            return replace(cell, says=says)
        shares = f"{found} of the {total} lines that {since} changed in these files"
        if found < total / 2:
            says = f"the catalog says that vLLM has it since {since}; of it, {shares} are here"
            return replace(cell, verdict=Verdict.MERGED_DIFFERENT, known=False, says=says, files=files)
        says = f"vLLM has it since {since}, in its own words, which ./inv patch.prove shows; here are {shares}"
        return replace(cell, says=says)

    def _carried(self, blank: Cell, line: Line, subject: Subject) -> tuple[Cell, State]:
        """Judge the nearest edition on sources that have none, and carry it over by a three-way merge."""
        patch, column = self._catalog.patches[line[-1]], subject.column
        release = planning.nearest(patch, subject.version)
        images = self.images(line, release)
        if not images:
            return replace(blank, says=f"its edition for {release} could not be made ready: see column {release}"), {}
        port = f"./inv patch.port {patch.id} --to {subject.version}" if column.kind == "release" else ""
        cell = replace(blank, edition=release, next=port)
        theirs = self._before(line, subject, images.pre)
        files = fit.carried(images.data, images.pre, theirs, subject.names)
        cell = replace(cell, files=files, verdict=fit.worst(row.verdict for row in files))
        if cell.verdict is Verdict.CLEAN:
            says = f"the files are those of {release}, whose edition applies, every hash as recorded"
            return replace(cell, says=says, known=not column.in_catalog, diff=_text(images.data)), images.post
        cell = replace(cell, known=self._unported(patch, subject))
        if not column.in_catalog and self._probe(patch, subject):
            says = f"the edition for {release} does not fit, and the patch's probe is green without it"
            return replace(cell, verdict=Verdict.MERGED_DIFFERENT, known=False, says=says), {}
        found, total = fit.already(images.pre, images.post, theirs)
        merge = self._attempt(images, theirs, subject, thorough=not cell.known and subject.find is not dict)
        if found > total / 2 and not (merge.merged or merge.clean):
            says = f"{found} of the {total} lines that the edition for {release} adds are in the release's own files"
            return replace(cell, verdict=Verdict.MERGED_DIFFERENT, says=says, port="conflict"), {}
        return _ported(cell, images, merge)

    def _unported(self, patch: records.Patch, subject: Subject) -> bool:
        """Say whether the catalog lists the version, or, of what is newer than every release, the newest one."""
        newest = max(self._catalog.releases.releases, key=Version)
        return subject.version in patch.unported or (
            subject.column.kind != "release" and Version(subject.version) > Version(newest) and newest in patch.unported
        )

    def _edition(self, patch_id: str, release: str) -> bytes:
        return (self._catalog.root / edition_path(patch_id, release)).read_bytes()


def _blank(line: Line, subject: Subject) -> Cell:
    return Cell(patch=line[-1], column=subject.column.name, verdict=Verdict.UNKNOWN, known=False, says="")


def _told(patch: records.Patch, subject: Subject) -> tuple[Verdict, str, str] | None:
    """Return verdict, sentence and first release where no file needs to be looked at, or none can be."""
    version = Version(subject.version)
    since, first = patch.upstream_since, patch.withdrawn_in
    if subject.column.problem:
        return Verdict.UNKNOWN, f"could not be read: {subject.column.problem}", ""
    needed = planning.covers(patch.applies, subject.version)
    if first and version >= Version(first) and not (needed and patch.editions):
        return Verdict.WITHDRAWN, f"upstream had it since {since} and took it back in {first}", first
    if since and version >= Version(since) and not (first and version >= Version(first)):
        return None
    if not needed:
        return Verdict.NOT_NEEDED, f"applies to vLLM {patch.applies.releases} only", ""
    return None if patch.editions else (Verdict.UNKNOWN, "is needed here, and has no edition at all", "")


def _ported(cell: Cell, images: Images, merge: Merge) -> tuple[Cell, State]:
    """Say how the three-way merge of an edition that does not fit has ended."""
    if merge.merged:
        says = f"every line of the edition for {images.release} is in the release's own files"
        return replace(cell, verdict=Verdict.MERGED, known=False, first=cell.column, says=says, next=""), {}
    listed = " (listed as unported)" if cell.known else ""
    if not merge.clean:
        says = f"the edition for {images.release} does not fit, and its change cannot be merged{listed}"
        return replace(cell, port="conflict", says=says), {}
    made = git.diff(_present(merge.before), _present(merge.after))
    says = f"the edition for {images.release} does not fit; its change merges, which its probe has not proven{listed}"
    return replace(cell, port="clean", says=says, diff=_text(made)), merge.after


def _present(files: State) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if data is not None}


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
