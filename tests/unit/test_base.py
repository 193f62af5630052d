"""The same root gives the same image, and a root that failed gives none."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
from typing import TYPE_CHECKING

import pytest

from kiln import errors, process
from kiln.image import base
from kiln.report import Reporter
from kiln.upstream import debian

if TYPE_CHECKING:
    from pathlib import Path

DATA = base._DATA


def small_root(folder: Path) -> Path:
    (folder / "etc").mkdir(parents=True)
    (folder / "etc" / "name").write_text("kiln\n")
    (folder / "bin").symlink_to("usr/bin")
    return folder


def layout(folder: Path, *, compressed: bool) -> str:
    folder.mkdir()
    tar = folder / "root.tar"
    process.ask(base.tar_argv(small_root(folder / "root"), tar))
    return base.write_layout(tar, folder / "oci", architecture="amd64", compressed=compressed, smallest=1)


@pytest.mark.parametrize("compressed", [True, False])
def test_two_runs_give_one_digest(tmp_path: Path, *, compressed: bool) -> None:
    first = layout(tmp_path / "a", compressed=compressed)
    os.utime(tmp_path / "a" / "root" / "etc" / "name")
    assert layout(tmp_path / "b", compressed=compressed) == first

    oci = tmp_path / "b" / "oci"
    blobs = oci / "blobs" / "sha256"
    assert {hashlib.sha256(blob.read_bytes()).hexdigest() for blob in blobs.iterdir()} == {
        blob.name for blob in blobs.iterdir()
    }
    index = json.loads((oci / "index.json").read_text())
    assert [manifest["digest"] for manifest in index["manifests"]] == [first]
    manifest = json.loads((blobs / first.removeprefix("sha256:")).read_text())
    config = json.loads((blobs / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
    layer = (blobs / manifest["layers"][0]["digest"].removeprefix("sha256:")).read_bytes()
    tar = gzip.decompress(layer) if compressed else layer
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar).hexdigest()}"]
    assert config["created"] == "2023-11-14T22:13:20Z"
    assert tar == (tmp_path / "b" / "root.tar").read_bytes()


def test_an_empty_tar_is_no_root(tmp_path: Path) -> None:
    tar = tmp_path / "root.tar"
    tar.touch()
    with pytest.raises(errors.CommandFailed, match=r"root\.tar: 0 bytes are too few for a root file system"):
        base.write_layout(tar, tmp_path / "oci", architecture="amd64")
    assert not (tmp_path / "oci").exists()


def test_the_package_lists() -> None:
    shipped = base.read_list(DATA / "packages.txt")
    assert {"libnuma1", "util-linux", "ca-certificates", "python3.11-minimal"} <= set(shipped)
    assert list(shipped) == sorted(shipped)
    assert "binutils" in base.read_list(DATA / "builder.txt")
    assert "binutils" not in shipped


def test_a_made_layout_needs_no_network_and_no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = base.read_list(DATA / "packages.txt")
    debs = tmp_path / "debs" / f"base-{base._digest(packages)[:12]}"
    debs.mkdir(parents=True)
    (debs / "REQUEST").write_text(debian._request(packages, suite=base.SUITE, dependencies=True))
    (debs / "SHA256SUMS").write_text(f"{'a' * 64}  libc6_2.36-9_amd64.deb\n")
    monkeypatch.setenv("PATH", "/nowhere")
    fetched = debian.fetched(packages, suite=base.SUITE, dest=debs, dependencies=True)
    place = base._place(tmp_path, "base", fetched, DATA / "finish.sh")
    place.mkdir()
    record = {"digest": "sha256:d", "packages": [{"name": "libc6", "version": "2.36-9", "sha256": "a" * 64}]}
    (place / "kiln.json").write_text(json.dumps(record))

    found = base.ensure("base", tmp_path, Reporter(io.StringIO()))
    package = base.Package(name="libc6", version="2.36-9", sha256="a" * 64)
    assert found == base.Layout(path=place, digest="sha256:d", packages=(package,))
    assert found.context == f"oci-layout://{place}@sha256:d"


def test_the_finish_script_is_part_of_the_key(tmp_path: Path) -> None:
    debs = (debian.Deb(name="a", version="1", path=tmp_path / "a.deb", sha256="0" * 64),)
    (tmp_path / "one.sh").write_text("true")
    (tmp_path / "two.sh").write_text("false")
    places = {base._place(tmp_path, "base", debs, tmp_path / f"{name}.sh") for name in ("one", "two")}
    assert len(places) == 2


def test_missing_tools_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_NEEDED", ("no-such-tool",))
    with pytest.raises(errors.Missing, match="which needs no-such-tool on this machine"):
        base.ensure("base", tmp_path, Reporter(io.StringIO()))
