"""Serves one image with one checkpoint in a container, and says at once and by phase when that does not work."""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import docker
import docker.errors
import requests
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.waiting_utils import WaitStrategy

from kiln import errors
from kiln.smoke import caches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from docker.models.containers import Container
    from testcontainers.core.waiting_utils import WaitStrategyTarget

    from kiln.engine.guard import Session

PORT = 8000
MODEL = "/puppet"
_LOG_LINES = 40
_POLL_S = 0.2
STOP_S = 10
_REMOVE_S = 2  # for a run that was interrupted; a whole run has stopped its server before
# what the smoke run decides itself: a recipe's flag of the same name would be silently doubled
_OWN_FLAGS = ("--host", "--port", "--served-model-name")
_TWIN_FLAGS = ("--distributed-executor-backend=uni", "--enforce-eager")


class Engine(Protocol):
    """A Docker engine: the DOCKER_HOST value of it, and the SDK's client."""

    @property
    def host(self) -> str: ...

    def client(self) -> docker.DockerClient: ...


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image in the engine: its id, a sha256, and the diff ids of its layers."""

    digest: str
    layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ServeSpec:
    """One server: an image by its digest, a checkpoint, and what the serve command gets."""

    image: str
    model: Path
    flags: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    volumes: tuple[caches.Volume, ...] = ()
    served_name: str = "kiln-puppet"


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stretch of a start: the log line that begins it and how long it may take."""

    name: str
    begins: str
    limit_s: float


PHASES = (
    Phase(name="starting the container", begins=r"\A", limit_s=180),
    Phase(name="importing", begins=r"\S", limit_s=180),
    Phase(name="loading weights", begins=r"Starting to load model|Loading weights", limit_s=120),
    Phase(
        name="profiling and KV cache",
        begins=r"Loading weights took|Model loading took|Warming up model|KV cache size",
        limit_s=120,
    ),
    Phase(
        name="starting the API",
        begins=r"init engine \(|Starting vLLM (?:API )?server|Started server process",
        limit_s=60,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Running:
    """A server that answers; `seconds` is how long it took until it did."""

    url: str
    seconds: float
    container: Container

    def log(self) -> str:
        return _log(self.container, lines=None)

    def stop(self) -> int:
        """Ask the server to end, as an orchestrator does, and return its exit code: 137 when it had to be killed.

        Raises SmokeFailed with the end of its log when it had ended before.
        """
        self.container.reload()
        if self.container.status != "running":
            code = self.container.attrs["State"]["ExitCode"]
            message = f"the server had ended by itself, exit code {code}\n{_log(self.container)}"
            raise errors.SmokeFailed(message)
        self.container.stop(timeout=STOP_S)
        self.container.reload()
        return int(self.container.attrs["State"]["ExitCode"])


def twin_spec(
    image: Image, model: Path, *, flags: Sequence[str] = (), env: Sequence[tuple[str, str]] = ()
) -> ServeSpec:
    """Return the spec of a CPU-only image: one process, no compilation, caches kept in volumes of its files."""
    own = (
        ("PYTHONPYCACHEPREFIX", "/pyc"),
        ("VLLM_CACHE_ROOT", "/vc"),
        ("VLLM_LOGGING_LEVEL", "INFO"),
        # one process less to start; vLLM overrides the executor `uni` on CPUs unless this is off
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
        # threads that spin for each other are what makes a busy machine slow, and the model is tiny
        ("OMP_NUM_THREADS", "1"),
    )
    # one value each, the caller's last
    return ServeSpec(
        image=image.digest,
        model=model,
        flags=(*_TWIN_FLAGS, *flags),
        env=tuple((dict(own) | dict(env)).items()),
        volumes=caches.volumes(image.layers),
    )


def serve_argv(spec: ServeSpec) -> tuple[str, ...]:
    """Return what follows `vllm serve`. Raises BadInput for a flag that the smoke run sets itself."""
    for flag in spec.flags:
        if flag.partition("=")[0] in _OWN_FLAGS:
            raise errors.BadInput(f"{flag}: a smoke run sets this flag itself", hint=f"leave {flag} out")
    own = ("--host=0.0.0.0", f"--port={PORT}", f"--served-model-name={spec.served_name}")
    return (MODEL, *own, *spec.flags)


def find_image(engine: Engine, reference: str) -> Image:
    """Return an image that the engine holds; nothing is ever pulled."""
    try:
        with contextlib.closing(engine.client()) as client:
            found = client.images.get(reference)
            return Image(digest=str(found.id), layers=tuple(found.attrs["RootFS"]["Layers"]))
    except docker.errors.ImageNotFound as error:
        raise errors.Missing(f"{reference}: the engine does not hold this image", hint="./inv build --twin") from error


def phase_of(log: str, phases: Sequence[Phase] = PHASES) -> Phase:
    """Return the last phase whose line the log shows."""
    return next(phase for phase in reversed(phases) if re.search(phase.begins, log))


@contextlib.contextmanager
def serving(
    engine: Engine,
    spec: ServeSpec,
    session: Session,
    *,
    detail: Callable[[str], None] = lambda _: None,
    phases: Sequence[Phase] = PHASES,
) -> Iterator[Running]:
    """Start the server, yield it once it answers, stop and remove it. Raises SmokeFailed with the end of its log."""
    server = _Server(engine, spec, session)
    server.waiting_for(_Ready(spec, phases, detail))
    start = time.monotonic()
    try:
        try:
            server.start()
        except docker.errors.APIError as error:
            message = f"{spec.image}: the engine cannot serve it: {error.explanation or error}"
            raise errors.SmokeFailed(message) from error
        yield Running(url=server.url, seconds=time.monotonic() - start, container=server.get_wrapped_container())
    finally:
        server.stop()


class _Server(DockerContainer):
    """A testcontainers container on one given engine, published on loopback only, removed by our own guard."""

    def __init__(self, engine: Engine, spec: ServeSpec, session: Session) -> None:
        # Ryuk's image is not at hand where there is no network; the guard does its work
        testcontainers_config.ryuk_disabled = True
        with _environment_kept("DOCKER_HOST"):  # testcontainers writes the Docker context's host there
            super().__init__(spec.image, docker_client_kw={"environment": {"DOCKER_HOST": engine.host}})
        self.image = spec.image  # without the prefix that testcontainers puts before names of a hub
        self.with_name(f"kiln-smoke-{uuid.uuid4().hex[:12]}")
        self.env = dict(spec.env)
        self.with_command(list(serve_argv(spec)))
        self.with_volume_mapping(spec.model, MODEL, "ro")
        for volume in spec.volumes:
            caches.create(self.get_docker_client().client, volume)
            self.with_volume_mapping(volume.name, volume.path, "rw")
        # typed for ports on all addresses, but handed to the SDK as it is
        cast("dict[str, Any]", self.ports)[f"{PORT}/tcp"] = ("127.0.0.1",)
        # with a network named, testcontainers does not go looking for one
        self.with_kwargs(network="bridge", init=True, shm_size="256m", labels=dict(session.labels))

    @property
    def url(self) -> str:
        ports = self.get_wrapped_container().attrs["NetworkSettings"]["Ports"]
        return f"http://127.0.0.1:{ports[f'{PORT}/tcp'][0]['HostPort']}"

    def stop(self, *args: bool, **options: bool) -> None:
        """Ask politely first: an engine that is killed may leave shared memory behind."""
        try:
            if self._container:
                with contextlib.suppress(docker.errors.APIError):
                    self._container.stop(timeout=_REMOVE_S)
        finally:
            with contextlib.suppress(docker.errors.NotFound):
                super().stop(*args, **options)


class _Ready(WaitStrategy):
    """Waits until /health answers; notices a dead container at once and a slow phase by its own limit."""

    def __init__(self, spec: ServeSpec, phases: Sequence[Phase], detail: Callable[[str], None]) -> None:
        super().__init__()
        self._spec = spec
        self._phases = phases
        self._detail = detail

    def wait_until_ready(self, container: WaitStrategyTarget) -> None:
        assert isinstance(container, _Server)
        wrapped = container.get_wrapped_container()
        phase, since = self._phases[0], time.monotonic()
        with requests.Session() as session:
            session.trust_env = False  # a proxy must not see loopback
            while True:
                wrapped.reload()
                if wrapped.status in {"exited", "dead"}:
                    raise self._died(wrapped, phase)
                if _healthy(session, container.url):
                    return
                now = phase_of(_log(wrapped, lines=None), self._phases)
                if now is not phase:
                    phase, since = now, time.monotonic()
                    self._detail(phase.name)
                if time.monotonic() - since > phase.limit_s:
                    raise self._too_slow(wrapped, phase)
                time.sleep(_POLL_S)

    def _died(self, container: Container, phase: Phase) -> errors.SmokeFailed:
        state = container.attrs["State"]
        # the last lines may have moved it on since the last look
        phase = phase_of(_log(container, lines=None), self._phases)
        killed = ", out of memory" if state["OOMKilled"] else ""
        return errors.SmokeFailed(
            f"{self._spec.image}: the server ended while {phase.name}, "
            f"exit code {state['ExitCode']}{killed}\n{_log(container)}",
            hint="the server's own words stand above; its flags are " + " ".join(serve_argv(self._spec)),
        )

    def _too_slow(self, container: Container, phase: Phase) -> errors.SmokeFailed:
        return errors.SmokeFailed(
            f"{self._spec.image}: the server is still {phase.name} after {phase.limit_s:g} s\n{_log(container)}"
        )


@contextlib.contextmanager
def _environment_kept(name: str) -> Iterator[None]:
    before = os.environ.get(name)
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _healthy(session: requests.Session, url: str) -> bool:
    try:
        return session.get(f"{url}/health", timeout=2).ok
    except requests.RequestException:
        return False


def _log(container: Container, *, lines: int | None = _LOG_LINES) -> str:
    return container.logs(tail="all" if lines is None else lines).decode(errors="replace")
