"""What a target gets over its base: from the index by hash, built from a commit, and nothing else changed by it."""

from __future__ import annotations

import io
import json
import tarfile
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from kiln import errors, plan, process
from kiln.engine import network, short_lived
from kiln.image import bake, build, inspect, versions
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import docker
    from tests.container.conftest import Kind, Lookalike, Make

    from kiln.catalog import Catalog

    Edited = Callable[[Callable[[Path], None]], Catalog]

QUIET = Reporter(quiet=True)
SITE = "usr/local/lib/python3.12/dist-packages"
KERNELS = "https://git.invalid/kernels"
QUARK = {
    "project": "amd-quark",
    "file": "amd_quark-0.12.post1-py3-none-any.whl",
    "sha256": "00a786f59259ce4412d3183b861cbc4eb8535b152bf0f1dc7080adfd9e6b5ad6",
}
OF_WHEEL = {"package": "amd-quark", "version": "0.12.post1", "wheel": QUARK, "pins": {"amd_quark": "==0.12.post1"}}
UNVERSIONED = "evaluate joblib ninja onnxscript pandas plotly protobuf psutil pydantic rich scipy sentencepiece tqdm"
NEEDED_BY_QUARK = {
    **dict.fromkeys((*UNVERSIONED.split(), "zstandard"), "9.0"),
    "numpy": "2.1.0",
    "onnx": "1.21.0",
    "onnxslim": "0.1.84",
}
SETUPTOOLS = {
    "project": "setuptools",
    "file": "setuptools-80.9.0-py3-none-any.whl",
    "sha256": "062d34222ad13e0cc312a4c02d73f059e86a4acbfbdea8f8f76b28c99f306922",
}
SETUP = """
import os
from pathlib import Path
from setuptools import setup

Path("aiter").mkdir(exist_ok=True)
Path("aiter/__init__.py").write_text("")
Path("aiter/built.py").write_text(f"GPU_ARCHS = {os.environ['GPU_ARCHS']!r}\\nCK = {Path('ck/ck.h').read_text()!r}\\n")
setup(name="amd-aiter", version=os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"], packages=["aiter"])
"""
EVIL = """
import os
from pathlib import Path
from setuptools import setup

Path("torch").mkdir()
Path("torch/__init__.py").write_text("stolen = True")
setup(name="amd-aiter", version=os.environ["SETUPTOOLS_SCM_PRETEND_VERSION"], packages=["torch"])
"""


class Repositories:
    """Git repositories of one folder, served on loopback."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self.address = address

    def commit(self, name: str, files: dict[str, str], submodules: dict[str, str] | None = None) -> str:
        """Make a repository with one commit, and return that."""
        folder = self._folder / name
        git = ("git", "-C", str(folder), "-c", "user.name=Kiln", "-c", "user.email=kiln@example.invalid")
        process.ask(("git", "init", "--quiet", str(folder)))
        for path, text in files.items():
            (folder / path).write_text(text)
        for path, other in (submodules or {}).items():
            # by a path that the fetch takes from the address of the repository
            url = f"file://{self._folder / other}"
            process.ask((*git, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", url, path))
            process.ask((*git, "config", "--file", ".gitmodules", f"submodule.{path}.url", f"../{other}"))
        process.ask((*git, "add", "--all"))
        process.ask((*git, "commit", "--quiet", "--message", name))
        return process.ask((*git, "rev-parse", "HEAD")).strip()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repositories]:
    folder = tmp_path_factory.mktemp("git")
    port = next(port for port in range(21500, 25000) if network.is_free(port))
    daemon = process.spawn(
        ("git", "daemon", "--listen=127.0.0.1", f"--port={port}", f"--base-path={folder}", "--export-all", str(folder))
    )
    while network.is_free(port):
        assert daemon.poll() is None
        time.sleep(0.05)
    yield Repositories(folder, f"git://127.0.0.1:{port}")
    daemon.terminate()
    daemon.wait()


def installing(made: Lookalike, *installs: dict[str, Any], git: str = "") -> Callable[[Path], None]:
    """Return the edit that gives the release of a lookalike these installs over it."""

    def edit(root: Path) -> None:
        made.adopt(root)
        path = root / "images/releases.yaml"
        releases = yaml.safe_load(path.read_text())
        stack = releases["releases"][made.release][made.kind]
        stack["installs"] = [{"reason": "a test", **each} for each in installs]
        path.write_text(yaml.safe_dump(releases, sort_keys=False))
        config = yaml.safe_load((root / "kiln.yaml").read_text())
        config["mirrors"] |= {KERNELS: git} if git else {}
        (root / "kiln.yaml").write_text(yaml.safe_dump(config))

    return edit


def from_source(name: str, commit: str) -> dict[str, Any]:
    return {
        "package": "amd-aiter",
        "version": "0.1.99",
        "arches": ["gfx950"],
        "source": {
            "repository": f"{KERNELS}/{name}",
            "commit": commit,
            "env": {"GPU_ARCHS": "gfx950"},
            "build_requires": [SETUPTOOLS],
        },
        "pins": {"aiter": "v0.1.99"},
    }


def having(packages: dict[str, str]) -> dict[str, bytes]:
    """Return the files that make a base have these packages, "" for one that it lacks."""
    return {
        f"{name}-{version}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode()
        for name, version in packages.items()
        if version
    }


def added(client: docker.DockerClient, image: str, base: int) -> list[dict[str, tarfile.TarInfo]]:
    """Return the members of each layer that an image has over its base."""
    held = io.BytesIO(b"".join(client.images.get(image).save()))
    with tarfile.open(fileobj=held) as archive:
        (manifest,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        layers = []
        for name in manifest["Layers"][base:]:
            with tarfile.open(fileobj=archive.extractfile(name)) as layer:
                layers.append({member.name: member for member in layer.getmembers()})
    return layers


def test_a_package_is_built_from_its_commit_for_the_arch(
    *,
    lookalike: Make,
    edited: Edited,
    repositories: Repositories,
    client: docker.DockerClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    repositories.commit("ck", {"ck.h": "tiles"})
    commit = repositories.commit("tiny", {"setup.py": SETUP}, {"ck": "ck"})
    stale = {
        "aiter/jit/build/module_x.so": b"of another AITER",
        "/root/.aiter/jit/module_y.so": b"of another AITER",
        "/root/.triton/cache/AB/kernel.json": b"{}",
        "/tmp/torchinductor_root/fx/x.py": b"",
    }
    made = lookalike(stale)
    edit = installing(made, from_source("tiny", commit), git=repositories.address)
    catalog = edited(edit)
    target = plan.make(catalog, variant="mxfp8", arch="gfx950")
    receipt = build.run(catalog, target, twin=False, reporter=QUIET)
    with short_lived.created(client, receipt.digest) as container:
        module = inspect.read_file(container, f"/{SITE}/aiter/built.py")
        facts = versions.read(container)
        pins = json.loads(inspect.read_file(container, "/opt/kiln/pins.json"))
        places = (
            path if path.startswith("/") else f"/{SITE}/{path}" for path in (*stale, "aiter/jit/module_moe_asm.so")
        )
        assert [path for path in places if inspect.find_file(container, path) is not None] == []
    assert module == b"GPU_ARCHS = 'gfx950'\nCK = 'tiles'\n"
    assert facts.distributions["amd-aiter"] == "0.1.99"
    assert facts.installed_twice == ()
    assert pins["pins"]["aiter"] == "v0.1.99"
    layers = added(client, receipt.digest, made.layers)
    assert len(layers) == 2
    held = {name: member for layer in layers for name, member in layer.items() if "/.wh." not in name}
    assert {member.mtime for member in held.values()} == {bake.SOURCE_DATE_EPOCH}
    assert {name.partition("/")[0] for name in held} == {"opt", "root", "tmp", "usr"}
    assert not [name for name in held if name.endswith((".orig", ".rej", ".pyc", "uv_cache.json", "direct_url.json"))]
    with_cache = bake.command
    monkeypatch.setattr(bake, "command", lambda *args, **options: (*with_cache(*args, **options), "--no-cache"))
    again = build.run(catalog, target, twin=False, reporter=QUIET, how=build.How(rebuild=True))
    assert again.digest == receipt.digest


@pytest.mark.parametrize(
    "case", [("rocm", "gfx942", "0.24.0"), ("rocm", "gfx942", "0.33.0"), ("cuda", "sm100", "0.24.0")]
)
def test_a_wheel_of_the_index_is_installed_by_its_hash(
    lookalike: Make, edited: Edited, client: docker.DockerClient, case: tuple[Kind, str, str]
) -> None:
    """The real wheel, over an older version, over other bytes of the same one where ROCm is of wheels, or over none."""
    kind, arch, release = case
    made = lookalike(having(NEEDED_BY_QUARK), kind=kind, tag=f"v{release}")
    catalog = edited(installing(made, OF_WHEEL))
    target = plan.make(catalog, variant="bf16", arch=arch, release=release)
    receipt = build.run(catalog, target, twin=False, reporter=QUIET)
    with short_lived.created(client, receipt.digest) as container:
        facts = versions.read(container)
        assert b"LLMTemplate" in inspect.read_file(container, f"/{SITE}/quark/torch/quantization/config/template.py")
    assert facts.distributions["amd-quark"] == "0.12.post1"
    assert "numpy>=2.0" in facts.requires["amd-quark"]


def tagged(client: docker.DockerClient, name: str) -> dict[str, str]:
    """Return the images of a name by their tags: a person may have built the same target before."""
    return {tag: str(image.id) for image in client.images.list(name) for tag in image.tags}


def test_a_package_that_needs_more_than_is_there_is_not_accepted(
    lookalike: Make, edited: Edited, client: docker.DockerClient
) -> None:
    old = having(NEEDED_BY_QUARK | {"numpy": "1.26.4", "rich": ""})
    catalog = edited(installing(lookalike(old, tag="v0.24.0"), OF_WHEEL))
    target = plan.make(catalog, variant="mxfp8", arch="gfx950", release="0.24.0")
    before = tagged(client, f"kiln/{target.target.slug}")
    with pytest.raises(errors.Findings) as caught:
        build.run(catalog, target, twin=False, reporter=QUIET)
    said = caught.value.message.splitlines()
    assert said[1:] == [
        "amd-quark: needs numpy>=2.0, and 1.26.4 is in the image",
        "amd-quark: needs rich, and none is in the image",
    ]
    assert tagged(client, f"kiln/{target.target.slug}") == before


def test_a_wheel_that_changes_torch_ends_the_build(
    lookalike: Make, edited: Edited, repositories: Repositories, client: docker.DockerClient
) -> None:
    commit = repositories.commit("evil", {"setup.py": EVIL})
    edit = installing(lookalike(), from_source("evil", commit), git=repositories.address)
    catalog = edited(edit)
    target = plan.make(catalog, variant="bf16", arch="gfx950")
    before = tagged(client, f"kiln/{target.target.slug}")
    with pytest.raises(errors.Findings) as caught:
        build.run(catalog, target, twin=False, reporter=QUIET)
    torch = f"/{SITE.replace('3.12', '3.11')}/torch/__init__.py"
    assert caught.value.exit_code == 6
    assert f"torch is protected, and amd-aiter 0.1.99 has changed {torch}" in caught.value.message
    assert tagged(client, f"kiln/{target.target.slug}") == before
