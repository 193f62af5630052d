"""Locks a twin's Python requirements: one exact version and one wheel hash each, for CPython 3.11 on linux/amd64."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from kiln import errors, files, process

if TYPE_CHECKING:
    from kiln.catalog import Catalog

# a manylinux_2_N wheel runs on every glibc from 2.N on; Debian 12 has 2.36
_PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1))
_LEGACY_PLATFORMS = ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")


def write(catalog: Catalog, release: str) -> Path:
    """Write the lock beside the requirements.in of a release's twin, whole or not at all, and return its path."""
    pins = catalog.releases.releases.get(release)
    if not (pins and pins.twin):
        with_twin = [name for name, each in catalog.releases.releases.items() if each.twin]
        raise errors.BadInput(f"release {release} has no twin to lock; releases with one: {', '.join(with_twin)}")
    target = catalog.root / pins.twin.requirements
    return files.write(target, lock(target.with_suffix(".in"), pins.twin.python))


def lock(requirements: Path, python: str) -> str:
    """Return the lock text for a requirements.in file, resolved on the configured index as of today."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        process.ask(_resolve_argv(requirements, python, report=report, scratch=Path(folder)), env=_environment())
        resolved = json.loads(report.read_text(encoding="utf-8"))["install"]
    lines = sorted(
        f"{canonicalize_name(item['metadata']['name'])}=={item['metadata']['version']}"
        f" --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}"
        for item in resolved
    )
    return "\n".join([f"# Made from {requirements.name} by ./inv lock.twin; do not edit.", *lines, ""])


def _resolve_argv(requirements: Path, python: str, *, report: Path, scratch: Path) -> tuple[str, ...]:
    return process.python(
        "-m",
        "pip",
        "install",
        "--quiet",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--only-binary=:all:",
        f"--python-version={python}",
        *(f"--platform={platform}" for platform in (*_PLATFORMS, *_LEGACY_PLATFORMS)),
        f"--target={scratch / 'none'}",
        f"--report={report}",
        f"--requirement={requirements}",
    )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
