"""What is in an image against what the catalog pins: each difference a finding, what has no pin said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kiln import catalog, errors, plan
from kiln.image import versions

if TYPE_CHECKING:
    from kiln.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
ROCM = {
    "vllm": "0.31.0+rocm723",
    "torch": "2.13.0+git733fca1",
    "torchvision": "0.28.0+9d7fd2f",
    "triton": "3.8.0+git669b31ac",
    "amd-aiter": "0.1.23",
    "amd-quark": "0.12.post1",
    "flydsl": "0.3.2",
}
CUDA = {
    "vllm": "0.31.0",
    "torch": "2.13.0+cu130",
    "torchvision": "0.28.0+cu130",
    "torchaudio": "2.11.0+cu130",
    "triton": "3.7.1",
    "flashinfer-python": "0.7.0.post1",
    "nvidia-cutlass-dsl": "4.7.1",
    "nvidia-nccl-cu13": "2.30.7",
}


def facts(kind: str, **changes: Any) -> versions.Facts:
    """Return the facts of an image of 0.31.0 that is as it is pinned, but for the changes."""
    found: dict[str, Any] = {
        "schema_version": 1,
        "python": "3.12.3",
        "distributions": ROCM if kind == "rocm" else CUDA,
        "installed_twice": [],
        "rocm": "7.2.3" if kind == "rocm" else "",
        "rocm_layout": "folder" if kind == "rocm" else "",
        "cuda": "13.0.3" if kind == "cuda" else "",
        "libc": "glibc 2.39",
        "system": "ubuntu 24.04",
        "gpu_arches": ["gfx942", "gfx950"] if kind == "rocm" else ["10.0", "9.0"],
        "requires": {},
    }
    return versions.parse(json.dumps(found | changes).encode())


@pytest.fixture(scope="module")
def plans() -> dict[str, Plan]:
    real = catalog.load(ROOT)
    arches = {"rocm": "gfx942", "cuda": "sm100"}
    return {kind: plan.make(real, variant="mxfp8", arch=arch) for kind, arch in arches.items()}


@pytest.mark.parametrize("kind", ["rocm", "cuda"])
def test_an_image_that_is_as_it_is_pinned(plans: dict[str, Plan], kind: str) -> None:
    found = versions.compare(plans[kind], facts(kind))
    assert found.findings == ()
    versions.require(plans[kind], facts(kind))


@pytest.mark.parametrize(
    ("kind", "name", "version", "problem"),
    [
        # the commit it is built from is a part of the pin
        (
            "rocm",
            "torch",
            "2.13.0+git0000000",
            "torch: is 2.13.0+git0000000, and the pin torch_reported is 2.13.0+git733fca1",
        ),
        ("rocm", "torch", "2.13.0", "torch: is 2.13.0, and the pin torch_reported is 2.13.0+git733fca1"),
        ("rocm", "triton", "3.8.0", "triton: is 3.8.0, and the pin triton_reported is 3.8.0+git669b31ac"),
        ("rocm", "amd-aiter", "0.1.22", "amd-aiter: is 0.1.22, and the pin aiter is v0.1.23"),
        ("rocm", "amd-quark", "0.11.2", "amd-quark: is 0.11.2, and the pin amd_quark is ==0.12.post1"),
        ("rocm", "amd-quark", "", "amd-quark: is not in the image, and the pin amd_quark is ==0.12.post1"),
        ("rocm", "vllm", "0.30.0+rocm723", "vllm: is 0.30.0+rocm723, and the release is 0.31.0"),
        ("cuda", "vllm", "", "vllm: is not in the image, and the release is 0.31.0"),
        ("cuda", "torch", "2.13.1+cu130", "torch: is 2.13.1+cu130, and the pin torch is 2.13.0"),
        ("cuda", "nvidia-nccl-cu13", "2.28.9", "nvidia-nccl-cu13: is 2.28.9, and the pin nccl is 2.30.7"),
        ("cuda", "flashinfer-python", "what", "flashinfer-python: is what, and the pin flashinfer is 0.7.0.post1"),
    ],
)
def test_another_version_is_a_finding(  # noqa: PLR0917
    plans: dict[str, Plan], kind: str, name: str, version: str, problem: str
) -> None:
    found = {**(ROCM if kind == "rocm" else CUDA), name: version}
    seen = facts(kind, distributions={each: text for each, text in found.items() if text})
    (finding,) = versions.compare(plans[kind], seen).findings
    assert f"{finding.where}: {finding.problem}" == problem


@pytest.mark.parametrize(
    ("kind", "changes", "problem"),
    [
        ("rocm", {"python": "3.13.1"}, "python: is 3.13.1, and the pin is 3.12.*"),
        ("rocm", {"rocm": "7.2.2"}, "rocm: is 7.2.2, and the pin is 7.2.3"),
        ("rocm", {"rocm": "", "rocm_layout": ""}, "rocm: is not in the image, and the pin is 7.2.3"),
        ("rocm", {"gpu_arches": ["gfx90a"]}, "gpu_arches: the image is built for gfx90a, and the target is gfx942"),
        ("rocm", {"installed_twice": ["triton"]}, "triton: is installed more than once"),
        ("cuda", {"cuda": "12.9.1"}, "cuda: is 12.9.1, and the pin is 13.0.3"),
        ("cuda", {"system": "ubuntu 22.04"}, "system: is ubuntu 22.04, and the pin is ubuntu 24.04"),
    ],
)
def test_another_system_is_a_finding(plans: dict[str, Plan], kind: str, changes: dict[str, Any], problem: str) -> None:
    (finding,) = versions.compare(plans[kind], facts(kind, **changes)).findings
    assert f"{finding.where}: {finding.problem}" == problem


def test_the_arch_may_carry_features_and_may_not_be_known(plans: dict[str, Plan]) -> None:
    for arches in (["gfx942:sramecc+:xnack-"], []):
        assert not versions.compare(plans["rocm"], facts("rocm", gpu_arches=arches)).findings


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ("flydsl==0.3.2", ""),
        ("torch>=2.13", ""),
        ("Amd_Quark", ""),
        ("numpy; python_version<'3.12'", ""),
        ("numpy; extra=='all'", ""),
        ("numpy>=2.0", "needs numpy>=2.0, and none is in the image"),
        ("numpy; python_version>='3.12'", "needs numpy, and none is in the image"),
        ("flydsl==0.2.0", "needs flydsl==0.2.0, and 0.3.2 is in the image"),
        ("a b c", "needs 'a b c', which is no requirement"),
    ],
)
def test_what_was_installed_needs_is_there(plans: dict[str, Plan], requirement: str, problem: str) -> None:
    seen = facts("rocm", requires={"amd-aiter": [requirement]})
    said = [f"{finding.where}: {finding.problem}" for finding in versions.compare(plans["rocm"], seen).findings]
    assert said == ([f"amd-aiter: {problem}"] if problem else [])


def test_all_differences_are_one_error(plans: dict[str, Plan]) -> None:
    wrong = facts("rocm", python="3.11.2", distributions=ROCM | {"torch": "2.12.0"})
    with pytest.raises(errors.Findings) as caught:
        versions.require(plans["rocm"], wrong)
    assert caught.value.exit_code == 6
    assert caught.value.message.splitlines() == [
        "minimax-m3-mxfp8-gfx942-0.31.0: the image is not what its pins say:",
        "python: is 3.11.2, and the pin is 3.12.*",
        "torch: is 2.12.0, and the pin torch_reported is 2.13.0+git733fca1",
    ]


def test_what_no_pin_names_is_recorded_and_not_compared() -> None:
    real = catalog.load(ROOT)
    old = plan.make(real, variant="bf16", arch="gfx942", release="0.24.0")
    found = {
        **ROCM,
        "vllm": "0.24.0",
        "torch": "2.11.0+gitd0c8b1f",
        "torchvision": "0.24.1",
        "amd-aiter": "0.1.13.post1",
        "flydsl": "0.1.4.2",
        "pytorch-triton-rocm": "3.6.0",
    }
    del found["triton"]
    compared = versions.compare(old, facts("rocm", distributions=found))
    assert compared == versions.Comparison(
        findings=(),
        recorded=("pytorch-triton-rocm 3.6.0 is in the image, and there is no pin triton_reported",),
    )
    newest = plan.make(real, variant="bf16", arch="gfx942", release="0.33.0")
    said = versions.compare(newest, facts("rocm")).recorded
    assert "torchvision 0.28.0+9d7fd2f is in the image, and the pin torchvision is wheel, no version" in said


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b'{"schema_version": 2}', b"\xff", b'{"distributions": {"torch": 1}}'],
    ids=str,
)
def test_facts_that_no_build_wrote_are_refused(data: bytes) -> None:
    with pytest.raises(errors.NotApplied, match=r"/opt/kiln/versions\.json: is not what a build writes"):
        versions.parse(data)
