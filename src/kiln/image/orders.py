"""What a person asks of a build beside its target, checked before anything begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln.engine import Engine
from kiln.image import bake, build, destination, prepare, receipt
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
_MOST_JOBS = 64


@dataclass(frozen=True, kw_only=True)
class Order:
    """`repository` is where the image is pushed to, empty where it stays in the engine."""

    twin: bool = False
    thin: bool = False
    rebuild: bool = False
    dry_run: bool = False
    builder: str = ""
    repository: str = ""


def checked(order: Order, catalog: Catalog, *, push: bool, to: str, show: bool = False) -> Order:
    """Return the order with its repository; raises BadInput for one that contradicts itself.

    `show`: the bake file is printed, and nothing built.
    """
    repository = to or (catalog.config.publish or "" if push or order.thin else "")
    given = _given(order, push=push, to=to)
    idle = ", ".join(flag for flag in ("--builder", "--rebuild", "--push", "--to", "--thin") if flag in given)
    unshown = ", ".join(flag for flag in ("--builder", "--rebuild", "--thin", "--dry-run") if flag in given)
    name_one, without_thin = "name one: --to HOST/REPOSITORY, or publish in kiln.yaml", "leave out --thin"
    wrong = (
        (push and not repository, "--push: no repository is named", name_one),
        (order.thin and not repository, "--thin: no repository is named, and the engine never gets it", name_one),
        (order.thin and order.twin, "--thin: a twin has no base to lay a layer over", without_thin),
        (order.thin and bool(order.builder), "--thin: only the engine's own builder can do it", "leave out --builder"),
        (order.dry_run and bool(idle), f"--dry-run builds nothing, so it takes no {idle}", f"leave out {idle}"),
        (
            show and bool(unshown),
            f"--print shows the builds of whole images and makes none, so it takes no {unshown}",
            f"leave out {unshown}",
        ),
    )
    found = [(problem, hint) for holds, problem, hint in wrong if holds]
    if found:
        hints = dict.fromkeys(hint for _, hint in found)
        raise errors.BadInput("\n".join(problem for problem, _ in found), hint="; ".join(hints))
    if repository:
        destination.repository_of(repository)
    return replace(order, repository=repository)


def _given(order: Order, *, push: bool, to: str) -> set[str]:
    flags = {
        "--builder": order.builder,
        "--rebuild": order.rebuild,
        "--push": push,
        "--to": to,
        "--thin": order.thin,
        "--dry-run": order.dry_run,
    }
    return {flag for flag, value in flags.items() if value}


def reach(order: Order, catalog: Catalog) -> None:
    """Raise Missing where the registry of an order does not answer, before its first build."""
    if order.repository:
        destination.reach(destination.repository_of(order.repository), catalog.config.ca)


def jobs(text: str) -> int:
    """Return how many builds may run at a time; raises BadInput for anything but a number from 1 to 64."""
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_MOST_JOBS)) and 0 < int(text) <= _MOST_JOBS):
        raise errors.BadInput(f"--jobs {text}: not a number of builds from 1 to {_MOST_JOBS}", hint="--jobs 4")
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
        return thin.run(catalog, plan, repository=order.repository, reporter=reporter, rebuild=order.rebuild)
    how = build.How(builder=order.builder, rebuild=order.rebuild, repository=order.repository)
    made = build.run(catalog, plan, twin=order.twin, reporter=reporter, how=how)
    if order.repository and not made.image.startswith(f"{order.repository}@"):
        pushed = build.push(catalog, plan, twin=order.twin, repository=order.repository, reporter=reporter)
        made = replace(made, pushed=pushed.reference)
        receipt.write(catalog.output(plan.target.slug), made)
    return made


def document(order: Order, catalog: Catalog, chosen: Iterable[Chosen], reporter: Reporter) -> str:
    """Return the bake file of all targets for somebody's own builders, after everything that it names was staged.

    Raises BadInput that names every target that is refused.
    """
    chosen = tuple(chosen)
    refused = [each for each in chosen if each.error]
    if refused:
        told = (f"{each.target}: {each.error.message}" for each in refused if each.error)
        hint = "leave them out: name --variant, --arch or --release, or edit matrix in images/releases.yaml"
        raise errors.BadInput("\n".join(told), hint=hint)
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
