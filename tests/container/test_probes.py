"""Every patch's probe is red on the release's own files and green on the patched ones, with a real vLLM imported."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import docker.errors
import pytest

from kiln import catalog, plan
from kiln.image.rehearsal import compile_series
from kiln.patching import plan as patching
from kiln.patching.tree import Memory
from kiln.upstream.wheel import RemoteWheel

if TYPE_CHECKING:
    from pathlib import Path

    import docker

    from kiln.catalog import Catalog

CATALOG = catalog.load(catalog.find_root())
EDITIONS = [(patch.id, release) for patch in CATALOG.patches.values() for release in patch.editions]


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory, real_catalog: Catalog) -> dict[str, Path]:
    """The Python files of each release's GPU wheel, and the Rust parser its tool parsers call."""
    folders = {}
    for release in sorted({release for _, release in EDITIONS}):
        wheel = RemoteWheel(real_catalog.releases.releases[release].wheel)
        wanted = [name for name in wheel.names() if _needed(name)]
        folder = tmp_path_factory.mktemp(f"vllm-{release}")
        for name, data in wheel.read(wanted).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        folders[release] = folder
    return folders


def _needed(name: str) -> bool:
    return name.endswith((".py", ".json", "_rust_tool_parser.abi3.so")) or ".dist-info/" in name


@pytest.mark.parametrize("edition", EDITIONS, ids="-".join)
def test_probe_is_red_then_green(
    edition: tuple[str, str], trees: dict[str, Path], client: docker.DockerClient, twin_image: str
) -> None:
    patch_id, release = edition
    tree = trees[release]
    probe = CATALOG.root / "patches" / patch_id
    before = {path: (tree / path).read_bytes() for path in CATALOG.patches[patch_id].editions[release].files}
    assert run_probe(client, twin_image, probe, tree).startswith("1 red: ")
    series = compile_series(plan.make(CATALOG, variant="mxfp8", arch="gfx942", release=release), CATALOG)
    single = replace(series, patches=tuple(patch for patch in series.patches if patch.id == patch_id))
    for write in patching.plan(single, Memory(before)).writes:
        assert write.data is not None
        (tree / write.path).write_bytes(write.data)
    assert run_probe(client, twin_image, probe, tree).startswith("0 green: ")


def run_probe(client: docker.DockerClient, image: str, probe: Path, tree: Path) -> str:
    """Return exit code and output of a probe, run in the twin with another vllm first on the path."""
    container = client.containers.create(
        image,
        ["-B", "/probe/probe.py", "/tree"],
        entrypoint="python3",
        environment={"PYTHONPATH": "/tree", "VLLM_LOGGING_LEVEL": "ERROR"},
        network_disabled=True,
        volumes={str(probe): {"bind": "/probe", "mode": "ro"}, str(tree): {"bind": "/tree", "mode": "ro"}},
    )
    try:
        container.start()
        code = container.wait(timeout=120)["StatusCode"]
        return f"{code} {container.logs(stderr=False).decode()}{container.logs(stdout=False).decode()}"
    finally:
        container.remove(force=True)
