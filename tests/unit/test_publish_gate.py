"""The gate: a case with nothing against it passes, and each reason to refuse is red by itself."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from kiln import catalog, errors, plan
from kiln.errors import Finding
from kiln.image.receipt import Receipt
from kiln.publish import evidence, gate, slsa, waiver
from kiln.smoke import checks
from kiln.smoke.records import CheckResult, SmokeResult

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.publish.evidence import Evidence
    from kiln.publish.gate import Case
    from kiln.publish.waiver import Waiver
    from kiln.smoke.records import Tier

DIGEST, OTHER, BASE = (f"sha256:{digit * 64}" for digit in "123")
TARGET = "minimax-m3-mxfp8-gfx942-0.31.0"
FLAGS = "--variant mxfp8 --arch gfx942 --twin"
TODAY = dt.date(2026, 11, 20)
BUILD, SMOKE = f"./inv build {FLAGS}", f"./inv smoke {FLAGS}"
RECEIPT_AT, EVIDENCE_AT = f"receipt build/{TARGET}/twin.json", f"evidence build/{TARGET}/twin-evidence.json"

WANTED = gate.Wanted(
    target=TARGET,
    kind="twin",
    flags=FLAGS,
    inputs_sha256="a" * 64,
    ledger_sha256="b" * 64,
    base=BASE,
    series=(("toy", "c" * 64),),
    recipe_sha256="d" * 64,
    commit="e" * 40,
    dirty=False,
)
RECEIPT = Receipt(
    target=TARGET,
    kind="twin",
    image="kiln/x:latest",
    digest=DIGEST,
    base=BASE,
    series=("toy",),
    ledger_sha256="b" * 64,
    inputs_sha256="a" * 64,
    compressed_bytes=1,
    layers=2,
    catalog_commit="e" * 40,
    catalog_dirty=False,
    seconds={},
)


def check(tier: Tier, status: str, name: str = "one", *, reason: str = "") -> evidence.Check:
    found = (evidence.Finding(where="call", problem="wrong", hint=""),) if status == "failed" else ()
    return evidence.Check.model_validate(
        {"tier": tier, "name": name, "status": status, "findings": found, "seconds": 0.0, "reason": reason}
    )


def smoked(*checks: evidence.Check, **changed: Any) -> Evidence:
    smoke = evidence.Smoke(image=DIGEST, puppet="", started="", seconds=1.0, checks=checks)
    made = evidence.Evidence(
        schema=1,
        kiln="1",
        target=TARGET,
        kind="twin",
        image_digest=DIGEST,
        commit="e" * 40,
        dirty=False,
        passed=True,
        not_run=(),
        recipe_sha256="d" * 64,
        series=(evidence.SeriesEntry(id="toy", edition_sha256="c" * 64),),
        smoke=smoke,
    )
    return made.model_copy(update=changed)


STRUCTURAL = (check("structural", "passed", "verify"), check("structural", "passed", "probe toy"))
SERVED = tuple(check("serve", "passed", name) for name in ("start", *(each.name for each in checks.SERVE), "shutdown"))
PASSED = (*STRUCTURAL, *SERVED, check("device", "not_run", reason="no GPU"))
GOOD = gate.Case(wanted=WANTED, receipt=RECEIPT, evidence=smoked(*PASSED), waiver=None, today=TODAY)


def waiving(*tiers: Tier, **changed: Any) -> Waiver:
    made = waiver.Waiver(target=TARGET, digest=DIGEST, tiers=tiers, reason="no GPU", by="Ada", until=TODAY)
    return made.model_copy(update=changed)


def about(**changed: Any) -> Case:
    return replace(GOOD, wanted=replace(WANTED, **changed))


def of_receipt(**changed: Any) -> Case:
    return replace(GOOD, receipt=replace(RECEIPT, **changed))


def test_nothing_is_against_a_good_case() -> None:
    assert gate.findings(GOOD) == ()


REFUSED: dict[str, tuple[Case, tuple[str, str, str]]] = {
    "no commit": (
        replace(about(commit="none", dirty=True), receipt=replace(RECEIPT, catalog_commit="none")),
        ("catalog", "no commit says what the image is made of", "publish from a git checkout: git add, git commit"),
    ),
    "dirty": (
        about(dirty=True),
        ("catalog", "changed since commit eeeeeeeeeeee", "git status; commit the change, then build and smoke again"),
    ),
    "no receipt": (
        replace(GOOD, receipt=None),
        (RECEIPT_AT, "there is none of this form: this target was not built here", BUILD),
    ),
    "receipt of another target": (of_receipt(target="x"), (RECEIPT_AT, "is of x (twin)", BUILD)),
    "other inputs": (
        of_receipt(inputs_sha256="f" * 64),
        (RECEIPT_AT, "was built of other inputs: ffffffffffff, now aaaaaaaaaaaa", BUILD),
    ),
    "another commit": (
        of_receipt(catalog_commit="f" * 40),
        (RECEIPT_AT, "was built at commit ffffffffffff, the catalog is at eeeeeeeeeeee", f"{BUILD} --rebuild"),
    ),
    "another ledger": (
        of_receipt(ledger_sha256="f" * 64),
        (RECEIPT_AT, "its ledger is ffffffffffff, the rehearsal's is bbbbbbbbbbbb", BUILD),
    ),
    "another base": (of_receipt(base=OTHER), (RECEIPT_AT, f"its base is {OTHER}, the catalog's is {BASE}", BUILD)),
    "built dirty": (
        of_receipt(catalog_dirty=True),
        (RECEIPT_AT, "was built from a catalog with changes that no commit holds", BUILD),
    ),
    "no evidence": (
        replace(GOOD, evidence=None),
        (EVIDENCE_AT, "there is none of this form: this image was not smoked", SMOKE),
    ),
    "evidence of another image": (
        replace(GOOD, evidence=smoked(*PASSED, image_digest=OTHER)),
        (EVIDENCE_AT, f"is about {DIGEST} and {OTHER}, not about {DIGEST}", SMOKE),
    ),
    "evidence of another target": (
        replace(GOOD, evidence=smoked(*PASSED, kind="rocm")),
        (EVIDENCE_AT, f"is of {TARGET} (rocm)", SMOKE),
    ),
    "older series": (
        about(series=(("toy", "f" * 64),)),
        (EVIDENCE_AT, "the series was changed since: patches or editions differ", SMOKE),
    ),
    "older recipe": (
        about(recipe_sha256="f" * 64),
        (EVIDENCE_AT, "the recipe was changed since: it was served in another way", SMOKE),
    ),
    "evidence of an edited tree": (
        replace(GOOD, evidence=smoked(*PASSED, dirty=True)),
        (EVIDENCE_AT, "was made with changes that no commit holds", f"git status; git commit; {SMOKE}"),
    ),
    "a failed check": (
        replace(GOOD, evidence=smoked(*PASSED, check("serve", "failed"))),
        ("serve/one", "failed: call: wrong", SMOKE),
    ),
    "a failed check of a tier that is not required": (
        replace(GOOD, evidence=smoked(*PASSED, check("replay", "failed"))),
        ("replay/one", "failed: call: wrong", SMOKE),
    ),
    "a tier not run": (
        replace(GOOD, evidence=smoked(*STRUCTURAL, check("serve", "not_run", reason="no port"))),
        ("tier serve", "NOT_RUN: no port, and it is required of a twin image", f"{SMOKE}; or --waiver FILE"),
    ),
    "a tier that is absent": (
        replace(GOOD, evidence=smoked(*SERVED)),
        ("tier structural", "NOT_RUN, and it is required of a twin image", f"{SMOKE}; or --waiver FILE"),
    ),
    "a waiver of another target": (
        replace(GOOD, waiver=waiving("device", target="x")),
        ("waiver", f"is for x, not for {TARGET}", ""),
    ),
    "a waiver of another digest": (
        replace(GOOD, waiver=waiving("device", digest=OTHER)),
        ("waiver", f"is for {OTHER}, not for {DIGEST}", ""),
    ),
    "a waiver that has ended": (
        replace(GOOD, waiver=waiving("device", until=TODAY - dt.timedelta(days=1))),
        ("waiver", "has ended on 2026-11-19", "ask Ada for a new one"),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_each_reason_is_red_by_itself(name: str) -> None:
    case, (where, problem, hint) = REFUSED[name]
    assert gate.findings(case) == (Finding(where=where, problem=problem, hint=hint),)


@pytest.mark.parametrize("absent", [*STRUCTURAL, *SERVED], ids=lambda each: f"{each.tier}/{each.name}")
def test_every_check_of_a_tier_must_have_passed_by_name(absent: evidence.Check) -> None:
    where, problem = f"{absent.tier}/{absent.name}", "was not run, and it is required"
    left = [each for each in PASSED if each != absent]
    skipped = absent.model_copy(update={"status": "not_run"})
    for told in (left, [*left, skipped]):
        case = replace(GOOD, evidence=smoked(*told))
        assert gate.findings(case) == (Finding(where=where, problem=problem, hint=SMOKE),)
        assert gate.findings(replace(case, waiver=waiving(absent.tier))), "a waiver stands for whole tiers"


def test_one_invented_check_in_each_tier_is_not_enough() -> None:
    case = replace(GOOD, evidence=smoked(*(check(tier, "passed") for tier in ("structural", "serve"))))
    assert len(gate.findings(case)) == len(STRUCTURAL) + len(SERVED)


def test_every_reason_is_told_at_once() -> None:
    case = replace(about(dirty=True), receipt=replace(RECEIPT, base=OTHER), evidence=None)
    assert [found.where for found in gate.findings(case)] == ["catalog", RECEIPT_AT, EVIDENCE_AT]


def test_a_waiver_stands_for_a_tier_that_was_not_run_or_is_absent() -> None:
    for told in ((*STRUCTURAL, check("serve", "not_run")), STRUCTURAL):
        case = replace(GOOD, evidence=smoked(*told), waiver=waiving("serve", "full"))
        assert gate.findings(case) == ()
        assert gate.waived(case) == ("serve",)
    assert gate.waived(GOOD) == ()
    assert gate.waived(replace(GOOD, waiver=waiving("serve"))) == ()


def test_a_waiver_never_stands_for_a_failed_check() -> None:
    case = replace(GOOD, evidence=smoked(*STRUCTURAL, check("serve", "failed")), waiver=waiving("serve"))
    assert [found.where for found in gate.findings(case)] == ["serve/one"]


def test_a_real_image_needs_its_gpu_or_a_waiver() -> None:
    case = gate.Case(
        wanted=replace(WANTED, kind="rocm"),
        receipt=replace(RECEIPT, kind="rocm"),
        evidence=smoked(*PASSED, kind="rocm"),
        waiver=None,
        today=TODAY,
    )
    assert [found.where for found in gate.findings(case)] == ["tier device"]
    assert gate.findings(replace(case, waiver=waiving("device"))) == ()


def test_a_thin_image_is_of_other_inputs_and_of_the_same_commit() -> None:
    assert gate.findings(of_receipt(thin=True, inputs_sha256="f" * 64)) == ()
    assert len(gate.findings(of_receipt(thin=True, catalog_commit="f" * 40))) == 1


# the files


def test_evidence_is_read_as_it_was_written(toy_catalog: Path) -> None:
    made = plan.make(catalog.load(toy_catalog), variant="mxfp8", arch="gfx942")
    failed = CheckResult(
        tier="serve", name="tools", status="failed", findings=(Finding(where="call 1", problem="é"),), seconds=1.0
    )
    told = (failed, CheckResult(tier="structural", name="verify", status="passed"))
    result = SmokeResult(image=DIGEST, puppet="p", started="2026-01-01T00:00:00Z", seconds=1.5, checks=told)
    folder = toy_catalog / "build"
    evidence.write(folder, made, result, kind="twin")
    read = evidence.read(folder, "twin")
    assert read
    assert (read.image_digest, read.passed) == (DIGEST, False)
    assert read.recipe_sha256 == evidence.recipe_sha256(made)
    assert [read.status(tier) for tier in ("serve", "structural", "device")] == ["failed", "passed", "not_run"]
    assert evidence.read(folder, "rocm") is None


def test_evidence_of_another_form_is_none(tmp_path: Path) -> None:
    (tmp_path / "twin-evidence.json").write_text('{"schema": 1, "kiln": "1"}', encoding="utf-8")
    assert evidence.read(tmp_path, "twin") is None


def test_another_recipe_is_another_hash(toy_catalog: Path) -> None:
    loaded = catalog.load(toy_catalog)
    plans = [plan.make(loaded, variant=variant, arch="gfx942") for variant in ("mxfp8", "bf16")]
    assert len({evidence.recipe_sha256(each) for each in plans}) == 2


WAIVER = f"""\
target: {TARGET}
digest: {DIGEST}
tiers: [device]
reason: no GPU in CI yet
by: Ada
until: 2026-12-31
"""


def test_a_waiver_file_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "waiver.yaml"
    path.write_text(WAIVER, encoding="utf-8")
    assert waiver.read(path) == waiving("device", reason="no GPU in CI yet", until=dt.date(2026, 12, 31))
    path.write_text(WAIVER.replace("device", "devices").replace("by: Ada\n", "who: Ada\n"), encoding="utf-8")
    with pytest.raises(errors.BadInput) as caught:
        waiver.read(path)
    named = [line.split(": ")[1] for line in caught.value.message.splitlines()]
    assert named == ["tiers.0", "tiers", "by", "who"]


# the SLSA level

HOSTED = {"GITHUB_ACTIONS": "true", "RUNNER_ENVIRONMENT": "github-hosted"}


@pytest.mark.parametrize(
    ("environment", "keyless", "builder", "level"),
    [
        ({}, True, "", 1),
        (HOSTED, False, "", 1),
        (HOSTED, True, "", 2),
        (HOSTED, True, "farm", 1),
        (HOSTED | {"RUNNER_ENVIRONMENT": "self-hosted"}, True, "", 1),
    ],
)
def test_the_level_is_what_the_place_of_the_build_can_show(
    environment: dict[str, str], *, keyless: bool, builder: str, level: int
) -> None:
    assert slsa.level(environment, keyless=keyless, builder=builder).level == level
