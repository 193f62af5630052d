"""Says whether a thin layer fits a base, from the lock alone, and reads the one file that the layer is made from."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from kiln import errors, files
from kiln.catalog import installed
from kiln.image.thin.layer import Site
from kiln.lock import base as locking
from kiln.registry import layers

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog, lock_records
    from kiln.plan import Plan
    from kiln.registry.image import RemoteImage
    from kiln.report import Reporter


def required(catalog: Catalog, plan: Plan) -> lock_records.Base:
    """Return what the lock holds of a target's base, once a layer made of the wheel's files is known to fit it.

    Raises BadInput where the target needs more than the series or the base was not read, Findings where it has other
    versions than pinned, NotApplied where a file of it is not the wheel's.
    """
    if plan.installs:
        what = ", ".join(install.package for install in plan.installs)
        raise errors.BadInput(
            f"{plan.target.slug}: gets {what} besides its series, and a thin layer holds the series alone",
            hint="build it without --thin",
        )
    base = locking.recorded(catalog, plan)
    wrong = [
        f"  /{base.root}/{path}: the edition needs {_shown(pre)}, the base has {_shown(base.files[path])}"
        for path, pre in pristine(plan).items()
        if base.files[path] != pre
    ]
    if others := list(installed.differences(plan.image.kind, plan.target.release, dict(plan.pins), base.versions)):
        lines = (f"  {each.where}: {each.problem}" for each in others)
        raise errors.Findings(
            "\n".join([f"{plan.image.reference} is not what its pins say:", *lines]), hint=installed.HINT
        )
    if wrong:
        raise errors.NotApplied(
            "\n".join((f"{plan.image.reference} does not hold the files of {plan.wheel.file}:", *wrong)),
            hint="look which image images/lock.json names; nothing was built",
        )
    return base


def pristine(plan: Plan) -> dict[str, str | None]:
    """Return the sha256 that each file of the series has before its first patch; None for one that it creates."""
    return locking.pristine(plan.series)


def site(image: RemoteImage, base: lock_records.Base, state: Path, reporter: Reporter) -> Site:
    """Return what the patch engine meets in the base; raises BadInput for an image that is not the locked one."""
    if tuple(layer.digest for layer in image.manifest.layers) != base.layers:
        raise errors.BadInput(
            f"{image.repository}@{image.manifest.digest}: other layers than images/lock.json holds for it",
            hint="./inv lock",
        )
    return Site(
        root=base.root,
        dist_info=base.dist_info,
        record=_record(image, base, state / "records", reporter),
        bytecode=base.bytecode,
        modes={path: int(mode, base=8) for path, mode in base.modes.items()},
    )


def _record(image: RemoteImage, base: lock_records.Base, cache: Path, reporter: Reporter) -> bytes:
    """Return the base's RECORD, read out of its layer once and kept under its hash."""
    path = cache / base.record_sha256
    if path.is_file() and hashlib.sha256(data := path.read_bytes()).hexdigest() == base.record_sha256:
        return data
    wanted = f"{base.root}/{base.dist_info}/RECORD"
    with reporter.step(f"read {base.dist_info}/RECORD out of its layer") as progress:
        here = {base.record_layer}
        found = layers.scan(image, lambda each: each == wanted, layers=here, progress=progress, keep=True)
    held = found.get(wanted)
    if held is None or held.data is None or held.sha256 != base.record_sha256:
        raise errors.BadInput(f"{image.repository}: {wanted} is not what images/lock.json says", hint="./inv lock")
    files.write(path, held.data)
    return held.data


def _shown(sha256: str | None) -> str:
    return f"sha256 {sha256}" if sha256 else "no such file"
