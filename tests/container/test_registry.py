"""The registry client against the real registry, and the files of real images against what a container of them has."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import secrets
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from kiln import errors, process
from kiln.image import base
from kiln.registry import client as registries
from kiln.registry import image, layers, records, saved
from kiln.registry.records import Damaged, Descriptor
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from docker import DockerClient

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.registry.client import Registry
    from kiln.registry.image import Content

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
STATEMENT = "application/vnd.in-toto+json"
# what the engine itself puts into every container
ENGINES_OWN = {".dockerenv", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"}
# what the twin's root has no programs for, Python does
STEPS = """\
import os, pathlib, shutil, sys
d = pathlib.Path("/d")
if sys.argv[1] == "1":
    (d / "e").mkdir(parents=True)
    (d / "opaque").mkdir()
    for name in ("one", "two", "opaque/low", "turned"):
        (d / name).write_text(name)
    os.link(d / "one", d / "hard")
    os.symlink("one", d / "soft")
    (d / "e/noise").write_bytes(os.urandom(3_000_000))
elif sys.argv[1] == "2":
    (d / "two").unlink()
    shutil.rmtree(d / "opaque")
    (d / "opaque").mkdir()
    (d / "opaque/up").write_text("up")
    (d / "one").chmod(0o4711)
else:
    (d / "turned").unlink()
    (d / "turned").mkdir()
    (d / "turned/in").write_text("in")
    shutil.rmtree(d / "e")
    os.symlink("opaque", d / "e")
    os.link(d / "hard", d / "again")
"""
DOCKERFILE = """\
FROM base
RUN --mount=type=bind,target=/context python3 /context/steps.py 1
RUN --mount=type=bind,target=/context python3 /context/steps.py 2
RUN --mount=type=bind,target=/context python3 /context/steps.py 3
COPY --link Dockerfile /d/linked
"""


@pytest.fixture
def host(real_engine: Engine) -> str:
    if not real_engine.registry:
        pytest.skip("the machine's own engine has no registry beside it")
    return real_engine.registry


@pytest.fixture
def registry(host: str) -> Iterator[Registry]:
    with registries.connect(host) as connected:
        yield connected


@pytest.fixture
def repository(registry: Registry) -> Iterator[str]:
    """A repository of this test alone; its manifests are deleted in the end."""
    name = f"kiln-test/registry-{secrets.token_hex(4)}"
    yield name
    for tag in registry.tags(name):
        if head := registry.head(name, tag):
            registry.delete(name, head.digest)


def push(registry: Registry, repository: str, tag: str, *contents: bytes) -> Descriptor:
    """Push an image of one layer for each content: the file `file`."""
    tars = [tar(content) for content in contents]
    pushed = [registry.push_blob(repository, gzip.compress(data, mtime=0), LAYER) for data in tars]
    rootfs = {"type": "layers", "diff_ids": [records.digest_of(data) for data in tars]}
    config = json.dumps({"os": "linux", "architecture": "amd64", "rootfs": rootfs}).encode()
    named = registry.push_blob(repository, config, "application/vnd.oci.image.config.v1+json")
    data = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": records.OCI_MANIFEST,
            "config": records.as_json(named),
            "layers": [records.as_json(layer) for layer in pushed],
        }
    ).encode()
    assert registry.put_manifest(repository, tag, data, records.OCI_MANIFEST) == records.digest_of(data)
    return records.describe(data, records.OCI_MANIFEST)


def tar(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("file")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def quiet(_: str) -> None:
    pass


def test_an_image_comes_back_as_it_was_pushed(registry: Registry, repository: str) -> None:
    assert registry.head(repository, "v1") is None
    assert registry.tags(repository) == ()
    named = push(registry, repository, "v1", b"lower", b"upper" * 1000)
    assert registry.head(repository, "v1") == registry.head(repository, named.digest) == named
    assert registry.tags(repository) == ("v1",)
    found = image.open_image(registry, repository, "v1")
    assert (found.digest, found.index_digest) == (named.digest, "")
    assert layers.find(found, ["file"], progress=quiet)["file"].data == b"upper" * 1000
    with pytest.raises(errors.Missing, match="does not have it"):
        registry.manifest(repository, "v2")


def test_a_manifest_that_lacks_its_blobs_is_not_taken(registry: Registry, repository: str) -> None:
    data = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": records.OCI_MANIFEST,
            "config": records.as_json(records.describe(b"none", "application/vnd.oci.image.config.v1+json")),
            "layers": [],
        }
    ).encode()
    with pytest.raises(errors.CommandFailed, match=r"HTTP 400 \(MANIFEST_BLOB_UNKNOWN\)"):
        registry.put_manifest(repository, "v1", data, records.OCI_MANIFEST)


def test_attached_artifacts_are_listed_under_the_fallback_tag(registry: Registry, repository: str) -> None:
    subject = push(registry, repository, "v1", b"content")
    assert registry.referrers(repository, subject.digest) == ()
    one = registry.attach(
        repository, subject, artifact_type=STATEMENT, data=b'{"a": 1}', annotations={"predicate": "x"}
    )
    two = registry.attach(repository, subject, artifact_type="application/spdx+json", data=b"{}", annotations={})
    assert registry.referrers(repository, subject.digest) == (one, two)
    assert registry.referrers(repository, subject.digest, STATEMENT) == (one,)
    assert set(registry.tags(repository)) == {"v1", subject.digest.replace(":", "-")}
    manifest = registry.manifest(repository, one.digest)
    assert manifest.subject == subject
    assert registry.read_blob(repository, manifest.layers[0], limit=100) == b'{"a": 1}'


def test_artifacts_attached_at_once_are_all_listed(registry: Registry, repository: str, host: str) -> None:
    subject = push(registry, repository, "v1", b"content")

    def attach(number: int) -> Descriptor:
        with registries.connect(host) as own:
            return own.attach(repository, subject, artifact_type=STATEMENT, data=str(number).encode(), annotations={})

    with ThreadPoolExecutor(3) as pool:
        attached = set(pool.map(attach, range(3)))
    assert set(registry.referrers(repository, subject.digest)) == attached
    assert len(attached) == 3


def test_a_blob_is_mounted_from_another_repository(registry: Registry, repository: str) -> None:
    push(registry, repository, "v1", b"shared")
    layer = registry.manifest(repository, "v1").layers[0]
    other = f"{repository}-other"
    assert registry.mount(other, layer.digest, repository)
    assert registry.read_blob(other, layer, limit=layer.size) == gzip.compress(tar(b"shared"), mtime=0)
    assert not registry.mount(other, records.digest_of(b"nowhere"), repository)


def test_a_manifest_is_deleted_by_digest_and_its_tags_with_it(registry: Registry, repository: str) -> None:
    named = push(registry, repository, "v1", b"content")
    registry.put_manifest(repository, "v2", registry.manifest(repository, "v1").data, records.OCI_MANIFEST)
    assert not registry.delete(repository, "v1"), "this registry deletes no single tag"
    assert registry.delete(repository, named.digest)
    assert registry.head(repository, "v1") is None
    assert registry.head(repository, "v2") is None
    assert registry.tags(repository) == ()


@pytest.mark.parametrize("part", ["layer", "config", "manifest"])
def test_one_byte_changed_in_the_registry_is_found(
    registry: Registry, repository: str, real_catalog: Catalog, part: str
) -> None:
    push(registry, repository, "v1", secrets.token_bytes(50_000))
    manifest = registry.manifest(repository, "v1")
    assert manifest.config
    digest = {"layer": manifest.layers[0], "config": manifest.config, "manifest": manifest.descriptor}[part].digest
    value = digest.removeprefix("sha256:")
    stored = real_catalog.state / f"engine/registry/docker/registry/v2/blobs/sha256/{value[:2]}/{value}/data"
    before = stored.read_bytes()
    place = len(before) // 2
    stored.write_bytes(before[:place] + bytes([before[place] ^ 1]) + before[place + 1 :])
    try:
        with pytest.raises((Damaged, errors.Missing)):
            layers.find(image.open_image(registry, repository, "v1"), ["file"], progress=quiet)
    finally:
        stored.write_bytes(before)
    assert layers.find(image.open_image(registry, repository, "v1"), ["file"], progress=quiet)


# images that BuildKit made


@pytest.fixture(scope="module")
def built(real_engine: Engine, real_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real image with whiteouts, an opaque folder, hard links and symlinks, pushed as `gzip` and as `zstd`."""
    if not real_engine.registry:
        pytest.skip("the machine's own engine has no registry beside it")
    folder = tmp_path_factory.mktemp("context")
    (folder / "Dockerfile").write_text(DOCKERFILE, encoding="utf-8")
    (folder / "steps.py").write_text(STEPS, encoding="utf-8")
    root = base.ensure("base", real_catalog.state / "bases", Reporter(quiet=True))
    name = f"kiln-test/layers-{secrets.token_hex(4)}"
    for kind in ("gzip", "zstd"):
        output = {
            "type": "image",
            "name": f"{real_engine.registry}/{name}:{kind}",
            "push": "true",
            "store": "false",
            "compression": kind,
            "force-compression": "true",
            "oci-mediatypes": "true",
        }
        process.ask(
            (
                *real_engine.buildx,
                "build",
                f"--output={','.join(f'{key}={value}' for key, value in output.items())}",
                f"--build-context=base={root.context}",
                "--provenance=false",
                str(folder),
            ),
            env=real_engine.environment(),
        )
    yield name
    with registries.connect(real_engine.registry) as registry:
        for kind in ("gzip", "zstd"):
            if head := registry.head(name, kind):
                registry.delete(name, head.digest)


def everything(content: Content) -> dict[str, layers.Found]:
    return layers.scan(content, lambda _: True, layers=None, progress=quiet)


def in_a_container(client: DockerClient, name: str, place: Path) -> dict[str, tuple[str, str]]:
    """Return kind, and sha256 or target, of everything that a container of the image has."""
    container = client.containers.create(name, command=["true"])
    try:
        with place.open("wb") as out:
            out.writelines(container.export())  # type: ignore[arg-type]  # the stubs say text
    finally:
        container.remove()
    found: dict[str, tuple[str, str]] = {}
    with tarfile.open(place) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() or member.islnk() else None
            kind = "folder" if member.isdir() else "link" if member.issym() else "file" if file else "other"
            text = hashlib.sha256(file.read()).hexdigest() if file else member.linkname
            found[member.name.strip("/")] = kind, text
    return found


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
def test_a_scan_sees_what_a_container_sees(
    client: DockerClient, registry: Registry, built: str, kind: str, *, tmp_path: Path
) -> None:
    remote = image.open_image(registry, built, kind)
    assert {layer.media_type.rpartition("+")[2] for layer in remote.layers} == {kind}
    name = f"{registry.host}/{built}:{kind}"
    client.images.pull(name)
    try:
        real = in_a_container(client, name, tmp_path / "export.tar")
        with (tmp_path / "saved.tar").open("wb") as out:
            out.writelines(client.images.get(name).save())
    finally:
        client.images.remove(name)
    found = everything(remote)
    mine = {path: (each.kind, each.sha256 or each.link) for path, each in found.items()}
    outside = {path for path in real.keys() ^ mine.keys() if path.partition("/")[0] not in {"dev", "proc", "sys"}}
    assert outside <= ENGINES_OWN
    assert not {path for path in (real.keys() & mine.keys()) - ENGINES_OWN if real[path] != mine[path]}
    assert found["d/one"].mode == 0o4711
    assert found["d/hard"].sha256 == found["d/one"].sha256 == found["d/again"].sha256
    own = saved.open_saved(tmp_path / "saved.tar")
    assert own.digest == remote.digest
    assert everything(own) == found


def test_the_layers_below_are_not_fetched_for_what_the_top_one_has(registry: Registry, built: str) -> None:
    told: list[str] = []
    remote = image.open_image(registry, built, "gzip")
    began = time.monotonic()
    found = layers.find(remote, ["d/linked", "d/turned/in", "d/e/noise", "d/two", "d/opaque/low"], progress=told.append)
    assert set(found) == {"d/linked", "d/turned/in"}
    assert found["d/linked"].data == DOCKERFILE.encode()
    assert len(told) == 3, "the base, and the layer with the noise, decide nothing"
    assert time.monotonic() - began < 5
