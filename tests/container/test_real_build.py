"""The real build path on a base that looks like the official images, from a mirror on the local registry."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import yaml

from kiln import errors, plan, process, trees
from kiln.engine import short_lived
from kiln.image import base, build, inspect
from kiln.patching.outcomes import Outcome
from kiln.report import Reporter
from kiln.upstream.wheel import RemoteWheel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import docker

    from kiln.catalog import Catalog
    from kiln.engine import Engine

QUIET = Reporter(quiet=True)
SITE = "usr/local/lib/python3.12/dist-packages"
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"
EXTRAS = {
    "app/versions.txt": b"vllm: v0.31.0\n",
    # the base's Python is 3.11, the official image's is 3.12
    "usr/local/lib/python3.11/dist-packages/lookalike.pth": f"/{SITE}\n".encode(),
}
DOCKERFILE = """
FROM base
ADD tree.tar /
"""


@dataclass(frozen=True)
class Lookalike:
    """An image in the local registry, and how the catalog must be edited to build on it."""

    digest: str
    registry: str

    def adopt(self, root: Path) -> None:
        path = root / "images/releases.yaml"
        releases = yaml.safe_load(path.read_text())
        for stack in ("rocm", "cuda"):
            releases["releases"]["0.31.0"][stack]["image"]["manifest"]["digest"] = self.digest
        path.write_text(yaml.safe_dump(releases))
        (root / "kiln.yaml").write_text(f"mirrors:\n  docker.io/vllm: {self.registry}/vllm\n")


@pytest.fixture(scope="session")
def wheel_tree(real_catalog: Catalog) -> dict[str, bytes]:
    """Every Python file and the metadata of the release's GPU wheel."""
    wheel = RemoteWheel(real_catalog.releases.releases["0.31.0"].wheel)
    return wheel.read(name for name in wheel.names() if name.endswith(".py") or ".dist-info/" in name)


@pytest.fixture
def lookalike(
    real_catalog: Catalog, real_engine: Engine, wheel_tree: dict[str, bytes], tmp_path: Path
) -> Callable[[dict[str, bytes]], Lookalike]:
    """Return a function that builds and pushes the lookalike, with some of its files replaced."""

    def make(edits: dict[str, bytes]) -> Lookalike:
        assert real_engine.registry, "these tests need the embedded engine's registry"
        folder = tmp_path / "lookalike"
        folder.mkdir()
        (folder / "Dockerfile").write_text(DOCKERFILE)
        with tarfile.open(folder / "tree.tar", "w") as archive:
            tree = {f"{SITE}/{name}": data for name, data in (wheel_tree | edits).items()} | EXTRAS
            for name, data in tree.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        root = base.ensure("base", real_catalog.state / "bases", QUIET)
        names = (f"{real_engine.registry}/vllm/vllm-openai{suffix}:v0.31.0" for suffix in ("", "-rocm"))
        process.ask(
            (
                real_engine.docker,
                "buildx",
                "build",
                f"--build-context=base={root.context}",
                "--provenance=false",
                f"--network={real_engine.build_network}",
                f'--output=type=image,"name={",".join(names)}",push=true',
                f"--metadata-file={folder}/metadata.json",
                str(folder),
            ),
            env=real_engine.environment(),
        )
        digest = json.loads((folder / "metadata.json").read_text())["containerimage.digest"]
        return Lookalike(digest=digest, registry=real_engine.registry)

    return make


@pytest.mark.parametrize("case", [("gfx942", "rocm"), ("sm100", "cuda")], ids="-".join)
def test_the_series_is_applied_on_the_official_layout(
    case: tuple[str, str],
    lookalike: Callable[[dict[str, bytes]], Lookalike],
    edited: Callable[[Callable[[Path], None]], Catalog],
    client: docker.DockerClient,
) -> None:
    made = edited(lookalike({}).adopt)
    arch, kind = case
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
        assert inspect.read_file(container, "/app/versions.txt") == b"vllm: v0.31.0\n"
        for item in target.serve.env:
            if item.name == "VLLM_TUNED_CONFIG_FOLDER":
                held = (made.root / f"images/{kind}/tuned/README.md").read_bytes()
                assert inspect.read_file(container, f"{item.value}/README.md") == held


def test_a_base_whose_file_was_edited_fails_the_patch_step(
    lookalike: Callable[[dict[str, bytes]], Lookalike],
    edited: Callable[[Callable[[Path], None]], Catalog],
    wheel_tree: dict[str, bytes],
    client: docker.DockerClient,
) -> None:
    changed = wheel_tree[PARSER].replace(b"MiniMax M3 can start", b"MiniMax M3 may start")
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
    lookalike: Callable[[dict[str, bytes]], Lookalike],
    real_catalog: Catalog,
    client: docker.DockerClient,
) -> None:
    """Nothing but a bare Python and vLLM's own files: the zipapp needs no more."""
    made = lookalike({})
    image = f"{made.registry}/vllm/vllm-openai-rocm@{made.digest}"
    client.images.pull(image)
    command = ["python3", "-c", "import time; time.sleep(300)"]
    with short_lived.created(client, image, command=command) as container:
        container.start()
        where = trees.Where(container=str(container.name))
        wanted = trees.Wanted(variant="mxfp8", arch="gfx942")
        outcomes = [trees.run("apply", where, wanted, real_catalog).report.outcome for _ in range(2)]
    assert outcomes == [Outcome.APPLIED, Outcome.ALREADY_APPLIED]
