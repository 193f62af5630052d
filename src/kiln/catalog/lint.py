"""The rules over hand-edited files that no schema can hold, each a generator of findings."""

from __future__ import annotations

import ast
import hashlib
from typing import TYPE_CHECKING

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from kiln import errors
from kiln.catalog.load import SERIES, edition_path
from kiln.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.catalog import records
    from kiln.catalog.load import Catalog

_TEXTS = ("title", "reason", "lost_without", "drop_when")
_OPEN_ENDS = ("todo", "tbd", "fixme", "xxx")
_ALWAYS = frozenset({"patch.yaml", "probe.py", "tests", "EVIDENCE.md"})
_BESIDE_PATCHES = frozenset({SERIES.name, "README.md", "conftest.py"})
_DERIVED = "__pycache__"
UNWRITTEN = "this probe is not written yet"  # what a new patch's probe says until somebody writes it


def patches(catalog: Catalog) -> Iterator[Finding]:
    """Yield what is wrong with patches as far as their own files tell."""
    yield from _foreign_files(catalog)
    for patch in catalog.patches.values():
        for rule in (_texts, _upstream, _obsolete, _releases, _unported, _relations, _files, _probe, _hashes):
            yield from rule(catalog, patch)
    yield from _twice(catalog)


def _texts(_: Catalog, patch: records.Patch) -> Iterator[Finding]:
    for name in _TEXTS:
        text: str = getattr(patch, name)
        if not text.strip():
            yield Finding(where=_at(patch, name), problem="is empty", hint="say it in a sentence")
        elif text.strip().lower().startswith(_OPEN_ENDS):
            yield Finding(where=_at(patch, name), problem=f"is still {text.strip()!r}", hint="say it in a sentence")
    if patch.probe and patch.probe.shows.strip().lower().startswith(_OPEN_ENDS):
        problem = f"is still {patch.probe.shows.strip()!r}"
        yield Finding(where=_at(patch, "probe.shows"), problem=problem, hint="say it in a sentence")


def _upstream(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    upstream = patch.upstream
    if upstream.status != "not-reported" and not upstream.links:
        yield Finding(
            where=_at(patch, "upstream.links"),
            problem=f"status is {upstream.status}, and no link shows it",
            hint="add the link of the issue or pull request",
        )
    yield from _known_releases(catalog, patch)
    for key, statuses in (("upstream_since", ("merged", "withdrawn")), ("withdrawn_in", ("withdrawn",))):
        release: str | None = getattr(patch, key)
        if upstream.status in statuses and release is None:
            problem = f"is missing, and upstream.status is {upstream.status}"
            yield Finding(where=_at(patch, key), problem=problem, hint="name the first release for which it holds")
        if upstream.status not in statuses and release is not None:
            yield Finding(
                where=_at(patch, key),
                problem=f"names {release}, but upstream.status is {upstream.status}",
                hint=f"set upstream.status: {statuses[0]}, or remove {key}",
            )


def _known_releases(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    known = catalog.releases.releases
    for key in ("upstream_since", "withdrawn_in"):
        release: str | None = getattr(patch, key)
        if release and release not in known:
            problem = errors.unknown("release", release, known)
            yield Finding(where=_at(patch, key), problem=problem, hint="name one of images/releases.yaml")


def _obsolete(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    """Yield releases that a patch asks for although they have its change themselves."""
    if not (since := patch.upstream_since):
        return
    covered = SpecifierSet(patch.applies.releases)
    for release in catalog.releases.releases:
        taken_back = patch.withdrawn_in and Version(release) >= Version(patch.withdrawn_in)
        if Version(release) >= Version(since) and not taken_back and covered.contains(release, prereleases=True):
            yield Finding(
                where=_at(patch, "applies.releases"),
                problem=f"covers {release}, but vLLM has this since {since}",
                hint=f'narrow applies.releases: "<{since}"',
            )


def _releases(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    """Compare the releases a patch is for with the editions it has."""
    covered = SpecifierSet(patch.applies.releases)
    for release in catalog.releases.releases:
        covers = covered.contains(release, prereleases=True)
        if covers and release not in patch.editions and release not in patch.unported:
            yield Finding(
                where=_at(patch, "applies.releases"),
                problem=f"covers {release}, which has no edition",
                hint=f"add {edition_path(patch.id, release)}, or list it under unported, or narrow applies.releases",
            )
    for release in patch.editions:
        if not covered.contains(release, prereleases=True):
            yield Finding(
                where=_at(patch, f"editions.{release}"),
                problem=f"is outside of applies.releases {patch.applies.releases!r}, so nothing uses it",
                hint="remove the edition, or widen applies.releases",
            )


def _unported(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    """Compare the releases that targets are refused on with those the patch is for, and with its editions."""
    covered = SpecifierSet(patch.applies.releases)
    for release in patch.unported:
        problem = ""
        if release in patch.editions:
            problem = f"names {release}, which has an edition"
        elif not covered.contains(release, prereleases=True):
            problem = f"names {release}, which is outside of applies.releases {patch.applies.releases!r}"
        elif release not in catalog.releases.releases:
            problem = errors.unknown("release", release, catalog.releases.releases)
        if problem:
            yield Finding(where=_at(patch, "unported"), problem=problem, hint=f"remove {release} from unported")


def _relations(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    for name, ids in (("requires", patch.requires), ("conflicts", patch.conflicts)):
        for other in ids:
            if other == patch.id:
                yield Finding(where=_at(patch, name), problem="names the patch itself", hint="remove it")
            elif other not in catalog.patches:
                problem = errors.unknown("patch", other, catalog.patches)
                yield Finding(where=_at(patch, name), problem=problem, hint="name a folder of patches/")
            elif name == "requires" and catalog.order.index(other) > catalog.order.index(patch.id):
                yield Finding(
                    where=str(SERIES),
                    problem=f"{patch.id} comes before {other}, which it requires",
                    hint=f"move {other} above {patch.id}",
                )
    for other in sorted(set(patch.requires) & set(patch.conflicts)):
        problem = f"{other} is also in requires"
        yield Finding(where=_at(patch, "conflicts"), problem=problem, hint="remove it from one of the two")


def _files(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    folder = _folder(catalog, patch)
    known = {*_ALWAYS, *(f"{release}.patch" for release in patch.editions)}
    for entry in sorted(folder.iterdir()):
        if entry.name in known or entry.name == _DERIVED:
            continue
        unlisted = entry.suffix == ".patch"
        yield Finding(
            where=f"patches/{patch.id}/{entry.name}",
            problem="is not listed under editions" if unlisted else "is none of the files of a patch",
            hint="list it in patch.yaml, or remove it" if unlisted else f"known: {', '.join(sorted(known))}",
        )


def _probe(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    path = _folder(catalog, patch) / "probe.py"
    where = f"patches/{patch.id}/probe.py"
    if not patch.probe:
        if patch.editions or path.exists():
            hint = "say what it needs and shows" if path.exists() else "a patch with editions has a probe.py"
            yield Finding(where=_at(patch, "probe"), problem="is missing", hint=hint)
        return
    if not path.is_file():
        hint = f"write one that is red without the patch and shows: {patch.probe.shows}"
        yield Finding(where=where, problem="is missing", hint=hint)
        return
    if not (_folder(catalog, patch) / "tests").is_dir():
        hint = f"write patches/{patch.id}/tests/test_*.py; each rule fails without the patch: CONTRIBUTING.md"
        yield Finding(where=f"patches/{patch.id}/tests", problem="is missing", hint=hint)
    if UNWRITTEN.encode() in path.read_bytes():
        hint = f"make it red without the patch and green with it, so that it shows: {patch.probe.shows.strip()}"
        yield Finding(where=where, problem="is still the skeleton", hint=hint)
    try:
        ast.parse(path.read_bytes(), where)
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}:" if isinstance(error, SyntaxError) and error.lineno else ""
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        yield Finding(where=where, problem=f"cannot be parsed:{line} {text}", hint="make it a Python file")


def _hashes(catalog: Catalog, patch: records.Patch) -> Iterator[Finding]:
    for release, edition in patch.editions.items():
        path = edition_path(patch.id, release)
        found = _sha256(catalog.root / path)
        if found != edition.sha256:
            yield Finding(
                where=_at(patch, f"editions.{release}.sha256"),
                problem=f"is {edition.sha256}, but {path} has {found}",
                hint=f"see what changed: git diff {path}",
            )


def _twice(catalog: Catalog) -> Iterator[Finding]:
    """Yield editions of different patches that are byte for byte the same."""
    seen: dict[str, tuple[str, Path]] = {}
    for patch in catalog.patches.values():
        for release in patch.editions:
            path = edition_path(patch.id, release)
            first, other = seen.setdefault(_sha256(catalog.root / path), (patch.id, path))
            if first != patch.id:
                problem = f"has the same content as {other}"
                yield Finding(where=str(path), problem=problem, hint="make them one patch")


def _foreign_files(catalog: Catalog) -> Iterator[Finding]:
    for entry in sorted((catalog.root / "patches").iterdir()):
        if entry.name not in {*_BESIDE_PATCHES, *catalog.patches, _DERIVED}:
            hint = "a patch is a folder with patch.yaml; remove this, or make it one"
            yield Finding(where=f"patches/{entry.name}", problem="belongs to no patch", hint=hint)


def _folder(catalog: Catalog, patch: records.Patch) -> Path:
    return catalog.root / "patches" / patch.id


def _at(patch: records.Patch, key: str) -> str:
    return f"patches/{patch.id}/patch.yaml: {key}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
