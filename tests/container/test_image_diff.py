"""What differs between two images, read from a real registry and out of a real engine."""

from __future__ import annotations

import gzip
import io
import json
import secrets
import tarfile
from typing import TYPE_CHECKING

import pytest

from kiln import errors
from kiln.image import named
from kiln.image.diff import compare as diff
from kiln.image.diff.compare import Change, Diff
from kiln.registry import client as registries
from kiln.registry import records
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import docker

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.registry.client import Registry

KIND = "application/vnd.oci.image."
LOCAL = "kiln/test-diff:latest"
BASE = {"etc/os": b"base", "lib/x-1.dist-info/METADATA": b"Name: x\nVersion: 1\n"}
PATCHED = {
    "etc/os": b"patched",
    "opt/kiln/pins.json": b'{"kind": "rocm"}',
    "lib/.wh.x-1.dist-info": b"",
    "lib/x-2.dist-info/METADATA": b"Name: x\nVersion: 2\n",
}


def tar(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def push(registry: Registry, repository: str, tag: str, layers: Sequence[Mapping[str, bytes]]) -> str:
    """Push an image of these layers and return its digest."""
    tars = [tar(files) for files in layers]
    settings = {
        "os": "linux",
        "architecture": "amd64",
        "config": {"Env": [f"TAG={tag}"], "Cmd": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": [records.digest_of(data) for data in tars]},
    }
    kind = f"{KIND}layer.v1.tar+gzip"
    pushed = [registry.push_blob(repository, gzip.compress(data, mtime=0), kind) for data in tars]
    config = registry.push_blob(repository, json.dumps(settings).encode(), f"{KIND}config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": records.OCI_MANIFEST,
        "config": records.as_json(config),
        "layers": [records.as_json(layer) for layer in pushed],
    }
    return registry.put_manifest(repository, tag, json.dumps(manifest).encode(), records.OCI_MANIFEST)


@pytest.fixture
def repository(real_engine: Engine) -> Iterator[str]:
    """HOST/REPOSITORY with two images that share a layer; what was pushed is deleted."""
    if not real_engine.registry:
        pytest.skip("the machine's own engine has no registry beside it")
    name = f"kiln-test/diff-{secrets.token_hex(4)}"
    with registries.connect(real_engine.registry) as registry:
        digests = [push(registry, name, "base", [BASE]), push(registry, name, "patched", [BASE, PATCHED])]
        yield f"{real_engine.registry}/{name}"
        for digest in digests:
            registry.delete(name, digest)


def compare(catalog: Catalog, one: str, other: str) -> Diff:
    reporter = Reporter(quiet=True)
    with named.opened(one, catalog, reporter) as a, named.opened(other, catalog, reporter) as b:
        return diff.compare((one, other), a, b, progress=lambda _: None)


def check(found: Diff) -> None:
    assert found.shared_layers == 1
    assert found.shared_bytes == found.a.size
    assert found.pins == (Change(what="kind", a=None, b="rocm"),)
    assert found.python == (Change(what="x", a="1", b="2"),)
    assert found.environment == (Change(what="TAG", a="base", b="patched"),)
    assert [(each.path, each.how) for each in found.files] == [
        ("etc/os", "written by B"),
        ("lib/x-2.dist-info/METADATA", "written by B"),
        ("opt/kiln/pins.json", "written by B"),
        ("lib/x-1.dist-info", "deleted by B"),
    ]


def test_two_images_of_a_registry(repository: str, real_catalog: Catalog) -> None:
    check(compare(real_catalog, f"{repository}:base", f"{repository}:patched"))


def test_an_image_of_the_engine_is_the_same_as_the_one_it_was_pulled_from(
    repository: str, real_catalog: Catalog, client: docker.DockerClient
) -> None:
    pulled = client.images.pull(repository, tag="patched")
    pulled.tag(LOCAL)
    try:
        found = compare(real_catalog, f"{repository}:base", LOCAL)
        check(found)
        again = compare(real_catalog, f"{repository}:patched", LOCAL)
        assert (again.shared_layers, again.files, again.a.digest) == (2, (), again.b.digest)
        assert not list((real_catalog.state / "work").glob("saved-*"))
    finally:
        for name in (LOCAL, f"{repository}:patched"):
            client.images.remove(name)


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("kiln/nothing:latest", errors.Missing, "kiln/nothing:latest: the engine does not have it"),
        ("{repository}:nothing", errors.Missing, "the registry does not have it"),
        ("{repository}", errors.BadInput, "neither a tag nor a digest"),
        ("UPPER", errors.BadInput, "not the name of a repository"),
    ],
)
def test_what_is_no_image(
    repository: str, real_catalog: Catalog, *, name: str, kind: type[errors.KilnError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        compare(real_catalog, name.format(repository=repository), f"{repository}:base")
