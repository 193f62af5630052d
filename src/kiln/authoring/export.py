"""Makes the edition of what was edited in a worktree, always with the same bytes, and hands it to the gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors, git
from kiln import lint as linting
from kiln import plan as planning
from kiln.authoring import base, drafts, gate, leftovers, worktree
from kiln.catalog import edition_path
from kiln.errors import Finding
from kiln.patching import errors as patching_errors
from kiln.proof import prove as proving

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from kiln.catalog import Catalog, records
    from kiln.report import Reporter

_MODE = "mode only: an edition holds contents, not modes"


@dataclass(frozen=True, kw_only=True)
class Touched:
    """A file that an edition makes, changes or deletes: `what` is new, changed or deleted."""

    path: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Export:
    """What became of a worktree: `changed` says whether the edition or its record differs from the stored one.

    Written only where it is changed, nothing was found and it was no dry run. `left_out` is (path, why).
    """

    edition: str
    changed: bool
    written: bool
    diff: str
    files: tuple[Touched, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    findings: tuple[Finding, ...] = ()


def export(  # noqa: PLR0913 - what, and how it is shown and proven
    catalog: Catalog,
    patch_id: str,
    release: str,
    *,
    reporter: Reporter,
    dry_run: bool = False,
    files: bool = False,
    prove: gate.Prover = proving.run,
) -> Export:
    """Turn what a worktree holds over its base into the patch's edition, if the gate lets it through.

    `files` says that it may touch other files than the edition before, and delete some. Raises BadInput where there is
    no worktree, no change in it, or what no edition can hold.
    """
    patch = base.known(catalog, patch_id, release)
    folder = worktree.place(catalog, patch_id, release)
    again = f"./inv patch.edit {patch_id} --release {release}"
    if not folder.exists():
        raise errors.BadInput(f"{folder}: no such worktree", hint=again)
    before, after = worktree.changes(folder)
    modes = worktree.executable(folder)
    if problems := list(leftovers.problems(before, after)):
        raise errors.BadInput("\n".join(problems), hint=f"see it: git -C {folder} diff {worktree.BASE}")
    if not before and not after:
        hint = f"edit files below {folder}/vllm; to start over: {again} --discard"
        but = f" but what an edition cannot hold, the mode of {', '.join(modes)}" if modes else ""
        raise errors.BadInput(f"{folder}: nothing differs from {worktree.BASE}{but}", hint=hint)
    data = git.diff(before, after)
    told = Export(
        edition=str(edition_path(patch_id, release)),
        changed=True,
        written=False,
        diff=data.decode("utf-8", "replace"),
        files=_compared(before, after),
        left_out=tuple((path, _MODE) for path in modes),
    )
    if _is_stored(catalog, patch, release, data=data, before=before):
        return replace(told, changed=False)
    findings = () if files else tuple(_strange(patch, release, told.files))
    findings = findings or gate.accept(
        catalog, patch_id, release, data, reporter=reporter, dry_run=dry_run, prove=prove
    )
    return replace(told, written=not findings and not dry_run, findings=findings)


def _is_stored(
    catalog: Catalog, patch: records.Patch, release: str, *, data: bytes, before: Mapping[str, bytes]
) -> bool:
    """Say whether the catalog has this edition already, and its record in patch.yaml is right."""
    stored = catalog.root / edition_path(patch.id, release)
    if release not in patch.editions or not stored.is_file() or stored.read_bytes() != data:
        return False
    try:
        return drafts.record(patch.id, data, before) == patch.editions[release]
    except patching_errors.PatchingError:  # the gate says what is wrong
        return False


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


def _compared(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> tuple[Touched, ...]:
    named = {(True, True): "changed", (True, False): "deleted", (False, True): "new"}
    return tuple(Touched(path=path, what=named[path in before, path in after]) for path in sorted({*before, *after}))


def _strange(patch: records.Patch, release: str, touched: Sequence[Touched]) -> Iterator[Finding]:
    """Yield what the edition before did not touch, or did not delete: one of this release, else of the nearest."""
    where = str(edition_path(patch.id, release))
    other = release if release in patch.editions else planning.nearest(patch, release) if patch.editions else ""
    known = patch.editions[other].files if other else {}
    hint = f"if it is meant: ./inv patch.export {patch.id} --release {release} --files"
    for each in touched:
        deletes = each.path in known and known[each.path].post is None
        if each.what == "deleted" and not deletes:
            yield Finding(where=where, problem=f"deletes {each.path}, which {_edition(other)} does not", hint=hint)
        elif known and each.path not in known:
            problem = f"{each.path} is {each.what}, and {_edition(other)} does not touch it"
            yield Finding(where=where, problem=problem, hint=hint)


def _edition(release: str) -> str:
    return f"the edition for {release}" if release else "an edition before"
