"""The whole way of a real image, for both vendors: lock, build, thin build, publish, verify."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import yaml

from kiln import catalog, errors, plan, process
from kiln.image import build, named
from kiln.image.diff import compare as diff
from kiln.image.thin import run as thin
from kiln.lock import run as locking
from kiln.publish import evidence, intent, run, verify
from kiln.report import Reporter
from kiln.smoke.records import CheckResult, SmokeResult

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.container.conftest import Kind, Make

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

QUIET = Reporter(quiet=True)
WAIVED = ("structural", "serve", "device")
GIT = ("-c", "user.name=Kiln Test", "-c", "user.email=test@example.invalid")
CASES = (("rocm", "gfx942"), ("cuda", "sm100"))


@pytest.fixture
def to(real_engine: Engine) -> str:
    """A repository that no other test, and no other run, has."""
    assert real_engine.registry, "these tests need the embedded engine's registry"
    return f"{real_engine.registry}/kiln-test/release/{uuid.uuid4().hex}"


def locked(made: Catalog, release: str) -> Catalog:
    """Lock as a person does, asking the registry and reading the layers, and commit what it wrote."""
    (made.root / ".gitignore").write_text("build/\nkiln.yaml\n")
    result = locking.run(made, locking.Wish(release=release, bases=True), QUIET)
    assert not result.findings
    for words in (("init", "--quiet"), ("add", "--all"), ("commit", "--quiet", "--message=all")):
        process.ask(("git", "-C", str(made.root), *GIT, *words))
    return replace(catalog.load(made.root), state=made.state)


def evidenced(made: Catalog, chosen: Plan, receipt: Receipt, folder: Path) -> Path:
    """Write evidence that nothing could be run, as without a GPU, and the waiver for it; return the waiver."""
    checks = tuple(CheckResult(tier=tier, name=tier, status="not_run", reason="no GPU") for tier in WAIVED)  # type: ignore[arg-type]
    found = SmokeResult(image=receipt.digest, puppet="", started="2026-01-01T00:00:00Z", seconds=0.0, checks=checks)
    evidence.write(made.output(chosen.target.slug), chosen, found, kind=receipt.kind)
    text = {
        "target": chosen.target.slug,
        "digest": receipt.digest,
        "tiers": list(WAIVED),
        "reason": "a base that only looks like the official one",
        "by": "test@example.invalid",
        "until": "2999-01-01",
    }
    path = folder / "waiver.yaml"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_from_lock_to_verify(
    case: tuple[Kind, str],
    *,
    lookalike: Make,
    edited: Callable[[Callable[[Path], None]], Catalog],
    to: str,
    tmp_path: Path,
) -> None:
    kind, arch = case
    base = lookalike(kind=kind)
    made = locked(edited(base.adopt), base.release)
    chosen = plan.make(made, variant="mxfp8", arch=arch)
    assert (chosen.image.digest, chosen.image.verified) == (base.digest, True)

    built = build.run(made, chosen, twin=False, reporter=QUIET)
    waiver = evidenced(made, chosen, built, tmp_path)
    with pytest.raises(errors.PublishRefused) as refused:
        run.run(made, chosen, intent.Request(to=to), twin=False, reporter=QUIET)
    assert all(f"tier {tier}: NOT_RUN" in refused.value.message for tier in WAIVED)
    published = run.run(made, chosen, intent.Request(to=to, waiver=waiver), twin=False, reporter=QUIET)
    assert (published.waived, published.signed, published.slsa_level) == (WAIVED, "UNSIGNED", 1)
    of_built = verify.run(f"{to}:{published.tag}", verifier=None, reporter=QUIET, full=True)
    assert (of_built.findings, of_built.signature) == ((), "unsigned")

    apart = f"{to}/thin"
    pushed = thin.run(made, chosen, repository=apart, reporter=QUIET)
    waiver = evidenced(made, chosen, pushed, tmp_path)
    run.run(made, chosen, intent.Request(to=apart, waiver=waiver), twin=False, reporter=QUIET)
    of_thin = verify.run(f"{apart}:{published.tag}", verifier=None, reporter=QUIET)
    assert of_thin.findings == ()

    with named.opened(f"{to}:{published.tag}", made, QUIET) as one, named.opened(pushed.image, made, QUIET) as other:
        found = diff.compare(("built", "thin"), one, other, progress=lambda _: None)
    assert [change.path for change in found.files] == ["opt/kiln/versions.json"]
