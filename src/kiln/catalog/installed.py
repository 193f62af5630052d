"""Compares the distributions in an image, by whatever way they were read, with the pins of its stack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion

from kiln.catalog import installs
from kiln.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

HINT = "the base is not what its pins say: check its digest, or correct the pins in images/releases.yaml"
_TRITON = ("triton", "amd-triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm")
# pin -> the names of its distribution, of which the image has one
_DISTRIBUTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "rocm": {
        "torch_reported": ("torch",),
        "torchvision": ("torchvision",),
        "triton_reported": _TRITON,
        "aiter": ("amd-aiter",),
        "amd_quark": ("amd-quark",),
        "flydsl": ("flydsl",),
    },
    "cuda": {
        "torch": ("torch",),
        "torchvision": ("torchvision",),
        "torchaudio": ("torchaudio",),
        "triton": _TRITON,
        "flashinfer": ("flashinfer-python",),
        "cutlass_dsl": ("nvidia-cutlass-dsl",),
        "nccl": ("nvidia-nccl-cu13", "nvidia-nccl-cu12"),
    },
}
DISTRIBUTIONS = frozenset(name for pins in _DISTRIBUTIONS.values() for names in pins.values() for name in names)


def differences(kind: str, release: str, pins: Mapping[str, str], found: Mapping[str, str]) -> Iterator[Finding]:
    """Yield where vLLM is not the release, and each pin of a stack that the distributions do not fit."""
    if not contains(f"=={release}", found.get("vllm", "")):
        problem = f"is {found.get('vllm') or 'not in the image'}, and the release is {release}"
        yield Finding(where="vllm", problem=problem, hint=HINT)
    for pin, names in _DISTRIBUTIONS[kind].items():
        wanted = _specifier(pins.get(pin, ""))
        if not wanted:
            continue
        name = _present(names, found)
        if not name:
            yield Finding(where=names[0], problem=f"is not in the image, and the pin {pin} is {pins[pin]}", hint=HINT)
        elif not contains(wanted, found[name]):
            yield Finding(where=name, problem=f"is {found[name]}, and the pin {pin} is {pins[pin]}", hint=HINT)


def recorded(kind: str, pins: Mapping[str, str], found: Mapping[str, str]) -> Iterator[str]:
    """Yield what the image has that no pin, or none that names a version, says anything of."""
    for pin, names in _DISTRIBUTIONS[kind].items():
        name = _present(names, found)
        if name and not _specifier(pins.get(pin, "")):
            said = f"the pin {pin} is {pins[pin]}, no version" if pin in pins else f"there is no pin {pin}"
            yield f"{name} {found[name]} is in the image, and {said}"


def _present(names: tuple[str, ...], found: Mapping[str, str]) -> str:
    return next((name for name in names if name in found), "")


def _specifier(pin: str) -> str:
    """Return what a pin asks for; "" where it names no version. A local part counts where the pin has one."""
    if version := installs.exact(pin):
        return f"=={version}"
    try:
        return str(SpecifierSet(pin))
    except InvalidSpecifier:
        return ""


def contains(wanted: str, found: str) -> bool:
    """Say whether a version that was found is in a specifier; text that is no version is in none."""
    try:
        return SpecifierSet(wanted).contains(found, prereleases=True)
    except InvalidVersion:
        return False
