"""Accepts an image by what its registry hands out, for a build whose image never was in the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kiln import errors
from kiln.errors import Finding
from kiln.image import accept, versions
from kiln.registry import layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kiln.image.prepare import Ready
    from kiln.registry.image import RemoteImage
    from kiln.registry.layers import Changes
    from kiln.registry.records import Descriptor

_LEDGER, _VERSIONS = accept.LEDGER.lstrip("/"), versions.FILE.lstrip("/")


def ledger_of(ready: Ready, image: RemoteImage, base: Sequence[Descriptor]) -> bytes:
    """Return the ledger of an image in a registry, of which only the layers over its base are read.

    Raises NotApplied where a patched file is not as it was rehearsed, Findings where another version is in the image
    than its pins say.
    """
    job, name = ready.job, f"{image.registry.host}/{image.repository}@{image.manifest.digest}"
    if [layer.digest for layer in image.manifest.layers[: len(base)]] != [layer.digest for layer in base]:
        raise errors.NotApplied(f"{name}: its lowest layers are not those of its base, so it counts as not built")
    with job.reporter.step("read the patched files out of the registry") as progress:
        kept = {_LEDGER, _VERSIONS}
        made = layers.changes(image, len(base), keep=kept.__contains__, progress=progress)
    expected = {path: post for use in job.plan.series for path, _, post in use.files}
    if wrong := list(differences(made, expected, _site(ready))):
        told = "\n".join(f"  {each.where}: {each.problem}" for each in wrong)
        raise errors.NotApplied(
            f"{name}: not what the rehearsal gave, so it counts as not built:\n{told}",
            hint="look for a step after the patch step in the Dockerfile",
        )
    ledger, facts = (made.found[path].data if path in made.found else None for path in (_LEDGER, _VERSIONS))
    accept.compare(job, name, ledger or b"", hint="the base is not this release's: check the base's digest")
    if not job.twin:
        accept.check_versions(job, facts or b"")
    return ledger or b""


def differences(made: Changes, expected: Mapping[str, str | None], site: Site) -> Iterator[Finding]:
    """Yield the files that are not as the series leaves them, and bytecode that stands for what they were."""
    for path, post in sorted(expected.items()):
        held = made.found.get(f"{site.root}/{path}")
        if post is None and not _is_gone(f"{site.root}/{path}", made):
            yield Finding(where=path, problem="still there, and the series removes it")
        elif post != (held.sha256 if held else None):
            yield Finding(where=path, problem=f"sha256 {held.sha256 if held else 'none'}, not {post or 'none'}")
    stale = {f"{site.root}/{_stem(path)}" for path in expected if path.endswith(".py")}
    of_base = (f"{site.root}/{path}" for path in site.bytecode)
    for path in sorted({*made.found, *(each for each in of_base if not _is_gone(each, made))}):
        if path.endswith(".pyc") and path.partition(".cpython-")[0] in stale:
            yield Finding(where=path, problem="bytecode of a changed module: Python may run it in its place")


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where an image's packages lie, and the bytecode that its base has there."""

    root: str
    bytecode: tuple[str, ...] = ()


def _site(ready: Ready) -> Site:
    """Return the folder of a real image as it was locked, else the one of the Python that its pins name."""
    job = ready.job
    entry = job.catalog.lock.images.get(ready.base.name)
    if entry and entry.base and not job.twin:
        return Site(root=entry.base.root, bytecode=entry.base.bytecode)
    python = job.plan.twin.python if job.twin and job.plan.twin else dict(job.plan.pins)["python"]
    return Site(root=f"usr/local/lib/python{python}/dist-packages")


def _is_gone(path: str, made: Changes) -> bool:
    """Say whether layers take away a file, or a folder that it was in."""
    above = [str(folder) for folder in PurePosixPath(path).parents]
    return not made.removed.isdisjoint((path, *above)) or not made.emptied.isdisjoint(above)


def _stem(path: str) -> str:
    """Return what the names of a module's bytecode begin with, up to the tag of a Python."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}"
