"""Builds several targets at a time: each has its own row, and one that fails hides no other."""

from __future__ import annotations

import contextvars
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kiln import errors, process
from kiln.report import Among

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kiln.image.receipt import Receipt
    from kiln.plan import Plan
    from kiln.report import Reporter

    Work = Callable[[Plan, Reporter], Receipt | None]

Outcome = Literal["built", "unchanged", "rehearsed", "refused", "failed"]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """One target of several: its plan, or why there is none."""

    target: str
    plan: Plan | None = None
    error: errors.BadInput | None = None

    def planned(self) -> Plan:
        """Return the plan, or raise why there is none."""
        if self.plan is None:
            raise self.error or errors.BadInput(f"{self.target}: has no plan")
        return self.plan


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one target; `error` says why it was refused or failed."""

    target: str
    outcome: Outcome
    seconds: float = 0.0
    receipt: Receipt | None = None
    error: errors.KilnError | None = None


def run(chosen: Sequence[Chosen], work: Work, *, jobs: int) -> tuple[Row, ...]:
    """Do `work` for every plan, at most `jobs` at a time, and return a row for each, in the given order.

    An interrupt ends what all of them run before it goes on.
    """
    rows = {each.target: Row(target=each.target, outcome="refused", error=each.error) for each in chosen}
    together = process.Together()
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            futures = [
                # each with a context of its own, in which `together` is set
                pool.submit(contextvars.copy_context().run, _one, each.plan, work, Among(each.target), together)
                for each in chosen
                if each.plan
            ]
            rows |= {row.target: row for row in (future.result() for future in as_completed(futures))}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            together.end()
            raise
    return tuple(rows[each.target] for each in chosen)


def worst(rows: Sequence[Row]) -> errors.KilnError | None:
    """Return the error with the highest exit code, said of all that were refused or failed; None where none was."""
    wrong = [row.error for row in rows if row.error]
    if not wrong:
        return None
    first = max(wrong, key=lambda error: error.exit_code)
    names = ", ".join(row.target for row in rows if row.error)
    return type(first)(f"{len(wrong)} of {len(rows)} targets were refused or failed: {names}", hint=first.hint)


def _one(plan: Plan, work: Work, reporter: Reporter, together: process.Together) -> Row:
    name = plan.target.slug
    try:
        with together.joined():
            made = work(plan, reporter)
    except errors.KilnError as error:
        return Row(target=name, outcome="failed", seconds=_spent(reporter), error=error)
    except OSError as error:
        return Row(target=name, outcome="failed", seconds=_spent(reporter), error=errors.of_system(error))
    outcome: Outcome = "rehearsed" if made is None else "unchanged" if made.unchanged else "built"
    return Row(target=name, outcome=outcome, seconds=_spent(reporter), receipt=made)


def _spent(reporter: Reporter) -> float:
    return round(sum(reporter.timings.values()), 2)
