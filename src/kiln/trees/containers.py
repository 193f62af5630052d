"""Containers as places: one that runs, and one made of an image for as long as it is looked at."""

from __future__ import annotations

import contextlib
import io
import secrets
import tarfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import requests
from docker.errors import APIError, ImageNotFound, NotFound

from kiln import errors, process
from kiln.engine import short_lived

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from docker import DockerClient

_MAX_OUTPUT_BYTES = 4_000_000
_TAR_BYTES = 20_480
_QUICK_S = 30
_GRACE_S = 10
_POLL_S = 0.02
_IMAGE_SECONDS = 1800
_SLEEP = f"import time; time.sleep({_IMAGE_SECONDS})"
_TOO_OLD = 96
_CHECK = f"import sys; sys.exit(0 if sys.version_info >= (3, 10) else {_TOO_OLD})"
# alarm and output outlive execv: the engine ends in time, and what it says lies in our folder, whoever still listens
_LAUNCH = """\
import os, signal, sys
signal.alarm(int(sys.argv[1]))
for stream, name in (1, "stdout"), (2, "stderr"):
    os.dup2(os.open(os.path.join(sys.argv[2], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), stream)
os.execv(sys.executable, [sys.executable, "-I", "-B", *sys.argv[3:]])
"""
_REMOVE = "import os, shutil, sys; os.path.lexists(sys.argv[1]) and shutil.rmtree(sys.argv[1])"
_NOT_FOUND = (126, 127)
_ROOT = "0"
ASKED = "/.kiln-asked"
_LOG_LINES = 10_000


@dataclass(frozen=True, kw_only=True)
class Inside:
    """A running container; `folder` is ours in it."""

    container: Any
    name: str
    folder: str
    root: str = ""

    def send(self, path: Path) -> str:
        """Put a file or folder into ours, readable for everyone, owned by root."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            top = tarfile.TarInfo(self.folder.lstrip("/"))
            top.type, top.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(top)
            tar.add(path, f"{top.name}/{path.name}", filter=_plain)
        with _spoken(self.name):
            self.container.put_archive("/", archive.getvalue())
        return f"{self.folder}/{path.name}"

    def run(self, argv: tuple[str, ...], *, seconds: int) -> process.Result:
        code = self.execute(_LAUNCH, str(seconds), self.folder, *argv, seconds=seconds + _GRACE_S)
        with _spoken(self.name):
            return process.Result(code=code, stdout=self._output("stdout"), stderr=self._output("stderr"))

    def execute(self, script: str, *words: str, seconds: float) -> int:
        """Run a Python script as root and return its exit code; polls, as an attached socket knows no time-out."""
        argv, api = ["python3", "-I", "-B", "-c", script, *words], self.container.client.api
        deadline = time.monotonic() + seconds
        with _spoken(self.name):
            made = api.exec_create(self.container.id, argv, stdout=False, stderr=False, user=_ROOT, workdir="/")
            try:
                api.exec_start(made["Id"], detach=True)
            except APIError as error:
                raise errors.Missing(f"{self.name}: its python3 cannot be started: {error.explanation}") from error
            while (state := api.exec_inspect(made["Id"]))["Running"]:
                if time.monotonic() > deadline:
                    raise errors.CommandFailed(f"{self.name}: no answer within {seconds:g} s")
                time.sleep(_POLL_S)
        return int(state["ExitCode"])

    def check_python(self) -> None:
        """Raise Missing unless the container has a Python that the engine runs on."""
        code = self.execute(_CHECK, seconds=_QUICK_S)
        if code in _NOT_FOUND:
            raise errors.Missing(
                f"{self.name}: no python3 in it", hint="the patch engine runs on the tree's own Python"
            )
        if code == _TOO_OLD:
            raise errors.Missing(f"{self.name}: its python3 is older than 3.10, which the patch engine needs")
        if code:
            raise errors.Missing(f"{self.name}: its python3 does not start: exit code {code}")

    def clear(self) -> None:
        """Remove our folder; raises CommandFailed when it stays."""
        if code := self.execute(_REMOVE, self.folder, seconds=_QUICK_S):
            raise errors.CommandFailed(
                f"{self.name}: {self.folder} could not be removed from it: exit code {code}",
                hint="remove that folder in the container; nothing uses it",
            )

    def _output(self, name: str) -> str:
        """Return what the engine printed; "" where it did not get that far."""
        archive = bytearray()
        try:
            stream, stat = self.container.get_archive(f"{self.folder}/{name}")
        except NotFound:
            return ""
        if stat["size"] > _MAX_OUTPUT_BYTES:
            raise errors.CommandFailed(f"{self.name}: printed more than {_MAX_OUTPUT_BYTES} bytes")
        for block in stream:
            archive += block
            if len(archive) > _MAX_OUTPUT_BYTES + _TAR_BYTES:
                raise errors.CommandFailed(f"{self.name}: printed more than {_MAX_OUTPUT_BYTES} bytes")
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            member = tar.extractfile(tar.getmembers()[0])
            return member.read().decode("utf-8", "replace") if member else ""


@contextlib.contextmanager
def running(client: DockerClient, name: str) -> Iterator[Inside]:
    """Yield a running container as a place; our folder is removed from it in any case.

    Raises Missing for a container that is not there, does not run, or has no Python.
    """
    shown = f"container {name}"
    try:
        container = client.containers.get(name)
    except NotFound as error:
        names = ", ".join(sorted(str(other.name) for other in client.containers.list())) or "none"
        raise errors.Missing(f"{shown}: no such container; running: {names}", hint="docker ps") from error
    if container.status != "running":
        raise errors.Missing(f"{shown}: is {container.status}, not running", hint=f"docker start {name}")
    place = Inside(container=container, name=shown, folder=_fresh())
    place.check_python()
    try:
        yield place
    finally:
        place.clear()


@contextlib.contextmanager
def made_of(client: DockerClient, image: str) -> Iterator[Inside]:
    """Yield a container of an image, without network, removed at the end; Raises Missing for no image or no Python."""
    shown = f"image {image}"
    with contextlib.ExitStack() as stack:
        try:
            container = stack.enter_context(
                short_lived.created(
                    client,
                    image,
                    entrypoint=["python3"],
                    command=["-I", "-B", "-c", _SLEEP],
                    user=_ROOT,
                    healthcheck={"test": ["NONE"]},
                )
            )
        except ImageNotFound as error:
            raise errors.Missing(f"{shown}: the engine does not have it", hint=f"docker pull {image}") from error
        except APIError as error:
            raise errors.Missing(f"{shown}: {error.explanation}") from error
        try:
            container.start()
        except APIError as error:
            raise errors.Missing(f"{shown}: its python3 cannot be started: {error.explanation}") from error
        place = Inside(container=container, name=shown, folder=_fresh())
        place.check_python()
        yield place


@contextlib.contextmanager
def answering(
    client: DockerClient, image: str, files: Sequence[Path], words: Sequence[str], *, seconds: int
) -> Iterator[tuple[Inside, process.Result]]:
    """Yield what one Python program says as the only process of a container of an image, and the ended container.

    `files` lie in ASKED when it starts. Quicker than `made_of`, for an image that is known to hold a Python.
    """
    shown = f"image {image}"
    command = ["-I", "-B", *words]
    with short_lived.created(
        client, image, entrypoint=["python3"], command=command, user=_ROOT, healthcheck={"test": ["NONE"]}
    ) as container:
        place = Inside(container=container, name=shown, folder=ASKED)
        for path in files:
            place.send(path)
        with _spoken(shown):
            container.start()
            try:
                code = container.wait(timeout=seconds)["StatusCode"]
            except requests.RequestException as error:
                raise errors.CommandFailed(f"{shown}: no answer within {seconds} s") from error
            said, complained = (container.logs(stdout=out, stderr=not out, tail=_LOG_LINES) for out in (True, False))
        yield place, process.Result(code=code, stdout=said.decode(), stderr=complained.decode("utf-8", "replace"))


def _fresh() -> str:
    """Return a folder in a container's own file system: /tmp may be a mount that no archive reaches."""
    return f"/.kiln-{secrets.token_hex(6)}"


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o755 if member.isdir() else 0o644
    return member


@contextlib.contextmanager
def _spoken(name: str) -> Iterator[None]:
    try:
        yield
    except APIError as error:
        raise errors.CommandFailed(f"{name}: {error.explanation or error}") from error
