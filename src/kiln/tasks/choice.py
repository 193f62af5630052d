"""Chooses the targets that a person's flags leave of all that are possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln import errors
from kiln import plan as planning

if TYPE_CHECKING:
    from kiln.catalog import Catalog

Choice = tuple[tuple[str, str, str, str], tuple[str, ...]]

_KEYS = ("model", "variant", "arch", "release")
_SEE = "see every target there is: ./inv plan --list"


def targets(loaded: Catalog, *, model: str, variant: str, arch: str, release: str) -> list[Choice]:
    """Return the possible targets with all the given names, each with why it is refused.

    Raises BadInput for unknown names, or if none is left.
    """
    arches = loaded.releases.arches
    products = {product for record in arches.values() for product in record.products}
    variants = {name for recipe in loaded.recipes.values() for name in recipe.variants}
    known = (
        ("model", model, loaded.recipes.keys()),
        ("variant", variant, variants),
        ("arch", arch, {*arches, *products}),
        ("release", release, loaded.releases.releases.keys()),
    )
    given = [(kind, name) for kind, name, _ in known if name]
    if unknown := [errors.unknown(kind, name, names) for kind, name, names in known if name and name not in names]:
        raise errors.BadInput("\n".join(unknown), hint=_SEE)
    found = [
        (target, tuple(planning.refusals(loaded, **dict(zip(_KEYS, target, strict=True)))))
        for target in planning.possible(loaded)
        if {model, variant, release} - {""} <= set(target) and _runs_on(loaded, target, arch)
    ]
    if not found:
        raise errors.BadInput(f"no target has {' and '.join(' '.join(pair) for pair in given)}", hint=_SEE)
    return found


def _runs_on(loaded: Catalog, target: tuple[str, str, str, str], asked: str) -> bool:
    """Say whether a target is for the asked arch, or for one with the asked product."""
    model, variant, arch, _ = target
    able = loaded.recipes[model].variants[variant].supported_hardware
    return asked in {"", arch} or (asked in loaded.releases.arches[arch].products and asked in able)
