"""What a person asks of a build beside its target, checked before anything begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln.engine import Engine
from kiln.image import bake, build, prepare, receipt
from kiln.image.thin import run as thin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kiln.catalog import Catalog
    from kiln.image.many import Chosen
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan
    from kiln.report import Reporter

# a document for other builders: their own network, and no engine of this machine
_ELSEWHERE = Engine(host="", embedded=False, server_version="")


@dataclass(frozen=True, kw_only=True)
class Order:
    """`repository` is where the image is pushed to, empty where it stays in the engine."""

    twin: bool = False
    thin: bool = False
    rebuild: bool = False
    dry_run: bool = False
    builder: str = ""
    repository: str = ""


def checked(order: Order, catalog: Catalog, *, push: bool, to: str) -> Order:
    """Return the order with its repository; raises BadInput for one that contradicts itself."""
    repository = to or (catalog.config.publish or "" if push or order.thin else "")
    building = {"--rebuild": order.rebuild, "--push": push, "--to": bool(to), "--thin": order.thin}
    idle = [flag for flag, given in building.items() if given] if order.dry_run else []
    wrong = {
        "--push: no repository is named": push and not repository,
        "--thin: the image never is in the engine, and no repository is named": order.thin and not repository,
        "--thin: a twin has no base to lay a layer over": order.thin and order.twin,
        "--thin: only the engine's own builder can do it": order.thin and bool(order.builder),
        f"--dry-run builds nothing, so it takes no {' or '.join(idle)}": bool(idle),
    }
    if problems := [problem for problem, holds in wrong.items() if holds]:
        raise errors.BadInput("\n".join(problems), hint="name one: --to HOST/REPOSITORY, or publish in kiln.yaml")
    if repository:
        build.checked_repository(repository)
    return replace(order, repository=repository)


def jobs(text: str) -> int:
    """Return how many builds may run at a time; raises BadInput for anything but a number from 1 on."""
    if not text.isdecimal() or not int(text):
        raise errors.BadInput(f"--jobs {text}: not a number of builds", hint="--jobs 4")
    return int(text)


def worker(order: Order, catalog: Catalog) -> Callable[[Plan, Reporter], Receipt | None]:
    """Return what does an order for one target of several."""
    return lambda plan, reporter: fill(order, catalog, plan, reporter)


def fill(order: Order, catalog: Catalog, plan: Plan, reporter: Reporter) -> Receipt | None:
    """Do what was ordered for one target; None after a rehearsal."""
    if order.dry_run:
        prepare.rehearse_target(catalog, plan, twin=order.twin, reporter=reporter)
        return None
    if order.thin:
        return thin.run(catalog, plan, repository=order.repository, reporter=reporter)
    how = build.How(builder=order.builder, rebuild=order.rebuild, repository=order.repository)
    made = build.run(catalog, plan, twin=order.twin, reporter=reporter, how=how)
    if order.repository and not made.image.startswith(f"{order.repository}@"):
        pushed = build.push(catalog, plan, twin=order.twin, repository=order.repository, reporter=reporter)
        made = replace(made, pushed=pushed.reference)
        receipt.write(catalog.output(plan.target.slug), made)
    return made


def document(order: Order, catalog: Catalog, chosen: Iterable[Chosen], reporter: Reporter) -> str:
    """Return the bake file of all targets for somebody's own builders, after everything that it names was staged."""
    if order.thin or order.dry_run:
        raise errors.BadInput("--print shows the builds of whole images: it takes no --thin or --dry-run")
    builds = []
    for plan in [each.planned() for each in chosen]:
        rehearsal = prepare.rehearse_target(catalog, plan, twin=order.twin, reporter=reporter)
        job = prepare.Job(
            catalog=catalog, plan=plan, twin=order.twin, rehearsal=rehearsal, engine=_ELSEWHERE, reporter=reporter
        )
        with prepare.staged(job, secrets=catalog.state / "secrets") as ready:
            output = bake.pushed_by_digest(order.repository) if order.repository else bake.LOAD
            builds.append(replace(ready.build, output=output))
    return bake.document(builds)
