"""Images locked from a real registry: a pushed index, a moved tag, a deleted manifest, and the layers of lookalikes."""

from __future__ import annotations

import json
import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
import yaml

from kiln import catalog, plan
from kiln.catalog import locked
from kiln.lock import base, packages
from kiln.lock import run as locking
from kiln.registry import client
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Any

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.lock.run import Result
    from kiln.registry.client import Registry

QUIET = Reporter(quiet=True)
RELEASE = "0.31.0"
CUDA, ROCM = f"docker.io/vllm/vllm-openai:v{RELEASE}", f"docker.io/vllm/vllm-openai-rocm:v{RELEASE}"
TOUCHED = "vllm/reasoning/minimax_m3_reasoning_parser.py"


@dataclass(frozen=True, kw_only=True)
class Copied:
    """Lookalikes of both kinds in repositories that nobody else uses, and a catalog that knows no digest of them."""

    registry: Registry
    prefix: str
    root: Path
    state: Path
    end: ExitStack

    def copy(self, made: Any, tag: str = f"v{RELEASE}") -> None:
        """Copy a lookalike under its own name, blobs mounted; the end removes it."""
        source, target = made.repository, f"{self.prefix}/{made.repository.rpartition('/')[2]}"
        top = self.registry.manifest(source, tag)
        for each in [self.registry.manifest(source, part.digest) for part in top.manifests] or [top]:
            for blob in (each.config, *each.layers):
                assert blob
                assert self.registry.mount(target, blob.digest, source)
            self.registry.put_manifest(target, each.digest, each.data, each.descriptor.media_type)
            self.end.callback(self.registry.delete, target, each.digest)
        self.registry.put_manifest(target, tag, top.data, top.descriptor.media_type)
        self.end.callback(self.registry.delete, target, top.digest)

    def lock(self, **wish: Any) -> Result:
        loaded = replace(catalog.load(self.root, locked=False), state=self.state)
        return locking.run(loaded, locking.Wish(release=RELEASE, **wish), QUIET)

    def load(self) -> Catalog:
        return replace(catalog.load(self.root), state=self.state)


@pytest.fixture
def world(
    lookalike: Callable[..., Any], real_engine: Engine, real_catalog: Catalog, catalog_copy: Path
) -> Iterator[Copied]:
    assert real_engine.registry, "these tests need the embedded engine's registry"
    prefix = f"lock/{uuid.uuid4().hex[:12]}"
    path = catalog_copy / "images/releases.yaml"
    releases = yaml.safe_load(path.read_text())
    for kind in ("cuda", "rocm"):
        stack = releases["releases"][RELEASE][kind]
        stack["image"] = {name: stack["image"][name] for name in ("repository", "tag")}
    path.write_text(yaml.safe_dump(releases, sort_keys=False))
    (catalog_copy / "kiln.yaml").write_text(f"mirrors:\n  docker.io/vllm: {real_engine.registry}/{prefix}\n")
    with client.connect(real_engine.registry) as registry, ExitStack() as end:
        made = Copied(registry=registry, prefix=prefix, root=catalog_copy, state=real_catalog.state, end=end)
        for kind in ("cuda", "rocm"):
            made.copy(lookalike(kind=kind))
        yield made


def test_what_is_pushed_is_locked_and_stays_so_byte_for_byte(world: Copied) -> None:
    result = world.lock()
    assert (result.findings, result.silent, result.unknown, result.unconfirmed) == ((), (), (), ())
    cuda, rocm = (world.load().lock.images[name] for name in (CUDA, ROCM))
    assert cuda.index
    assert cuda.manifest
    assert rocm.manifest
    index = world.registry.manifest(f"{world.prefix}/vllm-openai", f"v{RELEASE}")
    assert cuda.index.digest == index.digest
    assert cuda.manifest.digest in {each.digest for each in index.manifests}
    assert rocm.index is None
    assert rocm.manifest.digest == world.registry.manifest(f"{world.prefix}/vllm-openai-rocm", f"v{RELEASE}").digest
    before = (world.root / locked.LOCK).read_bytes()
    assert not world.lock().written
    assert (world.root / locked.LOCK).read_bytes() == before


def test_a_moved_tag_and_a_deleted_manifest_are_found_and_nothing_is_written(world: Copied) -> None:
    world.lock()
    before = (world.root / locked.LOCK).read_bytes()
    cuda, rocm = f"{world.prefix}/vllm-openai", f"{world.prefix}/vllm-openai-rocm"
    other = world.registry.manifest(cuda, f"v{RELEASE}").manifests[0]
    assert world.registry.put_manifest(
        cuda, f"v{RELEASE}", world.registry.manifest(cuda, other.digest).data, other.media_type
    )
    old = world.registry.manifest(rocm, f"v{RELEASE}").digest
    assert world.registry.delete(rocm, old)
    found = {
        (finding.where, finding.problem.partition(":")[0].partition(" sha256")[0]) for finding in world.lock().findings
    }
    assert found == {
        (CUDA, "the tag moved"),
        (ROCM, "the registry has no such tag"),
        (ROCM, "the locked"),
    }
    assert (world.root / locked.LOCK).read_bytes() == before
    accepted = world.lock(accepted=CUDA).lock.images[CUDA]
    assert accepted.index is None
    assert accepted.manifest
    assert accepted.manifest.digest == other.digest


def test_what_the_layers_hold_is_what_the_editions_were_made_for(world: Copied) -> None:
    result = world.lock(bases=True)
    assert result.findings == ()
    loaded = world.load()
    for arch, reference in (("gfx942", ROCM), ("sm100", CUDA)):
        target = plan.make(loaded, variant="mxfp8", arch=arch, release=RELEASE)
        held = base.recorded(loaded, target)
        assert held == loaded.lock.images[reference].base
        assert held.root == "usr/local/lib/python3.12/dist-packages"
        assert {path: held.files[path] for path in base.pristine(target.series)} == base.pristine(target.series)
        assert held.versions["vllm"].startswith(RELEASE)
        assert held.bytecode
        assert held.caches == ()
        assert held.modes[held.root] == "0755"
    asked = loaded.lock
    assert not world.lock(bases=True).written, "what was read once is not read again"
    assert world.load().lock == asked


def test_a_base_whose_file_was_edited_is_found(world: Copied, lookalike: Callable[..., Any]) -> None:
    edited = lookalike({TOUCHED: b"edited = True\n", "/root/.triton/cache/x": b"old"}, kind="rocm")
    world.copy(edited)
    (finding,) = world.lock(bases=True).findings
    assert finding.where == f"{ROCM}: usr/local/lib/python3.12/dist-packages/{TOUCHED}"
    assert ", and the edition was made for sha256 " in finding.problem
    held = world.load().lock.images[ROCM].base
    assert held
    assert held.caches == ("root/.triton/cache",)


def test_the_packages_of_the_twin_are_recorded_once(world: Copied) -> None:
    lock = json.loads((world.root / locked.LOCK).read_text())
    (world.root / locked.LOCK).write_text(json.dumps(lock | {"debian": {}}))
    world.lock()
    assert packages.write(world.load(), QUIET)
    assert not packages.write(world.load(), QUIET)
    held = world.load().lock.debian
    assert {"python3.11-minimal"} <= {each.name for each in held["base"]}
    assert held["builder"]
