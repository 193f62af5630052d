"""The patch engine in real containers and on a real image: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import io
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from kiln import errors, lint, plan, trees
from kiln.patching.outcomes import digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import docker

    from kiln.catalog import Catalog
    from kiln.plan import Plan

SITE = "/usr/local/lib/python3.11/dist-packages"
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"
TARGET = trees.Wanted(variant="mxfp8", arch="gfx942")
NONE = trees.Wanted()
SLEEP = ["-B", "-c", "import time; time.sleep(600)"]


@contextlib.contextmanager
def started(client: docker.DockerClient, image: str, **options: Any) -> Iterator[Any]:
    container = client.containers.create(image, network_mode="none", **options)
    try:
        container.start()
        yield container
    finally:
        container.remove(force=True, v=True)


@pytest.fixture
def server(client: docker.DockerClient, twin_image: str) -> Iterator[Any]:
    """A running container of the twin, as a person has one."""
    with started(client, twin_image, entrypoint=["python3"], command=SLEEP) as container:
        yield container


@pytest.fixture
def bare_image(client: docker.DockerClient) -> Iterator[str]:
    """An image of one file, which is no Python."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("empty"))
    made = client.api.import_image_from_data(archive.getvalue(), repository="kiln-test/bare", tag="latest")
    assert "error" not in str(made)
    yield "kiln-test/bare:latest"
    client.images.remove("kiln-test/bare:latest", force=True)


def read(container: Any, path: str) -> bytes:
    stream, _ = container.get_archive(path)
    with tarfile.open(fileobj=io.BytesIO(b"".join(stream))) as archive:
        member = archive.extractfile(archive.getmembers()[0])
        assert member is not None
        return member.read()


def put(container: Any, path: str, data: bytes) -> None:
    archive = io.BytesIO()
    folder, _, name = path.rpartition("/")
    with tarfile.open(fileobj=archive, mode="w") as tar:
        row = tarfile.TarInfo(name)
        row.size = len(data)
        tar.addfile(row, io.BytesIO(data))
    container.put_archive(folder, archive.getvalue())


def changed(container: Any) -> set[str]:
    """Return what differs from the image, folders left out."""
    rows = {row["Path"] for row in container.diff() or []}
    return {row for row in rows if not any(other.startswith(f"{row}/") for other in rows)}


def outcome(answer: trees.Answer) -> tuple[str, int]:
    return answer.report.outcome.value, answer.exit_code


@pytest.mark.parametrize("verb", ["verify", "status"])
@pytest.mark.parametrize("wanted", [TARGET, NONE])
def test_the_twin_image_holds_its_series(
    client: docker.DockerClient, real_catalog: Catalog, twin_image: str, *, verb: trees.Verb, wanted: trees.Wanted
) -> None:
    before = {container.id for container in client.containers.list(all=True)}
    found = trees.run(verb, trees.Where(image=twin_image), wanted, real_catalog)
    assert outcome(found) == ("ALREADY_APPLIED", 0)
    assert (found.root, found.version) == (SITE, "0.31.0+cpu")
    series = plan.make(real_catalog, variant="mxfp8", arch="gfx942").series
    assert [patch.id for patch in found.report.patches] == [use.id for use in series]
    ours = client.containers.list(all=True, filters={"label": "ai.kiln.made-for=patch"})
    assert {container.id for container in ours} <= before


def test_a_running_container_is_checked_tampered_reverted_and_applied_again(
    real_catalog: Catalog, server: Any, twin_plan: Plan
) -> None:
    where = trees.Where(container=server.name)

    def run(verb: trees.Verb, wanted: trees.Wanted = NONE) -> trees.Answer:
        return trees.run(verb, where, wanted, real_catalog)

    assert outcome(run("status")) == ("ALREADY_APPLIED", 0)
    assert outcome(run("verify", TARGET)) == ("ALREADY_APPLIED", 0)
    assert changed(server) == set()

    chain = [(pre, post) for use in twin_plan.series for path, pre, post in use.files if path == PARSER]
    patched = read(server, f"{SITE}/{PARSER}")
    put(server, f"{SITE}/{PARSER}", patched + b"# by hand\n")
    found = run("verify", TARGET)
    assert outcome(found) == ("TARGET_MODIFIED", 5)
    assert PARSER in {file.path for patch in found.report.patches for file in patch.files if not file.outcome.done}
    assert outcome(run("revert"))[1] == 5

    put(server, f"{SITE}/{PARSER}", patched)
    assert outcome(run("revert")) == ("REVERTED", 0)
    assert digest(read(server, f"{SITE}/{PARSER}")) == chain[0][0]
    assert outcome(run("apply", TARGET)) == ("APPLIED", 0)
    assert digest(read(server, f"{SITE}/{PARSER}")) == chain[-1][1]
    before = changed(server)
    assert outcome(run("apply", TARGET)) == ("ALREADY_APPLIED", 0)
    assert changed(server) == before
    assert all(row.startswith(f"{SITE}/vllm") for row in before), before


def test_a_failed_run_leaves_nothing_inside(real_catalog: Catalog, server: Any) -> None:
    wanted = trees.Wanted(variant="mxfp8", arch="gfx942", release="0.33.0")
    with pytest.raises(errors.BadInput, match=r"container .*: .* holds vllm 0\.31\.0\+cpu, the series is for 0\.33\.0"):
        trees.run("apply", trees.Where(container=server.name), wanted, real_catalog)
    assert changed(server) == set()


def test_a_container_of_another_user_is_patched_as_root(
    client: docker.DockerClient, real_catalog: Catalog, twin_image: str
) -> None:
    with started(client, twin_image, entrypoint=["python3"], command=SLEEP, user="1000:1000") as container:
        where = trees.Where(container=container.name)
        assert outcome(trees.run("revert", where, NONE, real_catalog)) == ("REVERTED", 0)


def test_a_container_with_tmp_in_memory_is_reached(
    client: docker.DockerClient, real_catalog: Catalog, twin_image: str
) -> None:
    with started(client, twin_image, entrypoint=["python3"], command=SLEEP, tmpfs={"/tmp": ""}) as container:
        found = trees.run("verify", trees.Where(container=container.name), NONE, real_catalog)
        assert outcome(found) == ("ALREADY_APPLIED", 0)


def test_a_read_only_container_is_named(client: docker.DockerClient, real_catalog: Catalog, twin_image: str) -> None:
    with (
        started(client, twin_image, entrypoint=["python3"], command=SLEEP, read_only=True) as container,
        pytest.raises(errors.CommandFailed, match="read-only"),
    ):
        trees.run("verify", trees.Where(container=container.name), NONE, real_catalog)


def test_a_stopped_and_an_unknown_container_are_exit_code_3(real_catalog: Catalog, server: Any) -> None:
    server.kill()
    server.wait()
    with pytest.raises(errors.Missing, match="is exited, not running"):
        trees.run("status", trees.Where(container=server.name), NONE, real_catalog)
    with pytest.raises(errors.Missing, match="no such container; running: "):
        trees.run("status", trees.Where(container="kiln-nowhere"), NONE, real_catalog)
    with pytest.raises(errors.Missing, match="the engine does not have it"):
        trees.run("status", trees.Where(image="kiln-test/nowhere"), NONE, real_catalog)


def test_an_image_without_python_is_exit_code_3(
    client: docker.DockerClient, real_catalog: Catalog, bare_image: str
) -> None:
    with pytest.raises(errors.Missing, match="its python3 cannot be started") as caught:
        trees.run("verify", trees.Where(image=bare_image), NONE, real_catalog)
    assert caught.value.exit_code == 3
    assert not client.containers.list(all=True, filters={"ancestor": bare_image})


def test_a_running_container_without_python_is_exit_code_3(
    client: docker.DockerClient, real_catalog: Catalog, twin_image: str
) -> None:
    """The interpreter goes away under a process that keeps running."""
    hide = "import os, time; os.environ['PATH'] = ''; [os.remove(p) for p in ('/usr/bin/python3',)]; time.sleep(600)"
    with started(client, twin_image, entrypoint=["python3"], command=["-B", "-c", hide]) as container:
        for _ in range(50):
            if "/usr/bin/python3" in {row["Path"] for row in container.diff() or []}:
                break
        with pytest.raises(errors.Missing, match=r"its python3 cannot be started|no python3 in it"):
            trees.run("verify", trees.Where(container=container.name), NONE, real_catalog)
        assert not [row for row in changed(container) if row.startswith("/.kiln-")]


def test_nothing_is_found_in_the_real_catalog(real_catalog: Catalog, tmp_path: Path) -> None:
    """Every edition is made again from files that the index serves now, not from the cache."""
    assert list(lint.patches(replace(real_catalog, state=tmp_path))) == []
