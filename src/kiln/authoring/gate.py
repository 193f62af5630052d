"""The one gate that every new or changed edition goes through: checked, fitted and proven, or not written."""

from __future__ import annotations

import contextlib
import itertools
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln import lint as linting
from kiln.authoring import base, carry, drafts
from kiln.catalog import edition_path
from kiln.catalog import lint as catalog_lint
from kiln.errors import Finding
from kiln.patching import diff
from kiln.patching import errors as patching_errors
from kiln.patching.outcomes import named
from kiln.proof import cases
from kiln.proof import prove as proving
from kiln.proof.cases import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from kiln.catalog import Catalog, records
    from kiln.proof.prove import Proof
    from kiln.report import Reporter

    Prover = Callable[[Catalog, Sequence[Case], Reporter], tuple[Proof, ...]]


def accept(  # noqa: PLR0913 - what is written, what for, and how it is shown and proven
    catalog: Catalog,
    patch_id: str,
    release: str,
    data: bytes,
    *,
    reporter: Reporter,
    dry_run: bool = False,
    prove: Prover = proving.run,
) -> tuple[Finding, ...]:
    """Write an edition and its record in patch.yaml if nothing at all speaks against it; return what does.

    Later editions of the release that change the same files are made again on top of it, proven and written with it.
    Raises BadInput for unknown names, Missing where it cannot be proven here: then nothing is written either.
    """
    base.known(catalog, patch_id, release)
    before = {drafts.described(each): _bytes(catalog.root / drafts.described(each)) for each in catalog.order}
    edition, findings = _fitted(catalog, patch_id, release, data)
    if edition is None:
        return findings
    own = drafts.with_edition(catalog, patch_id, release, data=data, edition=edition)
    with contextlib.ExitStack() as stack:
        with reporter.step(f"{patch_id} on {release}: lint, and every series that holds it"):
            carried = carry.later(catalog, patch_id, release, own, paths=edition.files)
            ids = (patch_id, *carried.ids)
            made = stack.enter_context(drafts.candidate(catalog, carried.contents))
            findings = carried.findings or (*unproven(made, ids), *_linted(catalog, made, ids, release))
            findings = findings or tuple(clashes(made, patch_id, release))
        findings = findings or _proven(made, ids, release, lambda found: prove(made, found, reporter))
    if findings:
        return findings
    if not dry_run:
        _write(catalog.root, carried.contents, before)
    for each in carried.ids:
        reporter.note(f"{edition_path(each, release)} {'would be' if dry_run else 'was'} made again on top of it")
    return ()


def _write(root: Path, contents: Mapping[Path, bytes], before: Mapping[Path, bytes | None]) -> None:
    for path in contents.keys() & before.keys():
        if _bytes(root / path) != before[path]:
            raise errors.BadInput(f"{path} was changed meanwhile", hint="the same command again")
    drafts.write_all(root, contents)


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def clashes(catalog: Catalog, patch_id: str, release: str) -> Iterator[Finding]:
    """Yield why a series of the release that holds the patch no longer applies, each reason once."""
    chains: dict[tuple[str, ...], str] = {}
    for target, patches in base.series(catalog, patch_id, release):
        chains.setdefault(tuple(patch.id for patch in patches if release in patch.editions), target)
    seen: dict[tuple[str, str, str], Finding] = {}
    for ids, target in chains.items():
        for key, finding in _broken_chain(catalog, ids, release, target):
            seen.setdefault(key, finding)
    yield from seen.values()
    for ids, target in chains.items() if not seen else ():
        try:
            base.left_by(catalog, release, ids)
        except errors.NotApplied as error:
            problem = f"the series of {target} does not apply:\n{error.message}"
            yield Finding(where=str(edition_path(patch_id, release)), problem=problem, hint=error.hint)


def _fitted(
    catalog: Catalog, patch_id: str, release: str, data: bytes
) -> tuple[records.Edition | None, tuple[Finding, ...]]:
    """Return the record of an edition, or why it does not fit what the earlier patches of its series leave."""
    where = str(edition_path(patch_id, release))
    try:
        paths = {file.path for file in diff.parse(data, where)}
        before = base.left_by(catalog, release, base.earlier(catalog, patch_id, release), paths)
        edition = drafts.record(patch_id, data, before)
    except patching_errors.DoesNotApply as error:
        rows = (row for row in error.report.files if not row.outcome.done)
        return None, tuple(
            Finding(
                where=f"{where}: {row.path}{f' hunk {row.hunk}' if row.hunk else ''}",
                problem=f"{row.outcome.value}: expected {row.expected}, found {row.found}",
                hint=row.hint,
            )
            for row in rows
        )
    except patching_errors.PatchingError as error:
        return None, (Finding(where=where, problem=error.message.removeprefix(f"{where}: "), hint=error.hint),)
    foreign = [path for path in sorted(paths) if not path.startswith("vllm/")]
    hint = "an edition changes files of the installed package only"
    outside = tuple(Finding(where=where, problem=f"touches {path}, outside of vllm/", hint=hint) for path in foreign)
    return (None, outside) if outside else (edition, ())


def unproven(catalog: Catalog, ids: Iterable[str]) -> Iterator[Finding]:
    """Yield each patch that has nothing yet which could say that an edition does what it is for."""
    for patch_id in ids:
        where = f"patches/{patch_id}/probe.py"
        path = catalog.root / where
        if not catalog.patches[patch_id].probe or not path.is_file():
            yield Finding(
                where=where, problem="is missing", hint="write it, and name it in patch.yaml: CONTRIBUTING.md"
            )
        elif catalog_lint.UNWRITTEN.encode() in path.read_bytes():
            hint = f"make it red without the patch and green with it: {where}; then the same command again"
            yield Finding(where=where, problem="is still the skeleton, so nothing can be proven", hint=hint)


def _linted(before: Catalog, made: Catalog, ids: Sequence[str], release: str) -> tuple[Finding, ...]:
    """Return the findings of the editions, and those of anything else that they bring about."""

    def found(catalog: Catalog) -> tuple[Finding, ...]:
        return (*catalog_lint.patches(catalog), *linting.editions(catalog, release))

    places = ((str(edition_path(each, release)), f"{drafts.described(each)}: editions.{release}") for each in ids)
    own = tuple(itertools.chain.from_iterable(places))
    old = {finding for finding in found(before) if not finding.where.startswith(own)}
    return tuple(finding for finding in found(made) if finding not in old)


def _broken_chain(
    catalog: Catalog, ids: Sequence[str], release: str, target: str
) -> Iterator[tuple[tuple[str, str, str], Finding]]:
    """Yield each patch of a series that expects other bytes than one before it leaves, with (patch, other, path)."""
    left: dict[str, tuple[str, str | None]] = {}
    for patch_id in ids:
        for path, hashes in catalog.patches[patch_id].editions[release].files.items():
            other, post = left.get(path, ("", hashes.pre))
            if post != hashes.pre:
                expected = f"expects {named(hashes.pre)}, and {other}, before it on {target}, leaves {named(post)}"
                yield (
                    (patch_id, other, path),
                    Finding(
                        where=str(edition_path(patch_id, release)),
                        problem=f"{path}: {expected}",
                        hint=f"make it again on top of {other}: ./inv patch.edit {patch_id} --release {release}",
                    ),
                )
            left[path] = (patch_id, hashes.post)


def _proven(
    made: Catalog, ids: Sequence[str], release: str, prove: Callable[[Sequence[Case]], tuple[Proof, ...]]
) -> tuple[Finding, ...]:
    """Return what probes, tests and imports say against the editions; no proof at all says that too."""
    found = cases.plan(made, ids=set(ids), releases={release})
    chosen = [case for case in found if case.kind == "series" or (case.kind == "edition" and case.patch in ids)]
    if not any(case.kind == "series" for case in chosen):  # alone on its targets: it has to be imported all the same
        chosen.append(Case(patch=f"{ids[0]} alone", release=release, before=(ids[0],), kind="series"))
    proofs = prove(chosen)
    if {proof.case for proof in proofs} != set(chosen):
        return (Finding(where=f"patches/{ids[0]} on {release}", problem="was not proven"),)
    return tuple(dict.fromkeys(_readable(finding, made.root) for proof in proofs for finding in proof.findings))


def _readable(finding: Finding, root: Path) -> Finding:
    """Return a finding that names the catalog's own files, not those of a folder that is gone when it is read."""
    return replace(finding, problem=re.sub(rf"[^\s'\"(:]*{re.escape(root.name)}/", "", finding.problem))
