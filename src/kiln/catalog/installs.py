"""What a target gets over its base, the pins it has then, and whether they fit each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from kiln.catalog import records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Stack = records.RocmStack | records.CudaStack

# what a stack holds that is no pin
_NO_PINS = {"image", "installs"}
PINS = frozenset({*records.RocmStack.model_fields, *records.CudaStack.model_fields} - _NO_PINS)
# what nothing may replace: torch's extensions and the collectives are built for each other
PROTECTED = frozenset({"torch", "torchvision", "torchaudio", "triton"})
# the pin that says the version of a distribution
PIN_OF = {
    "amd-aiter": "aiter",
    "amd-quark": "amd_quark",
    "flashinfer-python": "flashinfer",
    "flydsl": "flydsl",
    "nvidia-cutlass-dsl": "cutlass_dsl",
    "pybind11": "pybind11",
}


def stack_of(pins: records.ReleasePins, arch: records.Arch) -> Stack:
    """Return the stack of a release for the vendor of an arch."""
    return pins.rocm if arch.vendor == "amd" else pins.cuda


def needed(stack: Stack, *, variant: str, arch: str) -> tuple[records.Install, ...]:
    """Return what a target of this stack gets over its base, in order."""
    return tuple(
        install
        for install in stack.installs
        if (not install.variants or variant in install.variants) and (not install.arches or arch in install.arches)
    )


def pins(stack: Stack, chosen: Iterable[records.Install] = ()) -> dict[str, str]:
    """Return the pins of a stack as they are once all of `chosen` is installed."""
    of_stack = stack.model_dump(exclude=_NO_PINS, exclude_none=True)
    found = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in of_stack.items()}
    for install in chosen:
        found |= install.pins
    return found


def misfits(rules: Iterable[records.Fit], found: Mapping[str, str]) -> Iterator[str]:
    """Yield what does not fit among the pins; one that is missing or names no version is not compared."""
    for rule in rules:
        version = exact(found.get(rule.pin, ""))
        if version is None or not SpecifierSet(rule.versions).contains(version, prereleases=True):
            continue
        for name, specifier in rule.needs.items():
            if name in found and not _within(found[name], specifier):
                yield f"{rule.pin} {found[rule.pin]} needs {name} {specifier}, not {found[name]}: {rule.because}"


def exact(pin: str) -> Version | None:
    """Return the version that a pin names: v1.2, ==1.2 or 1.2; None for a range, a commit or nothing."""
    try:
        return Version(pin.removeprefix("=="))
    except InvalidVersion:
        return None


def _within(pin: str, specifier: str) -> bool:
    """Say whether every version that a pin allows is in the specifier; of a range, where the two say the same."""
    version = exact(pin)
    if version is not None:
        return SpecifierSet(specifier).contains(version, prereleases=True)
    try:
        return SpecifierSet(pin) == SpecifierSet(specifier)
    except InvalidSpecifier:
        return False
