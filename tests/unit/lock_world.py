"""A catalog whose mirror is a registry in this process, for the tests of what is locked and how it is shown."""

from __future__ import annotations

import tarfile
import time
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import TYPE_CHECKING

import registry_support
from registry_support import Entry, Fake, digest

from kiln import catalog
from kiln.catalog import locked
from kiln.lock import run as locking
from kiln.lock.run import Result, Wish
from kiln.registry import transport
from kiln.registry.records import OCI_INDEX
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import pytest

R = "0.31.0"
CUDA, ROCM = f"docker.io/vllm/vllm-openai:v{R}", f"docker.io/vllm/vllm-openai-rocm:v{R}"
FIRST, SECOND = "2026-11-20T00:00:00Z", "2026-11-27T00:00:00Z"
NAMES = ("vllm-openai", "vllm-openai-rocm")


def tree(files: Mapping[str, bytes]) -> bytes:
    """Return a tar of files, with the folders above them."""
    folders = {str(parent): None for path in files for parent in reversed(PurePosixPath(path).parents)}
    return registry_support.tar(
        *(Entry(folder, kind=tarfile.DIRTYPE, mode=0o755) for folder in folders if folder != "."),
        *(Entry(path, data) for path, data in files.items()),
    )


def put_index(registry: Fake, repository: str, tag: str, manifests: Mapping[str, str]) -> str:
    """Let a tag name an index of (architecture: digest), and return its digest."""
    listed = []
    for architecture, each in manifests.items():
        kind, data = registry.manifests[f"{repository}@{each}"]
        platform = {"os": "linux", "architecture": architecture}
        listed.append({"mediaType": kind, "digest": digest(data), "size": len(data), "platform": platform})
    return registry.put(repository, tag, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})


class World:
    """A catalog whose mirror is the registry, with both images of one release in it."""

    def __init__(self, root: Path, registry: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.registry, self._patch = root, registry, monkeypatch
        self.manifests = {name: self.image(name, b"first") for name in NAMES}
        self.arm = registry.put_image("vllm/vllm-openai", "", tree({"arm": b""}), architecture="arm64")
        self.index = self.tag(self.manifests["vllm-openai"])
        registry.tags[f"vllm/vllm-openai-rocm:v{R}"] = self.manifests["vllm-openai-rocm"]
        (root / "kiln.yaml").write_text(f"mirrors:\n  docker.io/vllm: {registry.host}/vllm\n", encoding="utf-8")
        monkeypatch.setattr(transport, "_FIRST_WAIT_S", 0.0)
        self.at(FIRST)

    def image(self, name: str, content: bytes) -> str:
        return self.registry.put_image(f"vllm/{name}", "", tree({"content": content}))

    def tag(self, amd64: str) -> str:
        """Let the CUDA tag name an index with this image."""
        return put_index(self.registry, "vllm/vllm-openai", f"v{R}", {"arm64": self.arm, "amd64": amd64})

    def at(self, now: str) -> None:
        self._patch.setattr(locking, "time", SimpleNamespace(strftime=lambda *_: now, gmtime=time.gmtime))

    def write(self, **digests: str) -> None:
        """Write these digests of the CUDA image, and none of the ROCm image, into releases.yaml."""
        path = self.root / "images/releases.yaml"
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = []
        where = ""
        for line in lines:
            where = line.split(": ")[1].strip() if line.startswith("        tag: ") else where
            if where == f"v{R}" and line.startswith(("        index: ", "        manifest: ")):
                continue
            kept.append(line)
            if line == f"        tag: v{R}\n" and kept[-2].endswith("vllm-openai\n"):
                pins = (f'{{digest: "{digest}", confidence: B}}' for digest in digests.values())
                kept += [f"        {name}: {pin}\n" for name, pin in zip(digests, pins, strict=True)]
        path.write_text("".join(kept), encoding="utf-8")

    def lock(self, **wish: object) -> Result:
        loaded = catalog.load(self.root, locked=False)
        return locking.run(loaded, Wish(**{"release": R} | wish), Reporter(quiet=True))  # type: ignore[arg-type]

    @property
    def text(self) -> str:
        return (self.root / locked.LOCK).read_text(encoding="utf-8")
