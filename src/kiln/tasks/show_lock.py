"""Prints what the images are locked to, what registries said otherwise, and what could be added to the catalog."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kiln import errors, report
from kiln.catalog import lock_records, locked
from kiln.drift.words import line, many

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.lock.run import Result
    from kiln.lock.update import Proposal

_SHOWN_DIGEST = 19  # "sha256:" and twelve digits


def show_lock(result: Result, proposals: Sequence[Proposal], *, strict: bool, json: bool) -> None:
    """Print the lock and what was found, or its JSON and nothing else.

    Raises Missing where a registry was silent on what was asked for by name, and with `strict` on anything; Findings
    where something is not as locked.
    """
    if json:
        print(report.as_json(as_data(result, proposals)))
    else:
        print(report.table(("image", "linux/amd64", "vouched for by", "layers"), list(_rows(result))))
        print("\n".join(_lines(result, proposals)))
    if result.undone:
        hint = result.silent[0].hint if result.silent else ""
        raise errors.Missing("\n".join(line(each) for each in result.undone), hint=hint)
    if result.findings:
        raise errors.Findings(many(len(result.findings), "finding"))
    if strict and result.silent:
        hosts = ", ".join(each.host for each in result.silent)
        raise errors.Missing(f"no answer from {hosts}", hint=result.silent[0].hint)


def as_data(result: Result, proposals: Sequence[Proposal]) -> dict[str, Any]:
    """Return plain JSON data."""
    return {
        "images": {name: result.lock.images[name].model_dump(mode="json") for name in result.images},
        "changed": [name for name in result.images if result.lock.images[name] != result.before.images.get(name)],
        "unconfirmed": list(result.unconfirmed),
        "unknown": list(result.unknown),
        "findings": [asdict(finding) for finding in result.findings],
        "damaged": list(result.damaged),
        "undone": list(result.undone),
        "silent": [asdict(each) for each in result.silent],
        "new_releases": [asdict(proposal) for proposal in proposals],
        "written": result.written,
    }


def _rows(result: Result) -> Iterator[tuple[str, str, str, str]]:
    for name in result.images:
        entry = result.lock.images[name]
        digest = entry.manifest.digest[:_SHOWN_DIGEST] if entry.manifest else "unknown"
        yield name, digest, _voucher(entry.manifest), _layers(entry.base)


def _layers(base: lock_records.Base | None) -> str:
    if base is None:
        return "not read"
    return "read" if base.reader == lock_records.READER else "read by an older Kiln: --bases"


def _voucher(manifest: lock_records.LockedDigest | None) -> str:
    if manifest is None:
        return "nobody: no build starts from it"
    return f"its registry, {manifest.confirmed}" if manifest.confirmed else f"public records, {manifest.confidence}"


def _lines(result: Result, proposals: Sequence[Proposal]) -> Iterator[str]:
    for finding in result.findings:
        yield f"{line(finding.where)}: {line(finding.problem)}"
        if finding.hint:
            yield f"  next: {line(finding.hint)}"
    for name in result.damaged:
        yield f"{name}: its entry was damaged, and was made anew from images/releases.yaml and what its registry says"
    for each in result.silent:
        yield f"{line(each.host)}: no answer for {many(len(each.images), 'image')}: {line(each.reason)}"
        if each.hint:
            yield f"  next: {line(each.hint)}"
    for proposal in proposals:
        yield from _proposed(proposal)
    yield _summary(result)


def _proposed(proposal: Proposal) -> Iterator[str]:
    if proposal.problem:
        yield f"{proposal.release} is a new release, and cannot be read: {line(proposal.problem)}"
        return
    yield f"{proposal.release} is a new release; add it to images/releases.yaml, then ./inv lock:"
    yield proposal.block


def _summary(result: Result) -> str:
    confirmed = len(result.images) - len(result.unconfirmed) - len(result.unknown)
    counts = [f"{confirmed} confirmed by a registry"]
    counts += [f"{len(result.unconfirmed)} by public records alone"] if result.unconfirmed else []
    counts += [f"{len(result.unknown)} without a digest"] if result.unknown else []
    if result.written:
        state = f"wrote {locked.LOCK}"
    elif result.changed:
        state = f"{locked.LOCK} would change"
    else:
        state = f"{locked.LOCK} is as it was"
    return f"{many(len(result.images), 'image')}: {', '.join(counts)}; {state}"
