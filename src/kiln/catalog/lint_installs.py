"""The rules over what is installed over a base, and over the pins of every stack, each a generator of findings."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from kiln import errors
from kiln.catalog import installs
from kiln.catalog.load import RELEASES
from kiln.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from packaging.tags import Tag

    from kiln.catalog import records
    from kiln.catalog.installs import Stack
    from kiln.catalog.load import Catalog

_VENDORS = {"rocm": "amd", "cuda": "nvidia"}
_INTERPRETER = re.compile(r"(?P<kind>cp|py)(?P<major>\d)(?P<minor>\d*)")


def findings(catalog: Catalog) -> Iterator[Finding]:
    """Yield what is wrong with installs, and where the pins of a stack do not fit each other."""
    for rule in catalog.releases.compatibility:
        for name in sorted({rule.pin, *rule.needs} - installs.PINS):
            problem = errors.unknown("pin", name, installs.PINS)
            yield Finding(where=f"{RELEASES}: compatibility", problem=problem, hint="name a pin of a stack")
    for release, pins in catalog.releases.releases.items():
        for kind, stack in (("rocm", pins.rocm), ("cuda", pins.cuda)):
            at = f"{RELEASES}: releases.{release}.{kind}"
            yield from _misfits(catalog, at, stack)
            yield from _clashes(catalog, f"{at}.installs", kind, stack)
            for number, install in enumerate(stack.installs):
                where = f"{at}.installs.{number}"
                place = _Place(catalog=catalog, kind=kind, stack=stack, install=install, where=where)
                for rule_of_install in (_names, _protected, _wheels, _pins, _environment):
                    yield from rule_of_install(place)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """One install: `where` it stands in releases.yaml, and the stack it is for."""

    catalog: Catalog
    kind: str
    stack: Stack
    install: records.Install
    where: str


def _misfits(catalog: Catalog, at: str, stack: Stack) -> Iterator[Finding]:
    """Compare the pins of a stack with the rules: as they are, and with each install."""
    rules = catalog.releases.compatibility
    of_stack = set(installs.misfits(rules, installs.pins(stack)))
    for problem in sorted(of_stack):
        yield Finding(where=at, problem=problem, hint="correct the pin, or the rule under compatibility")
    for install in stack.installs:
        for problem in sorted({*installs.misfits(rules, installs.pins(stack, [install]))} - of_stack):
            hint = "add the companion it needs, with its pin, or install another version"
            yield Finding(where=f"{at}.installs: {install.package}", problem=problem, hint=hint)


def _clashes(catalog: Catalog, at: str, kind: str, stack: Stack) -> Iterator[Finding]:
    """Yield installs of which one target would get the same package twice, or two that are built from source."""
    for one, other in itertools.combinations(stack.installs, 2):
        if not (
            _meet(one.variants, other.variants) and _meet(_arches(catalog, kind, one), _arches(catalog, kind, other))
        ):
            continue
        for name in sorted(_packages(one) & _packages(other)):
            problem = f"a target gets {name} twice: with {one.package} {one.version}, {other.package} {other.version}"
            yield Finding(where=at, problem=problem, hint="narrow variants or arches of one of them")
        if one.source and other.source:
            problem = f"a target has both {one.package} and {other.package} to build from source; a build takes one"
            yield Finding(where=at, problem=problem, hint="narrow variants or arches of one of them")


def _names(at: _Place) -> Iterator[Finding]:
    arches = at.catalog.releases.arches
    variants = {name for recipe in at.catalog.recipes.values() for name in recipe.variants}
    own = {name for name, arch in arches.items() if arch.vendor == _VENDORS[at.kind]}
    of_stack = set(type(at.stack).model_fields) & installs.PINS
    for what, names, known in (
        ("variant", at.install.variants, variants),
        ("arch", at.install.arches, own),
        ("pin", at.install.pins, of_stack),
    ):
        for name in sorted(set(names) - set(known)):
            hint = f"name one that {at.kind} images have"
            yield Finding(where=at.where, problem=errors.unknown(what, name, known), hint=hint)


def _protected(at: _Place) -> Iterator[Finding]:
    for name in sorted(_packages(at.install) & installs.PROTECTED):
        hint = "take a release whose base has the version that is wanted"
        yield Finding(where=at.where, problem=f"{name} is protected: nothing may replace that of the base", hint=hint)


def _wheels(at: _Place) -> Iterator[Finding]:
    """Compare each wheel with what it is said to be, and with the Python that would run it."""
    install, python = at.install, at.stack.python
    pinned = [install.wheel] if install.wheel else []
    built_with = install.source.build_requires if install.source else ()
    for pin in (*pinned, *install.companions, *built_with):
        where = f"{at.where}: {pin.file}"
        try:
            name, version, _, tags = parse_wheel_filename(pin.file)
        except InvalidWheelFilename as error:
            yield Finding(where=where, problem=str(error), hint="copy the name from the index")
            continue
        if name != canonicalize_name(pin.project):
            yield Finding(
                where=where, problem=f"is a wheel of {name}, not of {pin.project}", hint="correct one of them"
            )
        if not any(_runs(tag, python) for tag in tags):
            problem = f"does not run on Python {python} on linux/amd64, which the image has"
            yield Finding(where=where, problem=problem, hint="pin the wheel for that Python")
        if pin is install.wheel and (name, version) != (canonicalize_name(install.package), Version(install.version)):
            problem = f"is {name} {version}, and the install says {install.package} {install.version}"
            yield Finding(where=where, problem=problem, hint="correct package, version or file")


def _runs(tag: Tag, python: str) -> bool:
    """Say whether a wheel of this tag runs on a Python such as "3.12"; abi3 runs on later ones too."""
    linux = tag.platform.startswith(("manylinux", "linux")) and tag.platform.endswith("_x86_64")
    major, _, minor = python.partition(".")
    known = _INTERPRETER.fullmatch(tag.interpreter)
    if not known or known["major"] != major or not (linux or tag.platform == "any"):
        return False
    older = known["minor"] and int(known["minor"]) <= int(minor)
    return known["minor"] in {"", minor} or bool(older and (tag.abi == "abi3" or known["kind"] == "py"))


def _pins(at: _Place) -> Iterator[Finding]:
    """Yield packages whose pin would not say the version that is installed."""
    install = at.install
    versions = {install.package: install.version, **{pin.project: pin.version for pin in install.companions}}
    for package, version in versions.items():
        name = installs.PIN_OF.get(package)
        if name and installs.exact(install.pins.get(name, "")) != Version(version):
            said = f"{name}: {install.pins[name]}" if name in install.pins else f"no {name}"
            problem = f"installs {package} {version}, and its pins say {said}"
            yield Finding(where=f"{at.where}.pins", problem=problem, hint=f"write {name}: {version}")


def _environment(at: _Place) -> Iterator[Finding]:
    """Yield settings without which a build takes the machine's GPU for granted, or replaces Triton."""
    if not at.install.source or at.kind != "rocm":
        return
    env = at.install.source.env
    arches = set(_arches(at.catalog, at.kind, at.install))
    asked = {name for name in env.get("GPU_ARCHS", "").split(";") if name}
    if asked != arches:
        yield Finding(
            where=f"{at.where}.source.env.GPU_ARCHS",
            problem=f"is {';'.join(sorted(asked)) or 'missing'}, and the targets are for {';'.join(sorted(arches))}",
            hint=f'write GPU_ARCHS: "{";".join(sorted(arches))}"',
        )
    if at.install.package == "amd-aiter" and env.get("AITER_USE_SYSTEM_TRITON") != "1":
        problem = "is not 1, so the build of AITER would replace the Triton of the base"
        where = f"{at.where}.source.env.AITER_USE_SYSTEM_TRITON"
        yield Finding(where=where, problem=problem, hint='write AITER_USE_SYSTEM_TRITON: "1"')


def _arches(catalog: Catalog, kind: str, install: records.Install) -> tuple[str, ...]:
    every = (name for name, arch in catalog.releases.arches.items() if arch.vendor == _VENDORS[kind])
    return install.arches or tuple(every)


def _meet(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return not one or not other or bool(set(one) & set(other))


def _packages(install: records.Install) -> set[str]:
    return {str(canonicalize_name(name)) for name in (install.package, *(pin.project for pin in install.companions))}
