from __future__ import annotations

from typing import Any

import pytest

from kiln import recipe
from kiln.catalog import records
from kiln.recipe import EnvVar, Flag

ARCH = records.Arch(
    vendor="amd",
    generation="cdna",
    products={
        "big": records.Product(name="Big", gpus=8, vram_gb=1600),
        "small": records.Product(name="Small", gpus=4, vram_gb=400),
    },
)
TP = "strategy.single_node_tp"


def made(*, variant: dict[str, Any] | None = None, **rest: Any) -> records.Recipe:
    base: dict[str, Any] = {
        "meta": {"title": "t", "slug": "s", "provider": "p", "description": "d"},
        "model": {"model_id": "org/model", "min_vllm_version": "0.1"},
        "features": {},
        "variants": {
            "v": {"precision": "fp8", "vram_minimum_gb": 300, "description": "d", "supported_hardware": ("big",)}
            | (variant or {})
        },
    }
    return records.Recipe.model_validate(base | rest)


def resolved(recipe_: records.Recipe, product: str = "big", release: str = "0.31.0") -> recipe.Serve:
    return recipe.resolve(recipe_, "v", (ARCH, product), release)


def test_a_flag_is_left_out_where_the_release_does_not_take_it_yet() -> None:
    new = made(variant={"extra_args": ("--new", "1", "--old")}, args_since={"--new": "0.31.0"})
    assert [flag.name for flag in resolved(new).flags] == ["--new", "--old", "--tensor-parallel-size"]
    assert resolved(new).left_out == ()
    older = resolved(new, release="0.30.0")
    assert [flag.name for flag in older.flags] == ["--old", "--tensor-parallel-size"]
    assert older.left_out == (Flag(name="--new", value="1", origin="variants.v"),)


def test_layers_go_from_weak_to_strong_and_keep_their_origin() -> None:
    """Every layer sets --own-NAME and the shared --k; the last one of --k wins at its own place."""

    def layer(name: str) -> dict[str, Any]:
        return {"extra_args": ("--k", name, f"--own-{name}"), "extra_env": {"K": name, f"OWN_{name}": "1"}}

    found = resolved(
        made(
            model={
                "model_id": "org/model",
                "min_vllm_version": "0.1",
                "base_args": ("--k", "base", "--own-base"),
                "base_env": {"K": "base", "OWN_base": "1"},
            },
            variant=layer("variant") | {"hardware_overrides": {"big": layer("exact"), "cdna": layer("vgen")}},
            hardware_overrides={"cdna": layer("gen"), "amd": layer("unused")},
            features={"f": {"description": "d", "args": ("--k", "feature")}},
        )
    )
    overrides = "variants.v.hardware_overrides"
    assert found.flags == (
        Flag(name="--own-base", value=None, origin="model"),
        Flag(name="--own-variant", value=None, origin="variants.v"),
        Flag(name="--own-exact", value=None, origin=f"{overrides}.big"),
        Flag(name="--tensor-parallel-size", value="8", origin=TP),
        Flag(name="--own-gen", value=None, origin="hardware_overrides.cdna"),
        Flag(name="--own-vgen", value=None, origin=f"{overrides}.cdna"),
        Flag(name="--k", value="feature", origin="features.f"),
    )
    assert found.env == (
        EnvVar(name="K", value="vgen", origin=f"{overrides}.cdna"),
        EnvVar(name="OWN_base", value="1", origin="model"),
        EnvVar(name="OWN_variant", value="1", origin="variants.v"),
        EnvVar(name="OWN_exact", value="1", origin=f"{overrides}.big"),
        EnvVar(name="OWN_gen", value="1", origin="hardware_overrides.cdna"),
        EnvVar(name="OWN_vgen", value="1", origin=f"{overrides}.cdna"),
    )


def test_the_vendor_layer_is_used_where_the_generation_has_none() -> None:
    found = resolved(made(hardware_overrides={"amd": {"extra_args": ("--amd",)}, "nvidia": {"extra_args": ("--no",)}}))
    assert [flag.name for flag in found.flags] == ["--tensor-parallel-size", "--amd"]


def test_an_override_of_another_product_is_not_used() -> None:
    found = resolved(made(variant={"hardware_overrides": {"small": {"extra_args": ("--small",)}}}))
    assert [flag.name for flag in found.flags] == ["--tensor-parallel-size"]


def test_the_last_of_a_repeated_flag_stays_at_its_last_place_with_its_own_value() -> None:
    args = ("--a", "1", "--b", "--a", "2", "--c", "x", "--b", "y")
    found = resolved(made(variant={"extra_args": args}))
    assert [flag.words for flag in found.flags] == [
        ("--a", "2"),
        ("--c", "x"),
        ("--b", "y"),
        ("--tensor-parallel-size", "8"),
    ]


def test_a_flag_that_loses_its_value_stays_without() -> None:
    found = resolved(made(variant={"extra_args": ("--a", "9", "--b", "1", "--a")}))
    assert [flag.words for flag in found.flags][:2] == [("--b", "1"), ("--a",)]


@pytest.mark.parametrize(
    ("tp", "vram_minimum_gb", "product", "expected"),
    [
        (None, 200, "big", "1"),  # fits one GPU of 200 GB exactly
        (None, 201, "big", "8"),
        (None, 101, "small", "4"),
        (None, 1, "small", "1"),
        (2, 201, "big", "2"),
        (8, 1, "small", "4"),  # never more than the node has
    ],
)
def test_tensor_parallel_size(tp: int | None, vram_minimum_gb: int, product: str, expected: str) -> None:
    found = resolved(made(variant={"tp": tp, "vram_minimum_gb": vram_minimum_gb}), product)
    assert found.flags == (Flag(name="--tensor-parallel-size", value=expected, origin=TP),)


def test_opt_in_features_are_left_out() -> None:
    features = {name: {"description": "d", "args": (f"--{name}",)} for name in ("one", "two")}
    found = resolved(made(features=features, opt_in_features=("one",)))
    assert [flag.name for flag in found.flags] == ["--tensor-parallel-size", "--two"]


def test_the_variants_checkpoint_is_served_where_it_has_one() -> None:
    assert resolved(made()).model_id == "org/model"
    assert resolved(made(variant={"model_id": "org/model-fp8"})).model_id == "org/model-fp8"


def test_argv_and_text() -> None:
    found = resolved(made(variant={"extra_args": ("--config", '{"a": 1}', "--switch")}))
    assert found.argv == (
        "vllm",
        "serve",
        "org/model",
        "--config",
        '{"a": 1}',
        "--switch",
        "--tensor-parallel-size",
        "8",
    )
    assert found.text == (
        "vllm serve org/model \\\n  --config '{\"a\": 1}' \\\n  --switch \\\n  --tensor-parallel-size 8"
    )


def test_a_twin_serves_with_the_flags_that_need_no_gpu() -> None:
    args = ("--block-size", "128", "--tool-call-parser", "p", "--enable-auto-tool-choice", "--reasoning-parser", "r")
    found = resolved(made(variant={"extra_args": args}))
    assert [flag.words for flag in found.twin_flags] == [
        ("--tool-call-parser", "p"),
        ("--enable-auto-tool-choice",),
        ("--reasoning-parser", "r"),
    ]
