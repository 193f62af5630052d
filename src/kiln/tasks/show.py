"""Prints what a task made: a table for a person, or JSON and nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kiln import errors, report
from kiln.image import many

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence
    from pathlib import Path

    from kiln.engine import Engine, Status
    from kiln.image.many import Chosen, Row
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan
    from kiln.smoke.records import SmokeResult
    from kiln.tasks.choice import Choice

_SHOWN_DIGEST = 19  # "sha256:" and twelve digits
_MB = 1_000_000


def show_plan(plan: Plan, *, json: bool) -> None:
    """Print everything a target resolves to."""
    if json:
        print(report.as_json(plan.as_data()))
        return
    image, target = plan.image, plan.target
    state = "verified" if image.verified else f"not verified by a registry, confidence {image.confidence}"
    twin = f"{plan.twin.wheel.file} on {_base_name(plan)}" if plan.twin else f"none: {plan.no_twin_because}"
    rows = [
        ("target", target.slug),
        ("model", f"{target.model}, served as {plan.serve.model_id}"),
        ("arch", f"{target.arch} ({target.product})"),
        ("image", f"{image.repository}:{image.tag}"),
        ("digest", f"{image.digest} ({state})" if image.digest else "unknown: a build refuses a bare tag"),
        ("wheel", f"{plan.wheel.file} sha256:{plan.wheel.sha256[:12]}"),
        ("twin", twin),
        *((f"pin {name}", value) for name, value in plan.pins),
        *((f"install {each.package}", f"{each.version}: {each.reason}") for each in plan.installs),
        *((f"patch {use.id}", f"edition {use.edition}: {use.title}") for use in plan.series),
    ]
    print(report.table(("what", "value"), rows))
    env = [(f"{item.name}={item.value}", item.origin) for item in plan.serve.env]
    flags = [(" ".join(flag.words), flag.origin) for flag in plan.serve.flags]
    print()
    print(report.table(("served with", "because of"), [*flags, *env]))
    for flag in plan.serve.left_out:
        print(f"left out, as {plan.target.release} does not take it: {' '.join(flag.words)} ({flag.origin})")


def show_targets(targets: Iterable[Choice], twins: Collection[str], *, json: bool) -> None:
    """Print every target with why it is refused, releases joined; `twins` are the releases that have a twin."""
    names = ("model", "variant", "arch", "release")
    if json:
        rows = [
            dict(zip(names, target, strict=True)) | {"twin": target[3] in twins, "refused": list(refused)}
            for target, refused in targets
        ]
        print(report.as_json(rows))
        return
    grouped: dict[tuple[str, str, str], tuple[list[str], list[str]]] = {}
    for (*key, release), refused in targets:
        able, unable = grouped.setdefault((key[0], key[1], key[2]), ([], []))
        if refused:
            unable.append(release)
        else:
            able.append(release + (" (twin)" if release in twins else ""))
    cells = [(*key, ", ".join(able) or "none", ", ".join(unable)) for key, (able, unable) in grouped.items()]
    print(report.table((*names[:3], "releases", "refused: a needed patch has no edition, or another pin"), cells))


def show_plans(chosen: Iterable[Chosen], *, json: bool) -> None:
    """Print every target of a matrix: what it is made of, or why it is refused."""
    if json:
        rows = [
            {
                "target": each.target,
                "plan": each.plan.as_data() if each.plan else None,
                "refused": each.error.message.splitlines() if each.error else [],
            }
            for each in chosen
        ]
        print(report.as_json(rows))
        return
    cells = [(each.target, *_made_of(each)) for each in chosen]
    print(report.table(("target", "base", "digest", "series, or why it is refused"), cells))


def _made_of(chosen: Chosen) -> tuple[str, str, str]:
    if not chosen.plan:
        return "", "", f"refused: {_first_line(chosen.error)}"
    image = chosen.plan.image
    digest = image.digest[:_SHOWN_DIGEST] if image.digest else "unknown"
    state = "" if image.verified or not image.digest else f" ({image.confidence})"
    series = ", ".join(use.id for use in chosen.plan.series) or "none is needed"
    return f"{image.kind} {image.tag}", digest + state, series


def show_rows(rows: Sequence[Row], *, json: bool) -> None:
    """Print what became of every target; raises the error with the highest exit code of those there are."""
    if json:
        print(report.as_json([_row_data(row) for row in rows]))
    else:
        cells = [(row.target, row.outcome, f"{row.seconds:.1f}s", _ended_as(row)) for row in rows]
        print(report.table(("target", "", "time", "image, or why there is none"), cells))
    if error := many.worst(rows):
        raise error


def _row_data(row: Row) -> dict[str, Any]:
    error = row.error
    return {
        "target": row.target,
        "outcome": row.outcome,
        "seconds": row.seconds,
        "receipt": asdict(row.receipt) if row.receipt else None,
        "error": {"message": error.message, "hint": error.hint, "exit_code": error.exit_code} if error else None,
    }


def _ended_as(row: Row) -> str:
    if row.error:
        return _first_line(row.error)
    return f"{row.receipt.image} {row.receipt.digest[:_SHOWN_DIGEST]}" if row.receipt else "its series applies"


def _first_line(error: errors.KilnError | None) -> str:
    return error.message.splitlines()[0] if error else ""


def show_document(document: str) -> None:
    """Print a bake file."""
    print(document, end="")


def show_receipt(receipt: Receipt, *, json: bool) -> None:
    if json:
        print(report.as_json(asdict(receipt)))
        return
    print(
        f"{'unchanged' if receipt.unchanged else 'built'} {receipt.image}\n"
        f"  digest  {receipt.digest}\n"
        + (f"  pushed  {receipt.pushed}\n" if receipt.pushed else "")
        + f"  base    {receipt.base}\n"
        f"  inputs  sha256:{receipt.inputs_sha256}\n"
        f"  size    {receipt.compressed_bytes / _MB:.1f} MB compressed, {receipt.layers} layers\n"
        f"  series  {', '.join(receipt.series) or 'no patch is needed'}: APPLIED, ledger equals the rehearsal's\n"
        f"  receipt build/{receipt.target}/{receipt.kind}.json"
    )


def show_smoke(result: SmokeResult, evidence: Path, *, json: bool) -> None:
    """Print every check; raises SmokeFailed when one failed."""
    if json:
        print(report.as_json(asdict(result) | {"passed": result.passed, "evidence": str(evidence)}))
    else:
        rows = [(check.tier, check.name, _verdict(check.status), _why(check)) for check in result.checks]
        print(report.table(("tier", "check", "verdict", ""), rows))
    counts = ", ".join(f"{len(result.of(status))} {_verdict(status)}" for status in ("passed", "failed", "not_run"))
    summary = f"{counts} on {result.image[:_SHOWN_DIGEST]} in {result.seconds:.1f} s; evidence: {evidence}"
    if not result.passed:
        raise errors.SmokeFailed(summary, hint=f"read the findings above, or in {evidence}")
    if not json:
        print(summary)


def show_engine(engine: Engine, *, json: bool) -> None:
    if json:
        print(report.as_json(_engine_data(engine)))
        return
    kind = "embedded engine" if engine.embedded else "the machine's engine"
    print(f"{kind} {engine.server_version} at {engine.host}")
    if engine.registry:
        print(f"local registry at {engine.registry}")
        print(f"to use it with docker: export DOCKER_HOST={engine.host}")


def show_purged(home: Path, *, removed: bool) -> None:
    print(f"removed {home}: packages, images and caches" if removed else f"nothing to remove: there is no {home}")


def show_engine_status(status: Status, *, json: bool) -> None:
    if json:
        engine = _engine_data(status.engine) if status.engine else None
        print(report.as_json({"engine": engine, "home": str(status.home), "problem": status.problem}))
    elif status.engine:
        show_engine(status.engine, json=False)
    else:
        print(
            status.problem or "no Docker engine answers, and the embedded one is not up; bring it up: ./inv engine.up"
        )


def _engine_data(engine: Engine) -> dict[str, Any]:
    return {
        "host": engine.host,
        "embedded": engine.embedded,
        "server_version": engine.server_version,
        "registry": engine.registry,
        "docker": engine.docker,
    }


def _base_name(plan: Plan) -> str:
    assert plan.twin is not None
    return plan.twin.base if isinstance(plan.twin.base, str) else plan.twin.base.reference


def _verdict(status: str) -> str:
    return status.upper() if status != "passed" else "passed"


def _why(check: Any) -> str:
    return (
        check.reason
        or "; ".join(f"{found.where}: {found.problem}" for found in check.findings)
        or f"{check.seconds:.2f}s"
    )
