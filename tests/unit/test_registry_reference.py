from __future__ import annotations

import json

import pytest

from kiln import errors
from kiln.registry import records, reference
from kiln.registry.records import Damaged, Descriptor
from kiln.registry.reference import Reference

HEX = "0123456789abcdef" * 4
DIGEST = f"sha256:{HEX}"


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("debian", "docker.io/library/debian"),
        ("vllm/vllm-openai:v0.31.0", "docker.io/vllm/vllm-openai:v0.31.0"),
        ("docker.io/debian:12", "docker.io/library/debian:12"),
        ("index.docker.io/vllm/x", "docker.io/vllm/x"),
        ("localhost/a", "localhost/a"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
        ("127.0.0.1:7778/a@" + DIGEST, "127.0.0.1:7778/a@" + DIGEST),
        ("[::1]:5000/a:T_-.1", "[::1]:5000/a:T_-.1"),
        (f"nvcr.io/nvidia/a__b-c.d:1@{DIGEST}", f"nvcr.io/nvidia/a__b-c.d:1@{DIGEST}"),
        ("quay.io/a--b/c", "quay.io/a--b/c"),
        ("a.b/c", "a.b/c"),
        ("ab/c", "docker.io/ab/c"),
    ],
)
def test_a_name_is_read_as_docker_reads_it(text: str, full: str) -> None:
    found = reference.parse(text)
    assert str(found) == full
    assert reference.parse(full) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Debian",
        "vllm/Vllm",
        "Registry.io/a",
        "a//b",
        "/a",
        "a/",
        "a:",
        "a@",
        "a b",
        "a\n",
        "a:tag\n",
        "a:.tag",
        "a:" + "t" * 129,
        "a" * 256,
        "a__b___c",
        "-a",
        "a..b",
        "ä",
        "a:ä",
        "https://quay.io/a",
        "quay.io:0/a",
        "quay.io:65536/a",
        "-quay.io/a",
        "quay..io/a",
        "u:p@quay.io/a",
        "[:::::]/a",
        "[1]:5000/a",
        HEX,
        "a@sha256:" + "0" * 63,
        "a@sha256:" + "A" * 64,
        "a@sha512:" + "0" * 128,
        "a@md5:" + "0" * 32,
        f"a@{DIGEST}\n",
        f"a@{DIGEST}@{DIGEST}",
        "\x1b[31ma",
    ],
)
def test_what_is_no_reference_is_refused_and_not_echoed_raw(text: str) -> None:
    with pytest.raises(errors.BadInput) as caught:
        reference.parse(text)
    assert "\x1b" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_reference_is_moved_to_a_digest_or_a_tag() -> None:
    found = reference.parse(f"quay.io/a/b:1@{DIGEST}")
    assert found == Reference(host="quay.io", repository="a/b", tag="1", digest=DIGEST)
    assert found.name == "quay.io/a/b"
    assert str(found.at(DIGEST)) == f"quay.io/a/b@{DIGEST}"
    assert str(found.tagged("2")) == "quay.io/a/b:2"
    with pytest.raises(errors.BadInput):
        found.at("sha256:1")
    with pytest.raises(errors.BadInput):
        found.tagged("a b")


CONTENT = {"mediaType": "x", "digest": DIGEST, "size": 2}
IMAGE = {"schemaVersion": 2, "mediaType": records.OCI_MANIFEST, "config": CONTENT, "layers": [CONTENT]}


def test_a_manifest_is_read_whole() -> None:
    platform = {"os": "linux", "architecture": "arm64", "variant": "v8"}
    listed = {**CONTENT, "platform": platform, "annotations": {"b": "2", "a": "1"}, "artifactType": "t"}
    data = json.dumps({"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": [listed]}).encode()
    found = records.read_manifest(data, "", "x")
    assert found.is_index
    assert found.digest == records.digest_of(data)
    assert found.manifests == (
        Descriptor(
            media_type="x",
            digest=DIGEST,
            size=2,
            platform="linux/arm64/v8",
            annotations=(("a", "1"), ("b", "2")),
            artifact_type="t",
        ),
    )
    assert records.as_json(found.manifests[0]) == listed


@pytest.mark.parametrize(
    "change",
    [
        {"schemaVersion": 1},
        {"mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws"},
        {"mediaType": records.DOCKER_MANIFEST},
        {"mediaType": 5},
        {"config": {**CONTENT, "platform": "linux"}},
        {"manifests": []},
        {"config": None},
        {"config": "x"},
        {"config": {**CONTENT, "size": -1}},
        {"config": {**CONTENT, "size": True}},
        {"config": {**CONTENT, "size": 1 << 60}},
        {"config": {**CONTENT, "digest": "sha512:" + "0" * 128}},
        {"config": {**CONTENT, "digest": "../../etc/passwd"}},
        {"layers": {}},
        {"layers": [CONTENT] * 10_001},
        {"annotations": {"a": 1}},
        {"subject": {"mediaType": "x"}},
    ],
)
def test_a_manifest_that_is_not_one_is_damaged(change: dict[str, object]) -> None:
    data = json.dumps(IMAGE | change).encode()
    with pytest.raises(Damaged):
        records.read_manifest(data, records.OCI_MANIFEST, "x")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"schemaVersion": 2, "schemaVersion": 2}', b'{"schemaVersion": 2}', b"\xff"],
)
def test_bytes_that_are_no_manifest_are_damaged(data: bytes) -> None:
    with pytest.raises(Damaged):
        records.read_manifest(data, records.OCI_MANIFEST, "x")
