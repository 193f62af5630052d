"""The one gate that every new or changed edition goes through: checked, fitted and proven, or not written."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import catalog as catalogs
from kiln import errors, files
from kiln import lint as linting
from kiln.authoring import base
from kiln.catalog import edit, edition_path, records
from kiln.catalog import lint as catalog_lint
from kiln.errors import Finding
from kiln.patching import authoring, diff
from kiln.patching import errors as patching_errors
from kiln.patching.outcomes import named
from kiln.patching.tree import Memory
from kiln.proof import cases
from kiln.proof import prove as proving

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kiln.catalog import Catalog
    from kiln.proof.cases import Case
    from kiln.proof.prove import Proof
    from kiln.report import Reporter

    Prover = Callable[[Catalog, Sequence[Case], Reporter], tuple[Proof, ...]]

_SHARED = ("images", "recipes", "kiln.yaml")


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

    Raises BadInput for unknown names, Missing where it cannot be proven here: then nothing is written either.
    """
    patch = base.known(catalog, patch_id, release)
    where = catalog.root / "patches" / patch_id / "patch.yaml"
    before = where.read_bytes()
    edition, findings = _fitted(catalog, patch_id, release, data)
    if edition is None:
        return findings
    text = edit.with_edition(before.decode(), release, edition)
    with candidate(catalog, {edition_path(patch_id, release): data, where.relative_to(catalog.root): text}) as made:
        with reporter.step(f"{patch_id} on {release}: lint, and every series that holds it"):
            findings = (*_unproven(made, patch), *_linted(catalog, made, patch_id, release))
            findings = findings or tuple(clashes(made, patch_id, release))
        findings = findings or _proven(made, patch_id, release, lambda found: prove(made, found, reporter))
    if findings or dry_run:
        return findings
    if where.read_bytes() != before:
        raise errors.BadInput(f"patches/{patch_id}/patch.yaml was changed meanwhile", hint="the same command again")
    write_all(catalog.root, {edition_path(patch_id, release): data, where.relative_to(catalog.root): text.encode()})
    return ()


@contextlib.contextmanager
def candidate(catalog: Catalog, changed: Mapping[Path, bytes | str]) -> Iterator[Catalog]:
    """Yield the catalog as it would be with these files, in a folder of its own; the caches are the real ones."""
    with tempfile.TemporaryDirectory(prefix="kiln-candidate-") as name:
        root = Path(name).resolve()
        shutil.copytree(catalog.root / "patches", root / "patches", ignore=shutil.ignore_patterns("__pycache__"))
        shared = [catalog.root / part for part in _SHARED]
        for path in (*shared, *catalog.root.glob("requirements*.lock")):
            if path.exists():
                (root / path.name).symlink_to(path)
        for path, content in changed.items():
            files.write(root / path, content)
        yield replace(catalogs.load(root), state=catalog.state)


def clashes(catalog: Catalog, patch_id: str, release: str) -> Iterator[Finding]:
    """Yield why a series of the release that holds the patch no longer applies; a later patch is named."""
    seen: set[tuple[str, ...]] = set()
    for target, patches in base.series(catalog, patch_id, release):
        ids = tuple(patch.id for patch in patches if release in patch.editions)
        if ids in seen:
            continue
        seen.add(ids)
        found = list(_broken_chain(catalog, ids, release, target))
        yield from found
        if not found:
            try:
                base.left_by(catalog, release, ids)
            except errors.NotApplied as error:
                problem = f"the series of {target} does not apply:\n{error.message}"
                yield Finding(where=str(edition_path(patch_id, release)), problem=problem, hint=error.hint)


def write_all(root: Path, contents: Mapping[Path, bytes]) -> None:
    """Write every file whole, or, interrupted or refused by the system, leave all as they were."""
    before = {path: (root / path).read_bytes() if (root / path).exists() else None for path in contents}
    try:
        for path, data in contents.items():
            files.write(root / path, data)
    except BaseException:
        for path, old in before.items():
            if old is None:
                (root / path).unlink(missing_ok=True)
            else:
                files.write(root / path, old)
        raise


def record(patch_id: str, data: bytes, before: Mapping[str, bytes]) -> records.Edition:
    """Return what patch.yaml says of an edition on these files; raises PatchingError where it does not fit."""
    made = authoring.edition(patch_id, data, Memory(before))
    hashes = {change.path: records.FileHashes(pre=change.pre, post=change.post) for change in made.files}
    return records.Edition(sha256=made.sha256, files=hashes)


def _fitted(
    catalog: Catalog, patch_id: str, release: str, data: bytes
) -> tuple[records.Edition | None, tuple[Finding, ...]]:
    """Return the record of an edition, or why it does not fit what the earlier patches of its series leave."""
    where = str(edition_path(patch_id, release))
    try:
        paths = {file.path for file in diff.parse(data, where)}
        before = base.left_by(catalog, release, base.earlier(catalog, patch_id, release), paths)
        edition = record(patch_id, data, before)
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


def _unproven(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    """Yield that there is nothing yet which could say that an edition does what it is for."""
    where = f"patches/{patch.id}/probe.py"
    path = catalog.root / where
    if not patch.probe or not path.is_file():
        yield Finding(where=where, problem="is missing", hint="write it, and name it in patch.yaml: CONTRIBUTING.md")
    elif catalog_lint.UNWRITTEN.encode() in path.read_bytes():
        hint = f"make it red without the patch and green with it: {where}"
        yield Finding(where=where, problem="is still the skeleton, so nothing can be proven", hint=hint)


def _linted(before: Catalog, made: Catalog, patch_id: str, release: str) -> tuple[Finding, ...]:
    """Return the findings of the edition, and those of anything else that it brings about."""

    def found(catalog: Catalog) -> tuple[Finding, ...]:
        return (*catalog_lint.patches(catalog), *linting.editions(catalog, release))

    own = (str(edition_path(patch_id, release)), f"patches/{patch_id}/patch.yaml: editions.{release}")
    old = {finding for finding in found(before) if not finding.where.startswith(own)}
    return tuple(finding for finding in found(made) if finding not in old)


def _broken_chain(catalog: Catalog, ids: Sequence[str], release: str, target: str) -> Iterator[Finding]:
    """Yield each patch of a series that expects other bytes than the one before it leaves."""
    left: dict[str, tuple[str, str | None]] = {}
    for patch_id in ids:
        for path, hashes in catalog.patches[patch_id].editions[release].files.items():
            other, post = left.get(path, ("", hashes.pre))
            if post != hashes.pre:
                expected = f"expects {named(hashes.pre)}, and {other}, before it on {target}, leaves {named(post)}"
                yield Finding(
                    where=str(edition_path(patch_id, release)),
                    problem=f"{path}: {expected}",
                    hint=f"make it again on top of {other}: ./inv patch.edit {patch_id} --release {release}",
                )
            left[path] = (patch_id, hashes.post)


def _proven(
    made: Catalog, patch_id: str, release: str, prove: Callable[[Sequence[Case]], tuple[Proof, ...]]
) -> tuple[Finding, ...]:
    """Return what the probe and the tests say against the edition; no proof at all says that too."""
    found = cases.plan(made, ids={patch_id}, releases={release})
    chosen = [case for case in found if case.kind == "edition" and case.patch == patch_id]
    proofs = prove(chosen)
    if {proof.case for proof in proofs} != set(chosen):
        return (Finding(where=f"patches/{patch_id} on {release}", problem="was not proven"),)
    return tuple(finding for proof in proofs for finding in proof.findings)
