"""Makes the edition of what was edited in a worktree, always with the same bytes, and hands it to the gate."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors, git
from kiln import lint as linting
from kiln.authoring import base, gate, worktree
from kiln.catalog import edition_path
from kiln.patching import errors as patching_errors
from kiln.patching import paths
from kiln.proof import prove as proving

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from kiln.catalog import Catalog
    from kiln.errors import Finding
    from kiln.report import Reporter

_MARKER = re.compile(rb"(<{7}|>{7}|\|{7})( |$)")
_DROPPINGS = (*paths.DROPPINGS, ".bak", ".swp")


@dataclass(frozen=True, kw_only=True)
class Export:
    """What became of a worktree: `changed` says whether the edition differs from the stored one.

    Written only where it is changed, nothing was found and it was no dry run.
    """

    edition: str
    changed: bool
    written: bool
    diff: str
    findings: tuple[Finding, ...] = ()


def export(  # noqa: PLR0913 - what, and how it is shown and proven
    catalog: Catalog,
    patch_id: str,
    release: str,
    *,
    reporter: Reporter,
    dry_run: bool = False,
    prove: gate.Prover = proving.run,
) -> Export:
    """Turn what a worktree holds over its base into the patch's edition, if the gate lets it through.

    Raises BadInput where there is no worktree, no change in it, or what no edition can hold.
    """
    base.known(catalog, patch_id, release)
    folder = worktree.place(catalog, patch_id, release)
    again = f"./inv patch.edit {patch_id} --release {release}"
    if not folder.exists():
        raise errors.BadInput(f"{folder}: no such worktree", hint=again)
    before, after = worktree.changes(folder)
    if problems := list(_problems(before, after)):
        raise errors.BadInput("\n".join(problems), hint=f"see it: git -C {folder} diff {worktree.BASE}")
    if not before and not after:
        hint = f"edit files below {folder}/vllm; to start over: {again} --discard"
        raise errors.BadInput(f"{folder}: nothing differs from {worktree.BASE}", hint=hint)
    data = git.diff(before, after)
    where = edition_path(patch_id, release)
    told = Export(edition=str(where), changed=False, written=False, diff=data.decode("utf-8", "replace"))
    if (catalog.root / where).is_file() and (catalog.root / where).read_bytes() == data:
        return told
    findings = gate.accept(catalog, patch_id, release, data, reporter=reporter, dry_run=dry_run, prove=prove)
    return Export(
        edition=told.edition,
        changed=True,
        written=not findings and not dry_run,
        diff=told.diff,
        findings=findings,
    )


def check(catalog: Catalog, ids: Collection[str] = (), releases: Collection[str] = ()) -> Iterator[Finding]:
    """Make every chosen edition again from the release's files; yield each that is not the same byte for byte.

    Raises BadInput for unknown names, or where there is no such edition.
    """
    problems = [errors.unknown("patch", name, catalog.patches) for name in ids if name not in catalog.patches]
    known = catalog.releases.releases
    problems += [errors.unknown("release", name, known) for name in releases if name not in known]
    if problems:
        raise errors.BadInput("\n".join(problems))
    chosen = {
        release: [patch.id for patch in catalog.patches.values() if release in patch.editions and _in(patch.id, ids)]
        for release in known
        if _in(release, releases)
    }
    if not any(chosen.values()):
        what = f"{', '.join(ids) or 'any patch'} on {', '.join(releases) or 'any release'}"
        raise errors.BadInput(f"no edition of {what}", hint="see what there is: ./inv patch.explain ID")
    for release, names in chosen.items():
        own = tuple(f"patches/{name}/" for name in names)
        yield from (each for each in linting.editions(catalog, release) if each.where.startswith(own))


def _in(name: str, chosen: Collection[str]) -> bool:
    return not chosen or name in chosen


def _problems(before: dict[str, bytes], after: dict[str, bytes]) -> Iterator[str]:
    """Yield what keeps these files from being an edition, each with its place."""
    for path in sorted({*before, *after}):
        try:
            paths.target(path)
        except patching_errors.BadPath as error:
            yield error.message
            continue
        if not path.startswith("vllm/"):
            yield f"{path}: outside of vllm/; an edition changes files of the installed package only"
        elif path.endswith(_DROPPINGS) and path not in before:
            yield f"{path}: left by an editor or a merge; remove it"
    for path, data in after.items():
        for number, line in enumerate(io.BytesIO(data), 1):
            if _MARKER.match(line.rstrip(b"\r\n")) and line not in _lines(before.get(path)):
                yield f"{path}:{number}: a conflict marker: {line.rstrip().decode('utf-8', 'replace')[:80]}"


def _lines(data: bytes | None) -> frozenset[bytes]:
    return frozenset(io.BytesIO(data or b""))
