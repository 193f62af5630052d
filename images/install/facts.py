"""Tells what is in an image: Python, every distribution, ROCm or CUDA in whatever layout, the C library, the system."""

from __future__ import annotations

import importlib
import json
import os
import platform
import re
import sys
from importlib import metadata
from pathlib import Path

INSTALLS = Path(__file__).resolve().with_name("installs.json")
_SEPARATORS = re.compile(r"[-_.]+")
_GFX = re.compile(r"gfx[0-9a-f]{3,4}")
_CUDA = re.compile(r"\d+(\.\d+)+")
_ARCH_SETTINGS = ("PYTORCH_ROCM_ARCH", "TORCH_CUDA_ARCH_LIST")
_INFO = ("opt/rocm/.info/version", "opt/rocm-*/.info/version")
_TOOLKIT = Path("/usr/local/cuda/version.json")
_ROCBLAS = "rocblas/library/*gfx*"
_ROCM_WHEELS = ("rocm", "rocm-sdk-core", "rocm-sdk-devel")


def facts() -> dict[str, object]:
    """Return the facts of the image that this runs in."""
    found = installations()
    # the first is the one that is imported
    distributions = {name: next(iter(places.values())) for name, places in found.items()}
    rocm, layout = _rocm(distributions)
    system = platform.freedesktop_os_release()
    return {
        "schema_version": 1,
        "python": platform.python_version(),
        "distributions": distributions,
        "installed_twice": sorted(name for name, places in found.items() if len(places) > 1),
        "rocm": rocm,
        "rocm_layout": layout,
        "cuda": os.environ.get("CUDA_VERSION") or _cuda(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "system": f"{system.get('ID', '')} {system.get('VERSION_ID', '')}".strip(),
        "gpu_arches": _arches(),
        "requires": _requires(),
    }


def canonical(name: str) -> str:
    """Return the one spelling of a distribution's name."""
    return _SEPARATORS.sub("-", name).lower()


def installations() -> dict[str, dict[str, str]]:
    """Return, for each distribution that Python can see, the version by the folder it is installed in."""
    importlib.invalidate_caches()
    found: dict[str, dict[str, str]] = {}
    for distribution in metadata.distributions():
        name = canonical(distribution.metadata["Name"] or "")
        place = os.path.realpath(str(distribution.locate_file(".")))
        if name:
            found.setdefault(name, {}).setdefault(f"{place} {distribution.version}", distribution.version)
    return found


def _requires() -> dict[str, list[str]]:
    """Return what each package that was installed over the base says it needs: it came without any of it."""
    if not INSTALLS.is_file():
        return {}
    names = [package["name"] for package in json.loads(INSTALLS.read_text())["packages"]]
    return {canonical(name): sorted(metadata.requires(name) or ()) for name in names}


def _rocm(distributions: dict[str, str]) -> tuple[str, str]:
    """Return ROCm's version, and whether it is a folder or wheels; both are empty where there is none."""
    for path in (path for pattern in _INFO for path in sorted(Path("/").glob(pattern))):
        return path.read_text().strip().partition("-")[0], "folder"
    for name in _ROCM_WHEELS:
        if name in distributions:
            return distributions[name], "wheels"
    return "", ""


def _cuda() -> str:
    if not _TOOLKIT.is_file():
        return ""
    found = _CUDA.search(json.loads(_TOOLKIT.read_text()).get("cuda", {}).get("version", ""))
    return found[0] if found else ""


def _arches() -> list[str]:
    """Return the GPU architectures that the image says it is for: in its environment, else by rocBLAS's files."""
    for name in _ARCH_SETTINGS:
        if os.environ.get(name):
            return sorted(os.environ[name].replace(";", " ").split())
    places = [Path("/opt/rocm/lib"), *(place for site in sys.path for place in Path(site).glob("_rocm_sdk_*/lib"))]
    names = (path.name for place in places for path in place.glob(_ROCBLAS))
    return sorted({match[0] for name in names if (match := _GFX.search(name))})
