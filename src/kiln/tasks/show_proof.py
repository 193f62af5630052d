"""Prints what proving the patches showed: a line for each edition, then the findings, or JSON and nothing else."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from kiln import errors, report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kiln.proof.prove import Proof

_VERDICTS = {
    "edition": "red, then green",
    "upstream": "green upstream",
    "unported": "red, no edition",
    "series": "can be imported",
}
_HEADERS = ("patch", "release", "verdict", "fail without it", "pass with it", "not run", "seconds")


def show_proofs(proofs: Sequence[Proof], *, json: bool) -> None:
    """Print every proof; raises Findings when one has a finding."""
    findings = [finding for proof in proofs for finding in proof.findings]
    if json:
        print(report.as_json([asdict(proof) for proof in proofs]))
    else:
        print(report.table(_HEADERS, [_row(proof) for proof in proofs]))
        skipped = Counter((_name(proof), _reason(text)) for proof in proofs for text in proof.skipped)
        for (name, reason), count in skipped.items():
            print(f"NOT RUN {name}: {reason}{f' ({count} tests)' if count > 1 else ''}")
        for found in findings:
            print(f"{found.where}: {found.problem}\n  next: {found.hint}")
    if findings:
        raise errors.Findings(f"{len(findings)} {'finding' if len(findings) == 1 else 'findings'}")
    if not json:
        editions = sum(proof.case.kind == "edition" for proof in proofs)
        print(f"{editions} editions proven: red without the patch, green with it")


def _name(proof: Proof) -> str:
    return f"{proof.case.patch} on {proof.case.release}"


def _reason(skipped: str) -> str:
    """Return why a test did not run, of `id: Skipped: reason`."""
    return skipped.rpartition("Skipped: ")[2]


def _row(proof: Proof) -> tuple[str, ...]:
    case = proof.case
    return (
        case.patch,
        case.release,
        "FINDING" if proof.findings else _VERDICTS[case.kind],
        f"{proof.rules} tests{f', {proof.unready} lack its files' if proof.unready else ''}" if proof.rules else "",
        f"{proof.tests} tests" if proof.tests else "",
        str(len(proof.skipped)),
        f"{proof.seconds:.1f}",
    )
