"""What is drafted for releases that the catalog lacks, from an index and a registry in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import fake_index
import pytest
import yaml
from lock_world import tree
from registry_support import Fake, serving

from kiln import catalog, errors
from kiln.lock import update
from kiln.report import Reporter
from kiln.upstream import pip_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from fake_index import Index

QUIET = Reporter(quiet=True)
NEW = "0.34.0"
CUDA, ROCM = f"docker.io/vllm/vllm-openai:v{NEW}", f"docker.io/vllm/vllm-openai-rocm:v{NEW}"
METADATA = b"""\
Metadata-Version: 2.4
Name: vllm
Version: 0.34.0
Requires-Dist: torch==2.15.0
Requires-Dist: torchaudio>=2.11.0
Requires-Dist: torchvision==0.30.0; extra == "zen"
Requires-Dist: nvidia-cutlass-dsl[cu13]==4.9.0
Requires-Dist: flashinfer-python==0.7.*
Requires-Dist: not a requirement!
Requires-Dist: numpy==2.4.0

the text
"""
STACKS = {
    "vllm/_version.py": b"__commit_id__ = commit_id = 'g0123abcde'\n",
    f"vllm-{NEW}.dist-info/METADATA": METADATA,
}


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with fake_index.serving(monkeypatch) as served:
        yield served


@pytest.fixture
def registry(catalog_copy: Path) -> Iterator[Fake]:
    with serving(Fake()) as served:
        (catalog_copy / "kiln.yaml").write_text(f"mirrors:\n  docker.io/vllm: {served.host}/vllm\n", encoding="utf-8")
        yield served


def test_a_new_release_is_drafted_with_what_was_read_and_no_more(
    catalog_copy: Path, index: Index, registry: Fake
) -> None:
    for known in ("0.23.0", "0.33.0"):
        index.add(known, {})
    pin = index.add(NEW, STACKS)
    digest = registry.put_image("vllm/vllm-openai", f"v{NEW}", tree({"a": b""}))
    (made,) = update.proposals(catalog.load(catalog_copy), QUIET, offline=False)
    assert (made.release, made.problem, made.images) == (NEW, "", {CUDA: digest, ROCM: ""})
    assert yaml.safe_load(made.block) == {
        NEW: {
            "commit": "0123abcde",
            "wheel": {"project": "vllm", "file": pin.file, "sha256": pin.sha256},
            "cuda": {
                "image": {"repository": "docker.io/vllm/vllm-openai", "tag": f"v{NEW}"},
                "torch": "2.15.0",
                "cutlass_dsl": "4.9.0",
            },
            "rocm": {"image": {"repository": "docker.io/vllm/vllm-openai-rocm", "tag": f"v{NEW}"}},
        }
    }
    assert f"        tag: v{NEW}  # {digest}\n" in made.block
    assert f"        tag: v{NEW}  # no registry has named its digest\n" in made.block
    by_hand = [line.strip() for line in made.block.splitlines() if line.strip().startswith("# ")]
    assert by_hand[0] == "# date: the day it was published"
    assert by_hand[1].startswith("# cuda, ubuntu, python, torchvision, torchaudio, triton, flashinfer")
    assert by_hand[2].startswith("# base_image, rocm, python, aiter, ")


def test_a_release_between_those_of_the_catalog_is_found_and_asked_about_nothing_offline(
    catalog_copy: Path, index: Index, registry: Fake
) -> None:
    index.add("0.31.1", {"vllm/__init__.py": b""})
    (made,) = update.proposals(catalog.load(catalog_copy), QUIET, offline=True)
    assert made.release == "0.31.1"
    assert "    # commit: of the release's tag\n" in made.block
    assert registry.asked == []


@pytest.mark.parametrize(
    "source",
    [b"commit_id = __import__('os').system('true')\n", b"commit_id = 'g0\\n  evil: 1'\n", b"def\n", b"\0", b"(" * 9999],
)
def test_a_version_file_is_read_and_never_run_or_copied(catalog_copy: Path, index: Index, source: bytes) -> None:
    index.add(NEW, STACKS | {"vllm/_version.py": source})
    (made,) = update.proposals(catalog.load(catalog_copy), QUIET, offline=True)
    assert "    # commit: of the release's tag\n" in made.block


def test_a_release_whose_wheel_cannot_be_read_says_so(catalog_copy: Path, index: Index) -> None:
    name = index.add(NEW, {}).file
    index.wheels[name] = b"no zip"
    index.odd.append('<a href="/files/vllm-0.35.0-cp38-abi3-manylinux_2_28_aarch64.whl#sha256=00">no wheel for us</a>')
    broken, lacking = update.proposals(catalog.load(catalog_copy), QUIET, offline=True)
    assert (broken.release, broken.block) == (NEW, "")
    assert broken.problem.startswith(f"{name}: ")
    assert lacking.problem == "the index lists no wheel of it for Linux on x86-64 with a hash"


def test_nothing_new_is_nothing_to_add(catalog_copy: Path, index: Index) -> None:
    index.add("0.33.0", {})
    index.add("0.23.0", {})
    assert update.proposals(catalog.load(catalog_copy), QUIET, offline=False) == ()


def test_an_index_that_gives_no_answer_is_missing(catalog_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")
    pip_config.read.cache_clear()
    with pytest.raises(errors.Missing):
        update.proposals(catalog.load(catalog_copy), QUIET, offline=False)
