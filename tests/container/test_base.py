"""The roots of the twin, made from the network with empty caches."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from kiln.image import base
from kiln.report import Reporter

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.image.base import Layout

QUIET = Reporter(io.StringIO())
Both = tuple["Layout", "Layout"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def both(cache: Path) -> Both:
    return base.ensure_both(cache, QUIET)


def members(layout: Layout) -> tarfile.TarFile:
    blobs = layout.path / "blobs" / "sha256"
    manifest = json.loads((blobs / layout.digest.removeprefix("sha256:")).read_text())
    return tarfile.open(blobs / manifest["layers"][0]["digest"].removeprefix("sha256:"))


def test_empty_caches_give_the_same_digest(both: Both, cache: Path, tmp_path: Path) -> None:
    again = base.ensure_both(tmp_path, QUIET)
    assert [layout.digest for layout in again] == [layout.digest for layout in both]
    assert again[0].packages == both[0].packages
    reporter = Reporter(io.StringIO())
    assert base.ensure_both(cache, reporter) == both
    assert reporter.timings == {}


def test_the_base_has_what_vllm_needs_and_no_mirror(both: Both) -> None:
    with members(both[0]) as tar:
        names = set(tar.getnames())
        text = b"".join(
            file.read()
            for member in tar.getmembers()
            if member.isfile() and member.name.startswith("./etc/") and (file := tar.extractfile(member))
        )
        modes = {member.mode & 0o6000 for member in tar.getmembers() if member.isfile()}
        owners = {(member.uid, member.gid) for member in tar.getmembers()}
    (library,) = {name.rpartition("/")[0] for name in names if name.endswith("/libc.so.6")}
    for path in (
        "./usr/bin/python3.11",
        "./usr/bin/python3",
        "./usr/bin/sh",
        "./usr/bin/lscpu",
        "./etc/ssl/certs/ca-certificates.crt",
        "./var/lib/dpkg/status.d/libnuma1",
        f"{library}/libnuma.so.1",
        f"{library}/libgomp.so.1",
        f"{library}/libstdc++.so.6",
    ):
        assert path in names, path
    assert not [name for name in names if "/apt/" in name or name.endswith(".pyc")]
    assert b"deb http" not in text
    assert b"URIs:" not in text
    assert modes == {0}
    assert owners == {(0, 0)}
    with members(both[0]) as tar:
        assert {tar.getmember(f"./{part}").linkname for part in ("bin", "sbin", "lib", "lib64")} == {
            "usr/bin",
            "usr/sbin",
            "usr/lib",
            "usr/lib64",
        }


def test_the_builder_can_strip(both: Both) -> None:
    with members(both[1]) as tar:
        assert {"./usr/bin/strip", "./usr/bin/python3"} <= set(tar.getnames())
