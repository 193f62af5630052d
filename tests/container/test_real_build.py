"""The real build path on a base that looks like the official images, from a mirror on the local registry."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kiln import errors, plan, process, trees
from kiln.engine import short_lived
from kiln.image import accept, bake, build, inspect, versions
from kiln.patching.outcomes import Outcome
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import docker
    from tests.container.conftest import Kind, Lookalike, Make

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.plan import Plan

# a Python of the base that shows the rehearsed file to whoever verifies it, and leaves another one in the image
LYING = """
import atexit, os, sys
held, good = {target!r}, "/opt/.good"
if "verify" in sys.orig_argv:
    open(held, "wb").write(open(good, "rb").read())
elif any(word.endswith("finish.py") for word in sys.orig_argv):
    def lie():
        open(good, "wb").write(open(held, "rb").read())
        then = os.stat(held)
        open(held, "ab").write(b"# not what was rehearsed")
        os.utime(held, ns=(then.st_atime_ns, then.st_mtime_ns))
    atexit.register(lie)
"""
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
    before = images(client, target)
    with pytest.raises(errors.Findings) as caught:
        build.run(made, target, twin=False, reporter=QUIET)
    said = "torch: is 2.13.0+git0000000, and the pin torch_reported is 2.13.0+git733fca1"
    assert said in caught.value.message.splitlines()
    assert images(client, target) == before


def test_a_base_whose_file_was_edited_fails_the_patch_step(
    lookalike: Make,
    edited: Callable[[Callable[[Path], None]], Catalog],
    wheel_tree: Callable[[str], dict[str, bytes]],
    client: docker.DockerClient,
) -> None:
    changed = wheel_tree("0.31.0")[PARSER].replace(b"MiniMax M3 can start", b"MiniMax M3 may start")
    made = edited(lookalike({PARSER: changed}).adopt)
    other = plan.make(made, variant="bf16", arch="gfx942")
    before = images(client, other)
    with pytest.raises(errors.NotApplied) as caught:
        build.run(made, other, twin=False, reporter=QUIET)
    assert PARSER in caught.value.message
    assert _sha256(changed) in caught.value.message
    assert caught.value.exit_code == 5
    assert images(client, other) == before


def test_a_base_whose_python_lies_of_the_patched_files_is_not_accepted(
    lookalike: Make, edited: Callable[[Callable[[Path], None]], Catalog], client: docker.DockerClient
) -> None:
    """The files are read out of a container that never runs, so nothing of the base says what they are."""
    code = LYING.format(target=f"/{SITE}/{PARSER}")
    made = edited(lookalike({"lying.pth": f"import sys; exec({code!r}, {{}})\n".encode()}).adopt)
    other = plan.make(made, variant="bf16", arch="gfx942")
    before = images(client, other)
    with pytest.raises(errors.NotApplied, match="read without running it") as caught:
        build.run(made, other, twin=False, reporter=QUIET)
    assert f"/{SITE}/{PARSER}: sha256 " in caught.value.message
    assert images(client, other) == before


def images(client: docker.DockerClient, target: Plan) -> dict[str, list[str]]:
    """Return every image of a target in the engine, with its tags."""
    of_target = {"label": [f"ai.kiln.target={target.target.slug}"]}
    found = client.images.list(all=True, filters=of_target)
    return {str(image.id): sorted(image.tags) for image in found}


def with_settings(official: Lookalike, engine: Engine, folder: Path, lines: str) -> Lookalike:
    """Return a base that is another one but for a few lines of its Dockerfile."""
    (folder / "Dockerfile").write_text(f"FROM {official.reference}\n{lines}\n")
    name = f"{official.name}:{hashlib.sha256(lines.encode()).hexdigest()[:12]}"
    metadata = folder / "metadata.json"
    argv = (
        *engine.buildx,
        "build",
        "--provenance=false",
        f"--output=type=image,name={name},push=true,store=false",
        f"--metadata-file={metadata}",
        str(folder),
    )
    process.ask(argv, env=engine.environment())
    return replace(official, digest=json.loads(metadata.read_text())["containerimage.digest"], index="")


def test_a_base_that_adds_steps_to_every_build_over_it_is_refused(
    lookalike: Make,
    edited: Callable[[Callable[[Path], None]], Catalog],
    real_engine: Engine,
    *,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = with_settings(lookalike(), real_engine, tmp_path, "ONBUILD ENV LD_PRELOAD=/opt/x.so")
    made = edited(base.adopt)
    monkeypatch.setattr(process, "show", lambda *_, **__: pytest.fail("BuildKit was started"))
    with pytest.raises(errors.Findings, match="ONBUILD: ENV LD_PRELOAD=/opt"):
        build.run(made, plan.make(made, variant="bf16", arch="gfx942"), twin=False, reporter=QUIET)


def test_an_image_that_is_started_in_another_way_than_its_base_is_not_accepted(
    lookalike: Make, edited: Callable[[Callable[[Path], None]], Catalog], client: docker.DockerClient
) -> None:
    official = lookalike()

    def meddle(root: Path) -> None:
        official.adopt(root)
        dockerfile = root / "images/rocm/Dockerfile"
        dockerfile.write_text(f"{dockerfile.read_text()}ENV LD_PRELOAD=/opt/x.so\nUSER nobody\n")

    made = edited(meddle)
    target = plan.make(made, variant="bf16", arch="gfx942")
    before = images(client, target)
    with pytest.raises(errors.NotApplied) as caught:
        build.run(made, target, twin=False, reporter=QUIET)
    assert "\n  User: 'nobody', and its base has ''" in caught.value.message
    assert "LD_PRELOAD=/opt/x.so" in caught.value.message
    assert images(client, target) == before


def test_an_interrupt_of_the_acceptance_leaves_no_image(
    lookalike: Make,
    edited: Callable[[Callable[[Path], None]], Catalog],
    client: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = edited(lookalike({"/opt/once": secrets.token_bytes(8)}).adopt)
    target = plan.make(made, variant="mxfp4", arch="gfx950")
    before = images(client, target)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(accept, "in_engine", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.run(made, target, twin=False, reporter=QUIET)
    assert images(client, target) == before


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
