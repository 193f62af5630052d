from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Edit = Callable[[str, str, str], None]

RELEASES = "images/releases.yaml"
SERIES = "patches/series.yaml"
PIN = "patches/gfx942-index-topk-pin/patch.yaml"
STREAM = "patches/m3-stream-first-delta/patch.yaml"
RECIPE = "recipes/MiniMaxAI/MiniMax-M3.yaml"
MI300X = "arches.gfx942.products.mi300x"
INDEX = "releases.0.24.0.cuda.image.index"
FILES = "editions.0.24.0.files"
PATH = "^[A-Za-z0-9_+.-][A-Za-z0-9_+./-]*$"
PATTERN = "String should match pattern '{}'"
STATUSES = "'not-reported', 'open', 'merged', 'declined' or 'withdrawn'"
PIN_SHA256 = "b763dd4d44c92b9e1800aba736c3f7535a6dc6d9f350fb33010f891b7352f571"
INDEX_SHA256 = "251eba5cc7c12fed0b75da22a9240e582b1c9e39f6fbc064f86781b963bd814f"
OVERRIDES = "variants.mxfp8.hardware_overrides"
DELTA = "m3-stream-first-delta"


def refusal(root: Path) -> str:
    with pytest.raises(errors.BadInput) as caught:
        catalog.load(root)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_the_real_catalog_loads(catalog_copy: Path) -> None:
    found = catalog.load(catalog_copy)
    assert (found.root, found.state) == (catalog_copy, catalog_copy / ".kiln")
    assert list(found.patches) == sorted(found.order)
    assert list(found.recipes) == ["MiniMaxAI/MiniMax-M3"]
    assert found.releases.default_release in found.releases.releases
    assert found.config.mirrors == {}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (PIN, "drop_when:", "dropp_when:", "dropp_when: unknown key 'dropp_when'; did you mean 'drop_when'?"),
        (
            RELEASES,
            "    vendor: amd",
            "    vendr: amd",
            "arches.gfx942.vendr: unknown key 'vendr'; did you mean 'vendor'?",
        ),
        (PIN, "title: One index top-k tile on gfx942", "title: 5", "title: Input should be a valid string (found 5)"),
        (
            PIN,
            "title: One index top-k tile on gfx942",
            "title: ''",
            'title: String should have at least 1 character (found "")',
        ),
        (RELEASES, "gpus: 8", 'gpus: "8"', f'{MI300X}.gpus: Input should be a valid integer (found "8")'),
        (RELEASES, "gpus: 8", "gpus: 0", f"{MI300X}.gpus: Input should be greater than or equal to 1 (found 0)"),
        (
            RELEASES,
            "aiter_use_system_triton: false",
            "aiter_use_system_triton: no",
            'releases.0.24.0.rocm.aiter_use_system_triton: Input should be a valid boolean (found "no")',
        ),
        (
            RELEASES,
            ", confidence: A",
            ", confidence: D",
            f"{INDEX}.confidence: Input should be 'A', 'B' or 'C' (found \"D\")",
        ),
        (RELEASES, '"2026-06-30"', "5", "releases.0.24.0.date: Input should be a valid string (found 5)"),
        (
            PIN,
            f"sha256: {PIN_SHA256}",
            f"sha256: {PIN_SHA256.upper()}",
            f'editions.0.24.0.sha256: {PATTERN.format("^[0-9a-f]{64}$")} (found "{PIN_SHA256.upper()}")',
        ),
        (
            RELEASES,
            f"sha256:{INDEX_SHA256}",
            "sha256:0",
            f'{INDEX}.digest: {PATTERN.format("^sha256:[0-9a-f]{64}$")} (found "sha256:0")',
        ),
        (
            PIN,
            "      vllm/models/minimax_m3/common/ops/",
            "      vllm/../x/",
            f'{FILES}.vllm/../x/index_topk.py.[key]: Value error, leaves its folder (found "vllm/../x/index_topk.py")',
        ),
        (
            PIN,
            "      vllm/models/minimax_m3/common/ops/",
            "      /etc/",
            f'{FILES}./etc/index_topk.py.[key]: {PATTERN.format(PATH)} (found "/etc/index_topk.py")',
        ),
        (
            RELEASES,
            "requirements: images/twin/",
            "requirements: images/../twin/",
            'releases.0.31.0.twin.requirements: Value error, leaves its folder (found "images/../twin/0.31.0.lock")',
        ),
        (
            PIN,
            '">=0.24.0"',
            '"0.24.0"',
            "applies.releases: Value error, Invalid specifier: '0.24.0' (found \"0.24.0\")",
        ),
        (
            RELEASES,
            "default_release: 0.31.0",
            "default_release: latest",
            "default_release: Value error, Invalid version: 'latest' (found \"latest\")",
        ),
        (PIN, "status: not-reported", "status: no", f'upstream.status: Input should be {STATUSES} (found "no")'),
    ],
)
def test_a_wrong_value_is_named_with_its_path(  # noqa: PLR0913, PLR0917
    catalog_copy: Path, edit: Edit, file: str, old: str, new: str, message: str
) -> None:
    edit(file, old, new)
    lines = refusal(catalog_copy).splitlines()
    assert f"{file}: {message}" in lines


def test_a_missing_key_is_named(catalog_copy: Path, edit: Edit) -> None:
    edit(PIN, "title: One index top-k tile on gfx942\n", "")
    assert refusal(catalog_copy) == f"{PIN}: title: missing"


def test_a_file_that_is_no_mapping_is_named(catalog_copy: Path) -> None:
    (catalog_copy / SERIES).write_text("- order\n", encoding="utf-8")
    assert refusal(catalog_copy) == f'{SERIES}: Input should be an object (found ["order"])'


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
@pytest.mark.parametrize("file", [RELEASES, SERIES, PIN, RECIPE])
def test_an_empty_file_is_named(catalog_copy: Path, file: str, text: str) -> None:
    (catalog_copy / file).write_text(text, encoding="utf-8")
    assert refusal(catalog_copy) == f"{file}: is empty"


def test_a_key_given_twice_is_named_with_its_line(catalog_copy: Path, edit: Edit) -> None:
    edit(SERIES, "order:\n", "order: []\norder:\n")
    assert refusal(catalog_copy) == f"{SERIES}:3:1: key 'order' is given twice"


def test_problems_of_all_files_are_listed_at_once(catalog_copy: Path, edit: Edit) -> None:
    edit(RELEASES, "gpus: 8", "gpus: eight")
    edit(RELEASES, "vram_gb: 1536", "vram_gb: 0")
    edit(SERIES, "order:", "ordr:")
    edit(PIN, "title: ", "titel: ")
    edit(RECIPE, "slug: minimax-m3", "slug: [MiniMax")
    assert refusal(catalog_copy).splitlines() == [
        f'{RELEASES}: {MI300X}.gpus: Input should be a valid integer (found "eight")',
        f"{RELEASES}: {MI300X}.vram_gb: Input should be greater than or equal to 1 (found 0)",
        f"{SERIES}: order: missing",
        f"{SERIES}: ordr: unknown key 'ordr'; did you mean 'order'?",
        f"{PIN}: title: missing",
        f"{PIN}: titel: unknown key 'titel'; did you mean 'title'?",
        f"{RECIPE}:5:11: did not find expected ',' or ']'",
    ]


@pytest.mark.parametrize("file", [RELEASES, SERIES])
def test_a_missing_file_is_named(catalog_copy: Path, file: str) -> None:
    (catalog_copy / file).unlink()
    assert refusal(catalog_copy) == f"{file}: cannot be read: No such file or directory"


TWIN_FILES = [f"images/twin/{name}" for name in ("Dockerfile", "rename.py", "slim.py")]
BASE_FILES = [f"images/twin/base/{name}" for name in ("packages.txt", "builder.txt", "finish.sh")]
DOCKERFILES = ["images/rocm/Dockerfile", "images/cuda/Dockerfile"]
LOCK = "images/twin/0.31.0.lock"


def test_every_file_that_a_build_would_miss_is_named_at_once(catalog_copy: Path, edit: Edit) -> None:
    edit(SERIES, "order:\n", "order:\n  - m3-stream-first-delta\n")
    files = [*DOCKERFILES, *TWIN_FILES, *BASE_FILES]
    for file in (*files, LOCK):
        (catalog_copy / file).unlink()
    twice = f"{SERIES}: a patch is listed twice"
    missing = [f"{file}: is missing" for file in files]
    lock = f"releases.0.31.0.twin.requirements: {LOCK} is missing; make it: ./inv lock.twin --release 0.31.0"
    assert refusal(catalog_copy).splitlines() == [twice, *missing, f"{RELEASES}: {lock}"]


def test_who_makes_a_lock_can_do_without_it(catalog_copy: Path) -> None:
    (catalog_copy / LOCK).unlink()
    assert catalog.load(catalog_copy, locked=False).releases.releases["0.31.0"].twin


def test_only_what_a_release_needs_must_be_there(catalog_copy: Path, edit: Edit, relock: Callable[[], None]) -> None:
    shutil.rmtree(catalog_copy / "images/twin/base")
    edit(RELEASES, "base: debian", "base: {repository: docker.io/library/python, tag: '3.11'}")
    relock()
    assert catalog.load(catalog_copy).releases.releases["0.31.0"].twin
    text = (catalog_copy / RELEASES).read_text(encoding="utf-8")
    start = text.index("    twin:\n")
    end = text.index("\n\n", start)
    (catalog_copy / RELEASES).write_text(text[:start] + "    no_twin_because: none" + text[end:], encoding="utf-8")
    shutil.rmtree(catalog_copy / "images/twin")
    relock()
    assert not catalog.load(catalog_copy).releases.releases["0.31.0"].twin


def test_a_catalog_without_recipes_says_so(catalog_copy: Path) -> None:
    shutil.rmtree(catalog_copy / "recipes")
    assert refusal(catalog_copy) == "recipes/: holds no ORGANISATION/MODEL.yaml"


def test_an_unknown_model_hides_nothing_else(catalog_copy: Path, edit: Edit) -> None:
    edit(PIN, "models: [MiniMaxAI/MiniMax-M3]", "models: [x]\n  variants: [mxpf8]")
    edit(PIN, "arches: [gfx942]", "arches: [gfx92]")
    assert refusal(catalog_copy).splitlines() == [
        f"{PIN}: unknown arch 'gfx92'; did you mean 'gfx942'?",
        f"{PIN}: unknown model 'x'; known: MiniMaxAI/MiniMax-M3",
        f"{PIN}: unknown variant 'mxpf8'; did you mean 'mxfp8'?",
    ]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            SERIES,
            "first-delta",
            "first-dleta",
            f"{SERIES}: unknown patch 'm3-stream-first-dleta'; did you mean '{DELTA}'?\n{STREAM}: not listed in",
        ),
        (SERIES, "  - m3-stream-first-delta\n", "", f"{STREAM}: not listed in {SERIES}"),
        (SERIES, "order:\n", "order:\n  - m3-stream-first-delta\n", f"{SERIES}: a patch is listed twice"),
        (
            RELEASES,
            "default_release: 0.31.0",
            "default_release: 0.31.1",
            f"{RELEASES}: default_release: unknown release '0.31.1'; did you mean '0.31.0'?",
        ),
        (
            PIN,
            "arches: [gfx942]",
            "arches: [gfx92, sm9]",
            f"{PIN}: unknown arch 'gfx92'; did you mean 'gfx942'?\n{PIN}: unknown arch 'sm9'; did you mean",
        ),
        (
            PIN,
            "models: [MiniMaxAI/MiniMax-M3]",
            "models: [MiniMax-M3]",
            f"{PIN}: unknown model 'MiniMax-M3'; did you mean 'MiniMaxAI/MiniMax-M3'?",
        ),
        (
            PIN,
            "  arches: [gfx942]",
            "  arches: [gfx942]\n  variants: [mxpf8]",
            f"{PIN}: unknown variant 'mxpf8'; did you mean 'mxfp8'?",
        ),
        (
            PIN,
            "id: gfx942-index-topk-pin",
            "id: m3-stream-first-delta",
            f"{PIN}: id: 'm3-stream-first-delta' is not the name of its folder",
        ),
        (
            RECIPE,
            "supported_hardware: [mi350x, mi355x]",
            "supported_hardware: [mi350x, mi35x]",
            f"{RECIPE}: variants.mxfp4: unknown product 'mi35x'; did you mean 'mi355x'?",
        ),
        (
            RECIPE,
            "      mi300x:\n",
            "      mi300:\n",
            f"{RECIPE}: {OVERRIDES}: unknown product or generation 'mi300'; did you mean 'mi300x'?",
        ),
        (
            RECIPE,
            "\n  amd:\n",
            "\n  amdd:\n",
            f"{RECIPE}: hardware_overrides: unknown generation 'amdd'; did you mean 'amd'?",
        ),
        (
            RECIPE,
            "--attention_config.minimax_m3_msa_decode_backend: 0.27.0",
            "--attention_config.minimax_m3_decode_backend: 0.27.0",
            (
                f"{RECIPE}: args_since: unknown flag '--attention_config.minimax_m3_decode_backend'; "
                "did you mean '--attention_config.minimax_m3_msa_decode_backend'?"
            ),
        ),
        (
            RECIPE,
            "opt_in_features: [text_only]",
            "opt_in_features: [text-only]",
            f"{RECIPE}: opt_in_features: unknown feature 'text-only'; did you mean 'text_only'?",
        ),
    ],
)
def test_names_that_other_files_must_know(  # noqa: PLR0913, PLR0917
    catalog_copy: Path, edit: Edit, file: str, old: str, new: str, message: str
) -> None:
    edit(file, old, new)
    assert message in refusal(catalog_copy)


def test_an_edition_without_its_file_is_named(catalog_copy: Path) -> None:
    edition = "patches/gfx942-index-topk-pin/0.31.0.patch"
    (catalog_copy / edition).unlink()
    assert refusal(catalog_copy) == f"{PIN}: edition 0.31.0: {edition} is missing"


def test_an_edition_for_an_unknown_release_is_named(catalog_copy: Path, edit: Edit) -> None:
    edit(PIN, "  0.24.0:", "  0.24.1:")
    assert refusal(catalog_copy).splitlines() == [
        f"{PIN}: unknown release '0.24.1'; did you mean '0.27.1'?",
        f"{PIN}: edition 0.24.1: patches/gfx942-index-topk-pin/0.24.1.patch is missing",
    ]


def test_a_copied_folder_does_not_replace_the_patch_it_was_copied_from(catalog_copy: Path) -> None:
    shutil.copytree(catalog_copy / "patches/m3-stream-first-delta", catalog_copy / "patches/copied")
    assert refusal(catalog_copy).splitlines() == [
        f"patches/copied/patch.yaml: not listed in {SERIES}",
        "patches/copied/patch.yaml: id: 'm3-stream-first-delta' is not the name of its folder",
    ]


def test_two_recipes_for_one_model_are_refused(catalog_copy: Path) -> None:
    shutil.copy(catalog_copy / RECIPE, catalog_copy / "recipes/MiniMaxAI/Copy.yaml")
    assert refusal(catalog_copy) == "recipes/: two recipes are for MiniMaxAI/MiniMax-M3"


# kiln.yaml


def test_the_longest_mirror_prefix_wins(catalog_copy: Path) -> None:
    (catalog_copy / "kiln.yaml").write_text(
        "mirrors:\n"
        "  docker.io/: mirror.example/hub/\n"
        "  docker.io/vllm/: mirror.example/vllm/\n"
        "  docker.io/vllm/vllm-openai-rocm: rocm.example/image\n",
        encoding="utf-8",
    )
    mirrored = catalog.load(catalog_copy).mirrored
    assert [
        mirrored(f"{name}@sha256:0")
        for name in (
            "docker.io/library/debian",
            "docker.io/vllm/vllm-openai",
            "docker.io/vllm/vllm-openai-rocm",
            "x.io/a",
        )
    ] == [
        "mirror.example/hub/library/debian@sha256:0",
        "mirror.example/vllm/vllm-openai@sha256:0",
        "rocm.example/image@sha256:0",
        "x.io/a@sha256:0",
    ]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("docker.io/vllm", "m"),
        ("docker.io/vllm/vllm-openai:v1", "m/vllm-openai:v1"),
        ("docker.io/vllm:v1", "m:v1"),
        ("docker.io/vllm@sha256:0", "m@sha256:0"),
        ("docker.io/vllm-project/x", "docker.io/vllm-project/x"),
        ("docker.io/vllmx", "docker.io/vllmx"),
        ("hub/x:1", "h/x:1"),
        ("hub:5000/x:1", "hub:5000/x:1"),
        ("x.io/a", "x.io/a"),
    ],
)
def test_a_mirror_prefix_is_whole_parts(catalog_copy: Path, reference: str, expected: str) -> None:
    (catalog_copy / "kiln.yaml").write_text("mirrors: {docker.io/vllm: m/, hub/: h}\n", encoding="utf-8")
    assert catalog.load(catalog_copy).mirrored(reference) == expected


@pytest.mark.parametrize("text", ["", "# mirrors: none yet\n"])
def test_an_empty_kiln_yaml_is_no_configuration(catalog_copy: Path, text: str) -> None:
    (catalog_copy / "kiln.yaml").write_text(text, encoding="utf-8")
    assert catalog.load(catalog_copy).config.mirrors == {}


def test_a_wrong_kiln_yaml_is_named(catalog_copy: Path) -> None:
    (catalog_copy / "kiln.yaml").write_text("mirror: {a: b}\n", encoding="utf-8")
    assert refusal(catalog_copy) == "kiln.yaml: mirror: unknown key 'mirror'; did you mean 'mirrors'?"


def test_kiln_config_names_another_file(catalog_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (catalog_copy / "kiln.yaml").write_text("mirrors: {a: b}\n", encoding="utf-8")
    other = tmp_path / "other.yaml"
    other.write_text("mirrors: {c: d}\n", encoding="utf-8")
    monkeypatch.setenv("KILN_CONFIG", str(other))
    assert catalog.load(catalog_copy).config.mirrors == {"c": "d"}
    other.unlink()
    assert refusal(catalog_copy) == f"{other}: cannot be read: No such file or directory"


def test_kiln_home_moves_the_state(catalog_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KILN_HOME", str(tmp_path / "home"))
    assert catalog.load(catalog_copy).state == tmp_path / "home"
    assert catalog.load(catalog_copy).output("slug") == catalog_copy / "build/slug"


# where the catalog is


def test_the_root_is_found_from_below(catalog_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert catalog.find_root(catalog_copy / "patches/m3-stream-first-delta") == catalog_copy
    monkeypatch.chdir(catalog_copy / "recipes")
    assert catalog.find_root() == catalog_copy
    with pytest.raises(errors.BadInput) as caught:
        catalog.find_root(tmp_path)
    assert caught.value.message == f"{tmp_path}: no images/releases.yaml in this folder or above"
    assert caught.value.hint == "run Kiln inside its checkout: cd kiln"


def test_kiln_root_comes_before_the_working_folder(
    catalog_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(catalog_copy, other)
    monkeypatch.chdir(other)
    monkeypatch.setenv("KILN_ROOT", str(catalog_copy))
    assert catalog.find_root() == catalog_copy
    assert catalog.find_root(other / "patches") == other
    monkeypatch.setenv("KILN_ROOT", str(tmp_path))
    with pytest.raises(errors.BadInput) as caught:
        catalog.find_root()
    assert caught.value.message == f"KILN_ROOT={tmp_path}: no images/releases.yaml in this folder"


def test_without_a_catalog_around_the_source_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (catalog.find_root() / "src/kiln").is_dir()


def test_a_mirror_with_a_password_and_a_ca_that_is_a_folder_are_refused(catalog_copy: Path) -> None:
    (catalog_copy / "kiln.yaml").write_text("mirrors: {docker.io/vllm: 'https://user:pw@h.io/v'}\nca: patches\n")
    assert refusal(catalog_copy).splitlines() == [
        "kiln.yaml: mirrors: docker.io/vllm: holds a user or a password; leave it out: git and Docker have their own",
        "kiln.yaml: ca: patches: is a folder",
    ]
