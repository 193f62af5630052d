"""Drift on the files of an image that is never run: where they lie, which release they are, and what is refused."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import TYPE_CHECKING

import pytest

from kiln import errors
from kiln.drift import columns, run
from kiln.drift.records import Verdict
from kiln.report import Reporter
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import docker

    from kiln.catalog import Catalog

RELEASE = "0.31.0"
SITE = "opt/elsewhere/lib/python3.12/site-packages"
VERSION = f"__version__ = version = '{RELEASE}+rocm721'\n".encode()
NAME = "kiln-test/drift:latest"


@contextlib.contextmanager
def imported(client: docker.DockerClient, files: Mapping[str, bytes]) -> Iterator[str]:
    """Make an image of files alone: nothing in it could be started."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, data in files.items():
            about = tarfile.TarInfo(f"{SITE}/{path}")
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    name, tag = NAME.split(":")
    changes = ["ENV VIRTUAL_ENV=/opt/elsewhere"]
    client.api.import_image_from_data(archive.getvalue(), repository=name, tag=tag, changes=changes)
    try:
        yield NAME
    finally:
        client.images.remove(NAME, force=True)


@pytest.fixture(scope="module")
def released(real_catalog: Catalog) -> dict[str, bytes]:
    """The release's real files that patches touch."""
    pin = real_catalog.releases.releases[RELEASE].wheel
    return wheel.read(pin, columns.paths(real_catalog), cache=real_catalog.state / "wheels")


def verdicts(catalog: Catalog, image: str) -> dict[str, tuple[Verdict, bool]]:
    report = run.run(catalog, run.Ask(image=image), Reporter())
    assert [(column.kind, column.name) for column in report.columns] == [("image", f"image:{image}")]
    assert report.columns[0].identity.startswith("sha256:")
    return {cell.patch: (cell.verdict, cell.known) for cell in report.cells}


def test_an_image_of_a_release_is_as_the_release(
    real_catalog: Catalog, client: docker.DockerClient, released: dict[str, bytes]
) -> None:
    with imported(client, released | {"vllm/_version.py": VERSION}) as image:
        found = verdicts(real_catalog, image)
    release = run.run(real_catalog, run.Ask(release=RELEASE), Reporter())
    assert found == {cell.patch: (cell.verdict, cell.known) for cell in release.cells}
    assert found["mxfp8-moe-gfx942"] == (Verdict.CLEAN, True)


def test_an_image_with_another_file_is_drift(
    real_catalog: Catalog, client: docker.DockerClient, released: dict[str, bytes]
) -> None:
    path = next(iter(real_catalog.patches["gfx942-index-topk-pin"].editions[RELEASE].files))
    other = released | {path: b"# nightly\n" + released[path], "vllm/_version.py": VERSION}
    with imported(client, other) as image:
        verdict, known = verdicts(real_catalog, image)["gfx942-index-topk-pin"]
    assert (verdict, known) == (Verdict.OFFSET, False)


def test_an_image_that_kiln_has_patched_is_refused(
    real_catalog: Catalog, client: docker.DockerClient, twin_image: str
) -> None:
    del client
    with pytest.raises(errors.BadInput, match="Kiln has patched it already") as raised:
        verdicts(real_catalog, twin_image)
    assert raised.value.hint.startswith("./inv patch.verify --image")


def test_an_image_without_vllm_and_one_that_is_not_there(real_catalog: Catalog, client: docker.DockerClient) -> None:
    with imported(client, {"vllm/__init__.py": b""}) as image, pytest.raises(errors.Missing, match=r"_version\.py"):
        verdicts(real_catalog, image)
    with pytest.raises(errors.Missing, match="no such image"):
        verdicts(real_catalog, "kiln-test/nothing:here")
