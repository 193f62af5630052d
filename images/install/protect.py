"""Proves that packages which nothing may replace are the bytes that they were: torch, Triton and the collectives."""

from __future__ import annotations

import hashlib
import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from facts import canonical

# each by the names it is built under; one of them must be there
PROTECTED = {
    "torch": ("torch",),
    "triton": ("triton", "amd-triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"),
}
PROTECTED_IF_THERE = ("torchaudio", "torchvision")
# RCCL below /opt/rocm or in ROCm's wheels, NCCL in its wheel or in the system's folder
COLLECTIVES = "RCCL or NCCL"
LIBRARIES = (
    "opt/rocm*/lib/librccl.so*",
    "usr/lib/x86_64-linux-gnu/libnccl.so*",
    "_rocm_sdk_*/lib/librccl.so*",
    "nvidia/nccl/lib/libnccl.so*",
)
_CHUNK = 1 << 20

# package -> file -> what it is: its sha256, or where it links to
State = dict[str, dict[str, str]]


class Refused(Exception):
    """What was to be installed cannot be, or something protected is not what it was."""


def state() -> State:
    """Return every file of every protected package by its content; raises Refused where one cannot be found."""
    importlib.invalidate_caches()
    names = {*PROTECTED_IF_THERE, *(name for names in PROTECTED.values() for name in names)}
    found: State = {}
    for distribution in metadata.distributions():
        name = canonical(distribution.metadata["Name"] or "")
        if name in names:
            found[name] = _contents(_files(distribution))
    places = [Path("/"), *(Path(site) for site in sys.path if Path(site).is_dir())]
    libraries = {path for place in places for pattern in LIBRARIES for path in place.glob(pattern)}
    found[COLLECTIVES] = _contents(libraries)
    missing = [name for name, names in PROTECTED.items() if not any(found.get(each) for each in names)]
    missing += [] if libraries else [COLLECTIVES]
    if missing:
        raise Refused(f"{', '.join(missing)}: not found, so nothing can prove that it stays as it is")
    return found


def compare(before: State, after: State, by: str) -> None:
    """Raise Refused with every package and file that is not what it was; `by` is what was done in between."""
    lines = []
    for package in sorted({*before, *after}):
        old, new = before.get(package, {}), after.get(package, {})
        for path in sorted({*old, *new}):
            if old.get(path) != new.get(path):
                how = "added" if path not in old else "removed" if path not in new else "changed"
                lines.append(f"{package} is protected, and {by} has {how} {path}")
    if lines:
        raise Refused("\n".join(lines))


def _files(distribution: metadata.Distribution) -> set[Path]:
    """Return what the distribution lists, and all else in the folders that it begins."""
    listed = distribution.files or []
    found = {Path(str(distribution.locate_file(path))) for path in listed}
    for top in sorted({path.parts[0] for path in listed if len(path.parts) > 1 and path.parts[0] != ".."}):
        found |= {path for path in Path(str(distribution.locate_file(top))).rglob("*") if not is_folder(path)}
    return found


def is_folder(path: Path) -> bool:
    """Say whether a path is a folder itself, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def _contents(paths: set[Path]) -> dict[str, str]:
    kept = sorted(path for path in paths if path.is_symlink() or path.exists())
    with ThreadPoolExecutor() as pool:
        return dict(zip(map(str, kept), pool.map(_content, kept), strict=True))


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()}"
    if not path.is_file():
        return "no file"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
