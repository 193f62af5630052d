"""How a target is served, as real tools read it: docker-compose, and an engine that makes and runs the container."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import resource
import signal
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docker.errors import NotFound

from kiln import errors, plan, process
from kiln.deploy import argv, compose, make, start, text
from kiln.deploy.records import Gpu, Wanted
from kiln.upstream import debian

if TYPE_CHECKING:
    from collections.abc import Iterator

    import docker

    from kiln.catalog import Catalog
    from kiln.deploy.records import Deployment
    from kiln.engine import Engine

SOURCE = Path(__file__).resolve().parents[2] / "src"
IMAGE = "kiln-test/busybox:latest"
NAME = "kiln-test-deploy"
GIB = 1 << 30
# a server that says what it was given, and ends when it is asked to
SERVER = b"""#!/bin/busybox sh
trap 'echo ended; exit 0' INT TERM
echo "serving $* with X=$X"
while :; do /bin/busybox sleep 0.1; done
"""
MEMLOCK = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]  # who is no full root cannot go beyond it
HERE = (Gpu(arch="gfx942", node="/dev/null"),)
RUN = """
import pickle, sys
from kiln.deploy import start
start.serve(*pickle.load(open(sys.argv[1], "rb")))
"""


@pytest.fixture(scope="session")
def docker_compose(real_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's docker-compose, not installed."""
    debs = debian.fetch(("docker-compose",), suite="sid", dest=real_catalog.state / "debs/docker-compose")
    root = tmp_path_factory.mktemp("compose")
    debian.unpack(debs, root)
    return root / "usr/libexec/docker/cli-plugins/docker-compose"


@pytest.fixture(scope="module")
def image(
    real_catalog: Catalog, client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A small image with a server that is no vLLM: Debian's static busybox, and a script named like it."""
    debs = debian.fetch(("busybox-static",), suite="bookworm", dest=real_catalog.state / "debs/busybox-static")
    root = tmp_path_factory.mktemp("busybox")
    debian.unpack(debs, root)
    (binary,) = root.glob("**/bin/busybox")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, data in (("bin/busybox", binary.read_bytes()), ("bin/vllm", SERVER)):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    assert "error" not in str(client.api.import_image_from_data(archive.getvalue(), repository="kiln-test/busybox"))
    yield IMAGE
    client.images.remove(IMAGE, force=True)


@pytest.fixture
def made(real_catalog: Catalog, image: str, client: docker.DockerClient) -> Iterator[Deployment]:
    """A ROCm deployment of that image with the devices that every machine has; what it makes is removed."""
    target = plan.make(real_catalog, variant="mxfp8", arch="gfx942")
    whole = make.make(target, Wanted(gid="109", port="18765"), gpus=())
    volume = f"{NAME}-cache"
    yield replace(
        *(whole,),
        name=NAME,
        image=image,
        pull="never",
        gpus=1,
        devices=("/dev/null", "/dev/zero"),
        command=("vllm", "serve", "a model"),
        env=(("X", "$Y"),),
        memlock=MEMLOCK,
        cache=volume,
        address="127.0.0.1",
    )
    with contextlib.suppress(NotFound):
        client.containers.get(NAME).remove(force=True)
    with contextlib.suppress(NotFound):
        client.volumes.get(volume).remove()


# compose


def read_by_compose(program: Path, written: str, folder: Path) -> Any:
    file = folder / "compose.yaml"
    file.write_text(written, encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "HF_TOKEN": "of-the-shell", "HOST": "not-this"}
    return json.loads(process.ask((str(program), "-f", str(file), "config", "--format", "json"), env=environment))


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ("mxfp8 gfx942", Wanted(form="compose", gid="44,109")),
        ("mxfp4 gfx950", Wanted(form="compose", cdi=True, port="192.0.2.1:9000")),
        ("mxfp8 sm90", Wanted(form="compose", cache="/srv/models")),
        ("nvfp4 sm100", Wanted(form="compose")),
        ("nvfp4 sm103", Wanted(form="compose", cdi=True, port="[::1]:9000")),
    ],
)
def test_compose_reads_what_was_meant(
    docker_compose: Path, real_catalog: Catalog, tmp_path: Path, *, target: str, wanted: Wanted
) -> None:
    variant, arch = target.split()
    whole = make.make(plan.make(real_catalog, variant=variant, arch=arch, release="0.31.0"), wanted)
    whole = replace(whole, env=(*whole.env, ("DOLLAR", "$HOST ${HOST}"), ("NUMBER", "1e3")))
    found = read_by_compose(docker_compose, text.as_yaml([compose.render(whole)]), tmp_path)
    service = found["services"][whole.name]
    assert (found["name"], service["image"], service["pull_policy"]) == (whole.name, whole.image, "never")
    assert [*service["entrypoint"], *service["command"]] == list(whole.command)
    # compose shows a dollar sign as it takes one: doubled
    doubled = {name: value.replace("$", "$$") for name, value in whole.env}
    assert service["environment"] == doubled | {"HF_TOKEN": "of-the-shell", "VLLM_API_KEY": None}
    assert (service["init"], service["ulimits"], service["stop_grace_period"]) == (True, {"memlock": -1}, "2m0s")
    check = service["healthcheck"]
    assert check["test"][:3] == ["CMD", "python3", "-c"]
    assert (check["start_period"], check["interval"], check["timeout"]) == ("2h0m0s", "30s", "20s")
    assert service["cap_drop"] == ["ALL"]
    assert service.get("cap_add", []) == list(whole.cap_add)
    assert service["security_opt"][1:] == (["seccomp=unconfined"] if whole.vendor == "amd" else [])
    assert int(service["shm_size"]) == 32 * GIB
    (port,) = service["ports"]
    shown = {"host_ip": whole.address.strip("[]"), "published": str(whole.port), "target": whole.server_port}
    assert shown.items() <= port.items()
    assert [device["source"] for device in service.get("devices", [])] == list(whole.devices)
    assert service.get("group_add", []) == [str(group) for group in whole.groups]
    (volume,) = service["volumes"]
    assert (volume["type"], volume["source"]) == ("bind" if whole.host_folder else "volume", whole.cache)
    if not whole.devices:
        wish = {"driver": "nvidia", "count": whole.gpus, "capabilities": ["gpu"]}
        assert service["deploy"]["resources"]["reservations"]["devices"] == [wish]
    assert "privileged" not in service


def test_compose_says_so_where_a_file_is_none(docker_compose: Path, made: Deployment, tmp_path: Path) -> None:
    file = compose.render(made)
    file["services"][NAME]["gpu_count"] = 8
    with pytest.raises(errors.CommandFailed, match="gpu_count"):
        read_by_compose(docker_compose, text.as_yaml([file]), tmp_path)


# docker


def test_an_engine_makes_the_container_that_was_meant(
    made: Deployment, real_engine: Engine, client: docker.DockerClient
) -> None:
    program, verb, remove, *words = argv.render(made, docker=real_engine.docker)
    assert (verb, remove) == ("run", "--rm")
    environment = real_engine.environment() | {"HF_TOKEN": "of-the-shell"}
    identity = process.ask((program, "create", *words), env=environment).splitlines()[-1]
    found = client.containers.get(identity).attrs
    host = found["HostConfig"]
    assert found["Config"]["Entrypoint"] == ["vllm"]
    assert found["Config"]["Cmd"] == ["serve", "a model"]
    assert {"X=$Y", "HF_TOKEN=of-the-shell"} <= set(found["Config"]["Env"])
    assert not [word for word in found["Config"]["Env"] if word.startswith("VLLM_API_KEY=")]  # unset here, unset there
    assert (host["Init"], found["Config"]["StopTimeout"]) == (True, 120)
    assert host["Ulimits"] == [{"Name": "memlock", "Soft": MEMLOCK, "Hard": MEMLOCK}]
    assert [device["PathOnHost"] for device in host["Devices"]] == ["/dev/null", "/dev/zero"]
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["CAP_SYS_PTRACE"])
    assert host["SecurityOpt"] == ["no-new-privileges", "seccomp=unconfined"]
    assert (host["GroupAdd"], host["ShmSize"], host["Privileged"]) == (["109"], 32 * GIB, False)
    assert (host["IpcMode"], host["PidMode"], host["UTSMode"], host["UsernsMode"]) == ("private", "", "", "")
    assert host["NetworkMode"] in {"default", "bridge"}
    assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "18765"}]}
    assert [mount["Type"] for mount in found["Mounts"]] == ["volume"]


def test_a_cache_folder_that_is_not_there_is_not_made(made: Deployment, real_engine: Engine, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    words = argv.render(replace(made, cache=str(folder), host_folder=True), docker=real_engine.docker)
    with pytest.raises(errors.CommandFailed, match="bind source path does not exist"):
        process.ask((words[0], "create", *words[3:]), env=real_engine.environment())
    assert not folder.exists()


def write(made: Deployment, engine: Engine, folder: Path) -> tuple[str, ...]:
    """Return the argv of a program that starts it, as `--exec` does."""
    (folder / "asked").write_bytes(pickle.dumps((made, engine)))
    return process.python("-c", RUN, str(folder / "asked"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_serves_until_it_is_interrupted_and_leaves_nothing(
    made: Deployment, real_engine: Engine, client: docker.DockerClient, tmp_path: Path, *, number: signal.Signals
) -> None:
    command = write(made, real_engine, tmp_path)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    ) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "serving serve a model with X=$Y\n"
        assert client.containers.get(NAME).status == "running"
        run.send_signal(number)
        said, complained = run.communicate(timeout=40)
    assert ("ended" in said) is (number == signal.SIGINT), complained
    assert gone(client, seconds=20)


def gone(client: docker.DockerClient, *, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            client.containers.get(NAME)
        except NotFound:
            return True
        time.sleep(0.1)
    return False


def test_a_container_of_that_name_is_not_replaced(
    made: Deployment, real_engine: Engine, client: docker.DockerClient, image: str
) -> None:
    there = client.containers.create(image, name=NAME, command=["/bin/vllm"])
    with pytest.raises(errors.BadInput, match=f"a container {NAME} is there already, and created") as caught:
        start.serve(made, real_engine)
    assert caught.value.hint == f"docker rm --force {NAME}"
    assert client.containers.get(NAME).id == there.id


def test_the_embedded_engine_serves_no_model(
    made: Deployment, real_catalog: Catalog, real_engine: Engine, client: docker.DockerClient
) -> None:
    assert real_engine.embedded
    with pytest.raises(errors.Missing, match="only Kiln's embedded engine answers"):
        start.run(replace(made, doubt=None), real_catalog.state / "engine", gpus=HERE)
    with pytest.raises(NotFound):
        client.containers.get(NAME)


def test_an_image_that_is_not_there_is_not_looked_for_elsewhere(made: Deployment, real_engine: Engine) -> None:
    with pytest.raises(errors.Missing, match="kiln/nothing:latest: the engine does not have it"):
        start.serve(replace(made, image="kiln/nothing:latest"), real_engine)


def test_an_image_that_is_not_its_receipts_is_not_started(
    made: Deployment, real_engine: Engine, client: docker.DockerClient, image: str
) -> None:
    other = client.api.import_image_from_data(b"\0" * 10240, repository="kiln-test/other")
    assert "error" not in str(other)
    try:
        digest = str(client.images.get("kiln-test/other").id)
        with pytest.raises(errors.Missing, match=f"{image} is not what its receipt says: {digest}"):
            start.serve(replace(made, digest=digest), real_engine)
    finally:
        client.images.remove("kiln-test/other", force=True)


def test_what_ends_by_itself_ends_the_task(made: Deployment, real_engine: Engine, client: docker.DockerClient) -> None:
    digest = str(client.images.get(made.image).id)
    failing = replace(made, digest=digest, command=("/bin/busybox", "false"))
    with pytest.raises(errors.CommandFailed, match="exit code 1"):
        start.serve(failing, real_engine)
    assert gone(client, seconds=5)
