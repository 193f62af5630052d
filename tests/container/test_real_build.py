"""The real build path on a base that looks like the official images, from a mirror on the local registry."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from kiln import errors, plan, process, trees
from kiln.engine import short_lived
from kiln.image import bake, build, inspect, versions
from kiln.patching.outcomes import Outcome
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import docker
    from tests.container.conftest import Kind, Make

    from kiln.catalog import Catalog

QUIET = Reporter(quiet=True)
SITE = "usr/local/lib/python3.12/dist-packages"
FACTS = {"rocm": ("folder", "7.2.3", ""), "cuda": ("", "", "13.0.3")}
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"


@pytest.mark.parametrize("case", [("gfx942", "rocm"), ("sm100", "cuda")], ids="-".join)
def test_the_series_is_applied_on_the_official_layout(
    case: tuple[str, Kind],
    lookalike: Make,
    edited: Callable[[Callable[[Path], None]], Catalog],
    client: docker.DockerClient,
) -> None:
    arch, kind = case
    official = lookalike(kind=kind)
    made = edited(official.adopt)
    target = plan.make(made, variant="mxfp8", arch=arch)
    receipt = build.run(made, target, twin=False, reporter=QUIET)
    assert receipt.kind == kind
    assert receipt.base == target.image.digest
    # what the last patch of each file leaves
    expected = {path: post for use in target.series for path, _, post in use.files}
    assert PARSER in expected
    with short_lived.created(client, receipt.digest) as container:
        for path, post in expected.items():
            assert _sha256(inspect.read_file(container, f"/{SITE}/{path}")) == post
        facts = versions.read(container)
        for item in target.serve.env:
            if item.name == "VLLM_TUNED_CONFIG_FOLDER":
                held = (made.root / f"images/{kind}/tuned/README.md").read_bytes()
                assert inspect.read_file(container, f"{item.value}/README.md") == held
    # one layer over the base, and what the image holds is what the catalog says it does
    assert receipt.layers == official.layers + 1
    assert versions.compare(target, facts).findings == ()
    assert (facts.rocm_layout, facts.rocm, facts.cuda) == FACTS[kind]
    assert facts.system.startswith("ubuntu ")


def test_the_same_inputs_give_the_same_digest(
    lookalike: Make, edited: Callable[[Callable[[Path], None]], Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second build uses no layer of the first."""
    made = edited(lookalike().adopt)
    target = plan.make(made, variant="mxfp8", arch="gfx942")
    first = build.run(made, target, twin=False, reporter=QUIET)
    with_cache = bake.command
    monkeypatch.setattr(bake, "command", lambda *args, **options: (*with_cache(*args, **options), "--no-cache"))
    again = build.run(made, target, twin=False, reporter=QUIET, how=build.How(rebuild=True))
    assert again.digest == first.digest


def test_the_layout_that_has_rocm_from_wheels(
    lookalike: Make, edited: Callable[[Callable[[Path], None]], Catalog], client: docker.DockerClient
) -> None:
    made = edited(lookalike(tag="v0.33.0").adopt)
    target = plan.make(made, variant="mxfp8", arch="gfx950", release="0.33.0")
    receipt = build.run(made, target, twin=False, reporter=QUIET)
    with short_lived.created(client, receipt.digest) as container:
        facts = versions.read(container)
    assert (facts.rocm_layout, facts.rocm) == ("wheels", "10.0.0")
    assert versions.compare(target, facts).findings == ()


def test_a_base_with_other_versions_than_pinned_is_not_accepted(
    lookalike: Make, edited: Callable[[Callable[[Path], None]], Catalog], client: docker.DockerClient
) -> None:
    metadata = "torch-2.13.0+git733fca1.dist-info/METADATA"
    other = lookalike({metadata: b"Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0+git0000000\n"})
    made = edited(other.adopt)
    target = plan.make(made, variant="bf16", arch="gfx942")
    with pytest.raises(errors.Findings) as caught:
        build.run(made, target, twin=False, reporter=QUIET)
    said = "torch: is 2.13.0+git0000000, and the pin torch_reported is 2.13.0+git733fca1"
    assert said in caught.value.message.splitlines()
    assert not client.images.list(f"kiln/{target.target.slug}")


def test_a_base_whose_file_was_edited_fails_the_patch_step(
    lookalike: Make,
    edited: Callable[[Callable[[Path], None]], Catalog],
    wheel_tree: Callable[[str], dict[str, bytes]],
    client: docker.DockerClient,
) -> None:
    changed = wheel_tree("0.31.0")[PARSER].replace(b"MiniMax M3 can start", b"MiniMax M3 may start")
    made = edited(lookalike({PARSER: changed}).adopt)
    other = plan.make(made, variant="bf16", arch="gfx942")
    with pytest.raises(errors.NotApplied) as caught:
        build.run(made, other, twin=False, reporter=QUIET)
    assert PARSER in caught.value.message
    assert _sha256(changed) in caught.value.message
    assert caught.value.exit_code == 5
    assert not client.images.list(f"kiln/{other.target.slug}")


def test_a_base_that_cannot_be_pulled_is_named_after_the_rehearsal(
    real_catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No registry is reachable where this runs, or the digest is checked: then this is reported as not run."""
    target = plan.make(real_catalog, variant="mxfp8", arch="gfx942")
    monkeypatch.setattr(process, "show", lambda *_, **__: pytest.skip("the base image can be pulled on this machine"))
    reporter = Reporter(quiet=True)
    with pytest.raises(errors.Missing) as caught:
        build.run(real_catalog, target, twin=False, reporter=reporter)
    assert f"docker.io/vllm/vllm-openai-rocm@{target.image.digest}" in caught.value.message
    assert any(step.startswith("rehearse") for step in reporter.timings)
    assert caught.value.exit_code == 3


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_container_without_packages_is_patched_once(
    lookalike: Make,
    real_catalog: Catalog,
    client: docker.DockerClient,
) -> None:
    """Nothing but a bare Python and vLLM's own files: the zipapp needs no more."""
    image = lookalike().reference
    client.images.pull(image)
    sleep = {"entrypoint": ["python3", "-c", "import time; time.sleep(300)"]}
    with short_lived.created(client, image, **sleep) as container:
        container.start()
        where = trees.Where(container=str(container.name))
        wanted = trees.Wanted(variant="mxfp8", arch="gfx942")
        outcomes = [trees.run("apply", where, wanted, real_catalog).report.outcome for _ in range(2)]
    assert outcomes == [Outcome.APPLIED, Outcome.ALREADY_APPLIED]
