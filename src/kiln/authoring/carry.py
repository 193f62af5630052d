"""Makes later patches' editions again where an earlier one of their series has changed, if that is beyond doubt."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors, git
from kiln.authoring import base, drafts
from kiln.catalog import edition_path
from kiln.errors import Finding
from kiln.port import sources
from kiln.port.attempt import Between, attempt

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.port.records import Attempt


@dataclass(frozen=True, kw_only=True)
class Carried:
    """`contents` are all files to write, `ids` the later patches among them; `findings` say why one cannot be."""

    contents: Mapping[Path, bytes]
    ids: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def later(
    catalog: Catalog, patch_id: str, release: str, contents: Mapping[Path, bytes], *, paths: Iterable[str]
) -> Carried:
    """Carry every later edition of a release whose files the new one of a patch, `contents`, leaves otherwise.

    `paths` are the files that it changes. Raises Missing where the release's files cannot be had.
    """
    found, ids = dict(contents), []
    old = catalog.patches[patch_id].editions
    touched = {*paths, *(old[release].files if release in old else ())}
    for other in catalog.order[catalog.order.index(patch_id) + 1 :]:
        editions = catalog.patches[other].editions
        if release not in editions or touched.isdisjoint(editions[release].files):
            continue
        with drafts.candidate(catalog, found) as made:
            try:
                sides = _sides(catalog, made, other, release)
            except errors.NotApplied:  # it did not fit before either: what is wrong is found where the series is made
                continue
            if sides.pre == sides.theirs:
                continue
            tree = functools.cache(functools.partial(sources.tree, made, other, release))
            between = Between(edition=f"{other} before", release=f"{patch_id} now")
            moved = attempt(sides.pre, sides.post, sides.theirs, tree, between=between)
        if moved.problems or moved.merged:
            return Carried(contents=found, findings=tuple(_findings(patch_id, other, release, moved)))
        before, after = _there(sides.theirs), _there(moved.files)
        data = git.diff(before, after)
        found |= drafts.with_edition(catalog, other, release, data=data, edition=drafts.record(other, data, before))
        touched |= {*moved.files}
        ids.append(other)
    return Carried(contents=found, ids=tuple(ids))


def _sides(catalog: Catalog, made: Catalog, patch_id: str, release: str) -> sources.Images:
    """Return a later edition's files before and after it, and before it as they are going to be."""
    edition = catalog.patches[patch_id].editions[release]
    paths = sorted(edition.files)
    pre = base.left_by(catalog, release, base.earlier(catalog, patch_id, release), paths)
    post = base.after(catalog, release, (patch_id,), {path: pre[path] for path in paths if path in pre})
    now = base.left_by(made, release, base.earlier(made, patch_id, release), paths)
    return sources.Images(
        **{
            name: {path: state.get(path) for path in paths}
            for name, state in (("pre", pre), ("post", post), ("theirs", now))
        }
    )


def _findings(patch_id: str, other: str, release: str, moved: Attempt) -> Iterator[Finding]:
    where = str(edition_path(other, release))
    if moved.merged:
        hint = f"take it out of patches/{other}/patch.yaml, and its file away; then the same command"
        yield Finding(where=where, problem=f"{patch_id} now does all that this edition does", hint=hint)
    for problem in moved.problems:
        at = f"{problem.path}{f' hunk {problem.hunk}' if problem.hunk else ''}"
        yield Finding(
            where=where,
            problem=f"comes after {patch_id} and cannot be made again on top of it: {at}: {problem.found}; "
            f"{problem.expected}",
            hint=f"make both anew: keep a copy of {where}, remove it and editions.{release} of patches/{other}/"
            f"patch.yaml (list {release} under unported), then the same command; "
            f"then ./inv patch.edit {other} --release {release}, make its change again, and ./inv patch.export "
            f"{other} --release {release}",
        )


def _there(files: Mapping[str, bytes | None]) -> dict[str, bytes]:
    return {path: data for path, data in files.items() if data is not None}
