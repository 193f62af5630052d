"""Chooses the targets that a person's flags leave of all that are possible."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln import plan as planning
from kiln.image.many import Chosen

if TYPE_CHECKING:
    from kiln.catalog import Catalog

Choice = tuple[tuple[str, str, str, str], tuple[str, ...]]

_KEYS = ("model", "variant", "arch", "release")
_SEE = "see every target there is: ./inv plan --list"
_SEE_MATRIX = "see the matrix: ./inv plan --all; edit it: matrix in images/releases.yaml"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The names that a person gave, empty where they gave none; `arch` may be a product."""

    model: str = ""
    variant: str = ""
    arch: str = ""
    release: str = ""


def targets(loaded: Catalog, asked: Asked) -> list[Choice]:
    """Return the possible targets with all the given names, each with why it is refused.

    Raises BadInput for unknown names, or if none is left.
    """
    arches = loaded.releases.arches
    products = {product for record in arches.values() for product in record.products}
    variants = {name for recipe in loaded.recipes.values() for name in recipe.variants}
    known = (
        ("model", asked.model, loaded.recipes.keys()),
        ("variant", asked.variant, variants),
        ("arch", asked.arch, {*arches, *products}),
        ("release", asked.release, loaded.releases.releases.keys()),
    )
    given = [(kind, name) for kind, name, _ in known if name]
    if unknown := [errors.unknown(kind, name, names) for kind, name, names in known if name and name not in names]:
        raise errors.BadInput("\n".join(unknown), hint=_SEE)
    found = [
        (target, tuple(planning.refusals(loaded, **dict(zip(_KEYS, target, strict=True)))))
        for target in planning.possible(loaded)
        if {asked.model, asked.variant, asked.release} - {""} <= set(target) and _runs_on(loaded, target, asked.arch)
    ]
    if not found:
        raise errors.BadInput(f"no target has {' and '.join(' '.join(pair) for pair in given)}", hint=_SEE)
    return found


def one(loaded: Catalog, asked: Asked) -> tuple[Chosen]:
    """Return the target that the names stand for; raises BadInput where it cannot be planned."""
    plan = planning.make(loaded, variant=asked.variant, arch=asked.arch, release=asked.release, model=asked.model)
    return (Chosen(target=plan.target.slug, plan=plan),)


def matrix(loaded: Catalog, asked: Asked) -> tuple[Chosen, ...]:
    """Return the targets of the matrix in images/releases.yaml with all the given names, planned or refused."""
    wanted = loaded.releases.matrix
    lists = (wanted.variants, wanted.arches, wanted.releases)
    found = [
        target
        for target, _ in targets(loaded, asked)
        if all(not names or name in names for name, names in zip(target[1:], lists, strict=True))
    ]
    if not found:
        given = " and ".join(name for name in astuple(asked) if name)
        raise errors.BadInput(f"no target of the matrix has {given}", hint=_SEE_MATRIX)
    return tuple(_planned(loaded, target, asked.arch or target[2]) for target in found)


def _planned(loaded: Catalog, target: tuple[str, str, str, str], arch: str) -> Chosen:
    model, variant, own, release = target
    name = planning.slug(model=model, variant=variant, arch=own, release=release)
    try:
        return Chosen(target=name, plan=planning.make(loaded, model=model, variant=variant, arch=arch, release=release))
    except errors.BadInput as error:
        return Chosen(target=name, error=error)


def _runs_on(loaded: Catalog, target: tuple[str, str, str, str], asked: str) -> bool:
    """Say whether a target is for the asked arch, or for one with the asked product."""
    model, variant, arch, _ = target
    able = loaded.recipes[model].variants[variant].supported_hardware
    return asked in {"", arch} or (asked in loaded.releases.arches[arch].products and asked in able)
