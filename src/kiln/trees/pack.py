"""Writes the engine and a target's series into a folder that a node needs at start, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors
from kiln.image.rehearsal import rehearse
from kiln.patching import errors as patching_errors
from kiln.patching import zipapp
from kiln.patching.series import write_series
from kiln.trees import answer

if TYPE_CHECKING:
    from kiln.catalog import Catalog
    from kiln.plan import Plan

PATCHER, SERIES = "kiln-patch.pyz", "series"


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What was written: `folder` holds kiln-patch.pyz with this sha256, and series/ with these patches."""

    folder: str
    release: str
    sha256: str
    patches: tuple[str, ...]


def pack(plan: Plan, catalog: Catalog, out: str) -> Pack:
    """Rehearse the series of a plan, then write it to the folder `out`; refuses one that holds anything else."""
    if not out:
        raise errors.BadInput("--out is missing: the folder that gets kiln-patch.pyz and series/")
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise errors.BadInput(f"--out {folder}: not a folder")
    foreign = sorted(path.name for path in folder.glob("*") if path.name not in {PATCHER, SERIES})
    if foreign:
        raise errors.BadInput(f"--out {folder}: holds {', '.join(foreign)}", hint="name a new folder")
    series = rehearse(plan, catalog, plan.wheel).series
    try:
        write_series(folder / SERIES, series)
    except patching_errors.PatchingError as error:
        raise answer.translated(error) from error
    sha256 = zipapp.build(folder / PATCHER)
    for path in (folder, *folder.rglob("*")):  # for whoever serves, whatever the umask of who packs
        path.chmod(0o755 if path.is_dir() or path.name == PATCHER else 0o644)
    return Pack(
        folder=str(folder),
        release=series.release,
        sha256=sha256,
        patches=tuple(patch.id for patch in series.patches),
    )
