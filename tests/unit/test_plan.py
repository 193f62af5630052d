from __future__ import annotations

import json
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kiln import catalog, errors, plan, report
from kiln.catalog import records

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiln.catalog import Catalog

    Edit = Callable[[str, str, str], None]

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/data/plan-mxfp8-gfx942-0.31.0.json"
ARCHES = ("gfx942", "gfx950", "sm90", "sm100", "sm103")
PRODUCTS = ("b200", "b300", "h100", "h200", "mi300x", "mi325x", "mi350x", "mi355x")
RELEASES = (
    *("0.24.0", "0.25.0", "0.25.1", "0.26.0", "0.27.0", "0.27.1"),
    *("0.28.0", "0.29.0", "0.30.0", "0.31.0", "0.32.0", "0.33.0"),
)
ALLOWED = {
    "bf16": {"gfx942", "gfx950", "sm90", "sm100", "sm103"},
    "mxfp8": {"gfx942", "gfx950", "sm90", "sm100", "sm103"},
    "mxfp8-block": {"gfx942"},
    "nvfp4": {"sm100", "sm103"},
    "mxfp4": {"gfx950"},
}
PIN, STREAM = "gfx942-index-topk-pin", "m3-stream-first-delta"


@pytest.fixture(scope="module")
def real() -> Catalog:
    return catalog.load(ROOT)


def refusal(real: Catalog, **asked: str) -> errors.BadInput:
    with pytest.raises(errors.BadInput) as caught:
        plan.make(real, **{"variant": "mxfp8", "arch": "gfx942", **asked})
    assert caught.value.exit_code == 2
    return caught.value


def test_the_whole_plan_of_one_target(real: Catalog) -> None:
    found: dict[str, Any] = json.loads(
        report.as_json(plan.make(real, variant="mxfp8", arch="gfx942", release="0.31.0").as_data())
    )
    twin = real.releases.releases["0.31.0"].twin
    assert twin is not None
    addresses = {"wheel": {"index"}, "torch": {"index"}}
    assert found.pop("twin") == twin.model_dump(mode="json", exclude=addresses)
    assert found == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_a_plan_needs_nothing_but_the_catalog(real: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, no child, no file: the same plan twice, the second time with all of them out of reach."""
    first = plan.make(real, variant="mxfp8", arch="gfx942")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a plan does no I/O")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.setattr(subprocess, "Popen", refused)
    monkeypatch.setattr(Path, "open", refused)
    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("os.environ", {})
    assert plan.make(real, variant="mxfp8", arch="gfx942") == first


def test_the_default_release_and_model(real: Catalog) -> None:
    explicit = plan.make(real, variant="mxfp8", arch="gfx942", release="0.31.0", model="MiniMaxAI/MiniMax-M3")
    assert plan.make(real, variant="mxfp8", arch="gfx942") == explicit


# hardware


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("variant", ALLOWED)
def test_which_variant_runs_on_which_arch(real: Catalog, variant: str, arch: str) -> None:
    if arch in ALLOWED[variant]:
        release = "0.24.0" if variant == "mxfp8-block" else "0.31.0"
        assert plan.make(real, variant=variant, arch=arch, release=release).target.arch == arch
    else:
        message = refusal(real, variant=variant, arch=arch).message
        assert message.startswith(f"{variant} cannot run on {arch}; it runs on: ")
        assert {part.split(" ")[0] for part in message.split(": ")[1].split("; ")} == ALLOWED[variant]


def test_possible_is_exactly_what_is_allowed(real: Catalog) -> None:
    expected = {
        ("MiniMaxAI/MiniMax-M3", variant, arch, release)
        for variant, arches in ALLOWED.items()
        for arch in arches
        for release in RELEASES
    }
    found = list(plan.possible(real))
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_refusal_names_the_arches_and_products_that_can(real: Catalog) -> None:
    message = refusal(real, variant="nvfp4", arch="gfx942").message
    assert message == "nvfp4 cannot run on gfx942; it runs on: sm100 (b200); sm103 (b300)"
    message = refusal(real, variant="mxfp4", arch="b200").message
    assert message == "mxfp4 cannot run on b200; it runs on: gfx950 (mi350x, mi355x)"


def test_a_product_of_a_right_arch_that_is_too_small_is_refused(real: Catalog) -> None:
    message = refusal(real, variant="bf16", arch="h100").message
    assert message == (
        "bf16 cannot run on h100; it runs on: gfx942 (mi300x, mi325x); gfx950 (mi350x, mi355x); sm90 (h200); "
        "sm100 (b200); sm103 (b300)"
    )


def test_a_product_whose_host_no_image_is_for_is_refused(real: Catalog) -> None:
    for product in ("gb200", "gb300"):
        assert refusal(real, variant="nvfp4", arch=product).message == (
            f"nvfp4 on {product} needs a linux/arm64 image, and all are linux/amd64; "
            "it runs on: sm100 (b200); sm103 (b300)"
        )


def test_a_product_stands_for_its_arch(real: Catalog) -> None:
    assert plan.make(real, variant="mxfp8", arch="mi300x") == plan.make(real, variant="mxfp8", arch="gfx942")
    mi325x = plan.make(real, variant="mxfp8", arch="mi325x")
    assert (mi325x.target.arch, mi325x.target.product) == ("gfx942", "mi325x")
    assert mi325x.target.slug == "minimax-m3-mxfp8-gfx942-0.31.0"


def test_a_product_does_not_get_what_is_for_another(real: Catalog) -> None:
    found = plan.make(real, variant="mxfp8", arch="mi325x")
    assert {flag.origin for flag in found.serve.flags} | {item.origin for item in found.serve.env} == {
        "model",
        "variants.mxfp8",
        "strategy.single_node_tp",
        "hardware_overrides.amd",
        "features.tool_calling",
        "features.reasoning",
    }


# names


def test_all_unknown_names_are_listed_at_once(real: Catalog) -> None:
    error = refusal(real, variant="mxfp88", arch="gfx94", release="0.31")
    assert error.message.splitlines() == [
        "unknown variant 'mxfp88'; did you mean 'mxfp8'?",
        "unknown arch 'gfx94'; did you mean 'gfx942'?",
        "unknown release '0.31'; did you mean '0.31.0'?",
    ]
    assert error.hint == "see what there is: ./inv plan --list"


def test_an_unknown_model_is_named(real: Catalog) -> None:
    assert refusal(real, model="MiniMax-M3").message == (
        "unknown model 'MiniMax-M3'; did you mean 'MiniMaxAI/MiniMax-M3'?"
    )


def test_missing_names_are_asked_for(real: Catalog) -> None:
    assert refusal(real, variant="", arch="").message.splitlines() == [
        "--variant is missing; known: bf16, mxfp8, mxfp8-block, nvfp4, mxfp4",
        f"--arch is missing; known: {', '.join(ARCHES)}, or a product: {', '.join(PRODUCTS)}",
    ]


def test_a_release_older_than_the_model_is_refused(catalog_copy: Path, edit: Edit) -> None:
    edit("recipes/MiniMaxAI/MiniMax-M3.yaml", "min_vllm_version: 0.24.0", "min_vllm_version: 0.30.0")
    edited = catalog.load(catalog_copy)
    message = refusal(edited, release="0.24.0").message
    assert message == "MiniMaxAI/MiniMax-M3 needs vLLM 0.30.0 or newer, not 0.24.0"
    assert {release for *_, release in plan.possible(edited)} == {*RELEASES[8:]}


# series


def test_the_series_of_every_target(real: Catalog) -> None:
    """What every target is patched with, or why it is refused, as one file to read through."""
    found: dict[str, str] = {}
    for model, variant, arch, release in plan.possible(real):
        at = {"model": model, "variant": variant, "arch": arch, "release": release}
        refused = [f"refused: {problem}" for problem in plan.refusals(real, **at)]
        found[f"{variant} {arch} {release}"] = ", ".join(refused or [use.id for use in plan.make(real, **at).series])
    assert found == json.loads((ROOT / "tests/data/series.json").read_text(encoding="utf-8"))


def test_speculative_decoding_changes_how_a_target_is_served_and_not_its_series(real: Catalog) -> None:
    """A patch is bound to model, variant, arch and release: a launch script for MTP (EAGLE3) cannot miss one."""
    assert set(records.Applies.model_fields) == {"models", "variants", "arches", "releases"}
    words = ("--speculative-config", '{"method": "eagle3", "num_speculative_tokens": 3}')
    for model, variant, arch, release in plan.possible(real):
        plain = real.recipes[model]
        features = plain.features | {"spec_decoding": records.Feature(description="EAGLE3", args=words)}
        with_draft = replace(real, recipes={model: plain.model_copy(update={"features": features})})
        if not list(plan.refusals(real, model=model, variant=variant, arch=arch, release=release)):
            asked = {"variant": variant, "arch": arch, "release": release, "model": model}
            without, speculating = plan.make(real, **asked), plan.make(with_draft, **asked)
            assert speculating.series == without.series
            assert speculating.image == without.image
            assert "--speculative-config" in speculating.serve.argv
            assert "--speculative-config" not in without.serve.argv


def test_the_order_is_the_seriess(two_patches: Path) -> None:
    (two_patches / "patches/series.yaml").write_text(f"order: [{STREAM}, {PIN}]\n", encoding="utf-8")
    found = plan.make(catalog.load(two_patches), variant="mxfp8", arch="gfx942")
    assert [use.id for use in found.series] == [STREAM, PIN]


def test_a_patch_can_be_for_some_variants_only(two_patches: Path, edit: Edit) -> None:
    edit(f"patches/{PIN}/patch.yaml", "  arches: [gfx942]", "  arches: [gfx942]\n  variants: [bf16]")
    edited = catalog.load(two_patches)
    assert [use.id for use in plan.make(edited, variant="mxfp8", arch="gfx942").series] == [STREAM]
    assert [use.id for use in plan.make(edited, variant="bf16", arch="gfx942").series] == [PIN, STREAM]


def test_everything_that_keeps_a_target_from_being_made_is_listed_at_once(two_patches: Path) -> None:
    loaded = catalog.load(two_patches)
    stream, pin = loaded.patches[STREAM], loaded.patches[PIN]
    kept = {release: edition for release, edition in stream.editions.items() if release != "0.31.0"}
    unmet = {"conflicts": (STREAM,), "preconditions": {"aiter": ">=0.1.99", "flashinfer": ">=1"}}
    patches = {STREAM: stream.model_copy(update={"editions": kept}), PIN: pin.model_copy(update=unmet)}
    error = refusal(replace(loaded, patches=patches), release="0.31.0")
    at = "minimax-m3-mxfp8-gfx942-0.31.0: patches"
    assert error.message.splitlines() == [
        f"{at}/{PIN}: conflicts with {STREAM}, and the series needs both",
        f"{at}/{PIN}: needs aiter >=0.1.99, and the image of 0.31.0 has v0.1.23",
        f"{at}/{PIN}: needs flashinfer >=1, and the image of 0.31.0 has none",
        f"{at}/{STREAM}: needed on 0.31.0, and has no edition for it; editions: {', '.join(kept)}",
    ]
    assert (
        error.hint
        == "see what can be: ./inv plan --list --variant mxfp8; why: ./inv patch.explain gfx942-index-topk-pin"
    )


def test_a_precondition_on_a_pin_that_no_image_has_is_named(two_patches: Path, edit: Edit) -> None:
    edit(f"patches/{PIN}/patch.yaml", "probe:", 'preconditions: {aitre: ">=1"}\nprobe:')
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(two_patches)
    said = f"patches/{PIN}/patch.yaml: preconditions: unknown pin 'aitre'; did you mean 'aiter'?"
    assert caught.value.message == said


# image


def test_the_image_is_named_by_the_digest_of_its_manifest(real: Catalog) -> None:
    image = plan.make(real, variant="nvfp4", arch="b200", release="0.31.0").image
    assert image == plan.Image(
        kind="cuda",
        repository="docker.io/vllm/vllm-openai",
        tag="v0.31.0",
        digest="sha256:a4a4c0437bf7240089da5f08aa370c4aee17ae5290f7a3b468825ee26c4c3a6b",
        confidence="A",
        verified=False,
    )
    assert image.reference == f"docker.io/vllm/vllm-openai@{image.digest}"


@pytest.mark.parametrize("arch", ["gfx942", "sm100"])
def test_a_release_without_a_digest_says_so(real: Catalog, arch: str) -> None:
    image = plan.make(real, variant="mxfp8", arch=arch, release="0.33.0").image
    assert (image.digest, image.confidence, image.verified) == (None, None, False)
    assert image.reference.endswith(":v0.33.0")


def test_a_release_without_a_twin_says_why(real: Catalog) -> None:
    found = plan.make(real, variant="mxfp8", arch="gfx942", release="0.33.0")
    assert (found.twin, found.no_twin_because) == (None, "no CPU wheel of this release has been published yet")
