from __future__ import annotations

from pathlib import Path

from kiln.image import buildx


def build(**changes: object) -> buildx.Build:
    values: dict[str, object] = {
        "dockerfile": Path("/c/images/twin/Dockerfile"),
        "context": Path("/s/context"),
        "contexts": {},
        "args": {},
        "inherited": (),
        "secrets": {},
        "labels": {},
        "network": "none",
        "metadata": Path("/s/metadata.json"),
    }
    return buildx.Build(**(values | changes))  # type: ignore[arg-type]  # one value a field


def test_the_whole_command() -> None:
    full = build(
        contexts={"base": "docker-image://r/i@sha256:0", "tools": "/s/tools"},
        args={"PYTHON": "3.11", "EMPTY": ""},
        inherited=("http_proxy",),
        secrets={"ca.crt": Path("/etc/ca bundle.crt"), "uv.toml": Path("/s/uv.toml")},
        labels={"org.opencontainers.image.revision": "abc", "a": "b=c d"},
        network="host",
    )
    assert buildx.command(full, docker="/opt/docker") == (
        "/opt/docker",
        "buildx",
        "build",
        "--progress=plain",
        "--platform=linux/amd64",
        "--provenance=false",
        "--load",
        "--network=host",
        "--metadata-file=/s/metadata.json",
        "--file=/c/images/twin/Dockerfile",
        "--build-arg=SOURCE_DATE_EPOCH=1735689600",
        "--build-arg=PYTHON=3.11",
        "--build-arg=EMPTY=",
        "--build-arg=http_proxy",
        "--build-context=base=docker-image://r/i@sha256:0",
        "--build-context=tools=/s/tools",
        "--secret=id=ca.crt,src=/etc/ca bundle.crt",
        "--secret=id=uv.toml,src=/s/uv.toml",
        "--label=org.opencontainers.image.revision=abc",
        "--label=a=b=c d",
        "/s/context",
    )


def test_the_smallest_command() -> None:
    assert buildx.command(build()) == (
        "docker",
        "buildx",
        "build",
        "--progress=plain",
        "--platform=linux/amd64",
        "--provenance=false",
        "--load",
        "--network=none",
        "--metadata-file=/s/metadata.json",
        "--file=/c/images/twin/Dockerfile",
        "--build-arg=SOURCE_DATE_EPOCH=1735689600",
        "/s/context",
    )
