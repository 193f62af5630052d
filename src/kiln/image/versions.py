"""Compares what is in an image, as read in it, with the pins it was built for: every difference is a finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from pydantic import ValidationError

from kiln import errors
from kiln.catalog import installed
from kiln.catalog.records import Record
from kiln.errors import Finding
from kiln.image import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from docker.models.containers import Container

    from kiln.plan import Plan

FILE = "/opt/kiln/versions.json"
_UNMET = "add what it needs to its companions in images/releases.yaml"


class Facts(Record):
    """What images/install/facts.py found in an image; empty where there is none of it.

    `requires` are the requirements of what was installed over the base, none of which came with it.
    """

    schema_version: Literal[1]
    python: str
    distributions: dict[str, str]
    installed_twice: tuple[str, ...]
    rocm: str
    rocm_layout: Literal["folder", "wheels", ""]
    cuda: str
    libc: str
    system: str
    gpu_arches: tuple[str, ...]
    requires: dict[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`findings` are the differences; `recorded` says what is in the image and has no pin to compare it with."""

    findings: tuple[Finding, ...]
    recorded: tuple[str, ...]


def read(container: Container) -> Facts:
    """Return the facts that an image's build wrote into it; raises NotApplied where it did not."""
    return parse(inspect.read_file(container, FILE))


def parse(data: bytes) -> Facts:
    """Return the facts of a versions.json; raises NotApplied for anything else."""
    try:
        return Facts.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(str(part) for part in first["loc"])
        raise errors.NotApplied(f"{FILE}: is not what a build writes: {at}: {first['msg']}") from error


def compare(plan: Plan, facts: Facts) -> Comparison:
    """Compare the facts of a plan's real image with its pins."""
    kind, pins = plan.image.kind, dict(plan.pins)
    differences = installed.differences(kind, plan.target.release, pins, facts.distributions)
    findings = [*_system(plan, pins, facts), *differences]
    findings += (Finding(where=name, problem="is installed more than once") for name in facts.installed_twice)
    findings += _unmet(facts)
    return Comparison(findings=tuple(findings), recorded=tuple(installed.recorded(kind, pins, facts.distributions)))


def require(plan: Plan, facts: Facts) -> None:
    """Raise Findings with every difference between an image and its plan's pins."""
    if found := compare(plan, facts).findings:
        lines = (f"{finding.where}: {finding.problem}" for finding in found)
        raise errors.Findings(
            "\n".join([f"{plan.target.slug}: the image is not what its pins say:", *lines]), hint=installed.HINT
        )


def _system(plan: Plan, pins: Mapping[str, str], facts: Facts) -> Iterator[Finding]:
    """Compare everything that is no distribution."""
    checks = [("python", f"{pins['python']}.*", facts.python)]
    checks += [(name, pins[name], getattr(facts, name)) for name in ("rocm", "cuda") if name in pins]
    for name, wanted, found in checks:
        if not installed.contains(f"=={wanted}", found):
            problem = f"is {found or 'not in the image'}, and the pin is {wanted}"
            yield Finding(where=name, problem=problem, hint=installed.HINT)
    if "ubuntu" in pins and facts.system != f"ubuntu {pins['ubuntu']}":
        yield Finding(
            where="system", problem=f"is {facts.system}, and the pin is ubuntu {pins['ubuntu']}", hint=installed.HINT
        )
    built_for = {name.partition(":")[0] for name in facts.gpu_arches}
    if plan.image.kind == "rocm" and built_for and plan.target.arch not in built_for:
        problem = f"the image is built for {', '.join(sorted(built_for))}, and the target is {plan.target.arch}"
        yield Finding(where="gpu_arches", problem=problem, hint=installed.HINT)


def _unmet(facts: Facts) -> Iterator[Finding]:
    """Yield what was installed over the base and needs something else than is there."""
    minor = ".".join(facts.python.split(".")[:2])
    environment = {"python_version": minor, "python_full_version": facts.python, "extra": ""}
    for package, requirements in facts.requires.items():
        for text in requirements:
            try:
                needed = Requirement(text)
            except InvalidRequirement:
                yield Finding(where=package, problem=f"needs {text!r}, which is no requirement", hint=_UNMET)
                continue
            if needed.marker and not needed.marker.evaluate(environment):
                continue
            found = facts.distributions.get(canonicalize_name(needed.name), "")
            if not found or not installed.contains(str(needed.specifier), found):
                problem = f"needs {needed.name}{needed.specifier}, and {found or 'none'} is in the image"
                yield Finding(where=package, problem=problem, hint=_UNMET)
