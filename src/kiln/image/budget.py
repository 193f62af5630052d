"""Says what a build put on its base, and where that is more than its budget; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kiln import errors
from kiln.catalog import records
from kiln.errors import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Kind = Literal["patched", "thin", "twin"]

_MB = 1_000_000
_WHERE = "budgets in images/releases.yaml"


@dataclass(frozen=True, kw_only=True)
class Added:
    """What an image has over its base: bytes as they are pushed, None where they are not known, and layers."""

    size: int | None
    layers: int


def added(*, size: int, layers: int, base: Sequence[int] = ()) -> Added:
    """Return what an image of so many bytes and layers adds to a base, given as the sizes of its layers.

    An engine that keeps no compressed layers gives a size of 0: then no size is known.
    """
    return Added(size=size - sum(base) if size else None, layers=layers - len(base))


def allowed(budgets: records.Budgets, kind: Kind, *, installs: int = 0) -> records.Budget:
    """Return the budget of one build, with what its installs may add."""
    own, each = {"patched": budgets.patched, "thin": budgets.thin, "twin": budgets.twin}[kind], budgets.install
    return records.Budget(added_mb=own.added_mb + installs * each.added_mb, layers=own.layers + installs * each.layers)


def check(image: str, found: Added, budget: records.Budget) -> tuple[Finding, ...]:
    """Return a finding for each number that is above its budget."""
    return tuple(_findings(image, found, budget))


def require(image: str, found: Added, budget: records.Budget) -> None:
    """Raise Findings with every number that is above its budget."""
    if findings := check(image, found, budget):
        raise errors.Findings(
            "\n".join(f"{finding.where}: {finding.problem}" for finding in findings), hint=findings[0].hint
        )


def _findings(image: str, found: Added, budget: records.Budget) -> Iterator[Finding]:
    if found.size is not None and found.size > budget.added_mb * _MB:
        problem = f"adds {found.size / _MB:.1f} MB to its base, and its budget is {budget.added_mb} MB"
        hint = f"see what takes the room: ./inv image.diff BASE {image}; or raise {_WHERE}"
        yield Finding(where=image, problem=problem, hint=hint)
    if found.layers > budget.layers:
        added = f"{found.layers} layer{'' if found.layers == 1 else 's'}"
        problem = f"adds {added} to its base, and its budget is {budget.layers}"
        yield Finding(where=image, problem=problem, hint=f"join steps of its Dockerfile; or raise {_WHERE}")
