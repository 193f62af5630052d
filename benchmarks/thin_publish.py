"""Thin build and push on a 2 GB base, against `docker buildx build --push` of the same series on the same base.

Everything runs on an engine and a registry of its own, which go at the end. The registry is reached through a proxy
that counts bytes, and the engine is emptied before each build. Usage: .venv/bin/python benchmarks/thin_publish.py
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
import statistics
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from kiln import catalog, engine, plan, process
from kiln.image import base, build
from kiln.lock import run as locking
from kiln.report import Reporter
from kiln.upstream.wheel import RemoteWheel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.catalog import Catalog
    from kiln.engine import Engine

ROUNDS = 3
LAYERS, LAYER_MB = 5, 400
RELEASE = "0.31.0"
TARGET = {"variant": "mxfp8", "arch": "sm100"}
REPOSITORY = "bench/vllm-openai"
SITE = "usr/local/lib/python3.12/dist-packages"
# what a lock compares with the pins: distribution -> pin
PINNED = {name: name for name in ("torch", "torchvision", "torchaudio", "triton")} | {
    "flashinfer-python": "flashinfer",
    "nvidia-cutlass-dsl": "cutlass_dsl",
    "nvidia-nccl-cu13": "nccl",
}
QUIET = Reporter(quiet=True)
BASE = """
FROM root
{random}
ADD tree.tar /
"""
RANDOM = (
    "RUN python3 -c \"import os; f = open('/usr/{n}.bin', 'wb'); [f.write(os.urandom(1 << 20)) for _ in range({mb})]\""
)
# the usual way, and the same with the patched files copied in
USUAL = """
ARG BASE
FROM ${BASE}
RUN --mount=type=bind,source=patch,target=/run/kiln-patch \
    python3 -I -B /run/kiln-patch/kiln-patch.pyz apply --fresh --series /run/kiln-patch/series
"""
COPIED = """
ARG BASE
FROM ${BASE}
COPY patch/series /opt/kiln/series
"""


@dataclass
class Counter:
    """A proxy on loopback to the registry; `up` and `down` count bytes, the kernel moves them."""

    port: int
    up: int = 0
    down: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                for source, target, way in ((client, server, "up"), (server, client, "down")):
                    threading.Thread(target=self._move, args=(source, target, way), daemon=True).start()

    def _move(self, source: socket.socket, target: socket.socket, way: str) -> None:
        out, into = os.pipe()
        with contextlib.suppress(OSError):
            while count := os.splice(source.fileno(), into, 1 << 20):
                setattr(self, way, getattr(self, way) + count)
                while count:
                    count -= os.splice(out, target.fileno(), count)
            target.shutdown(socket.SHUT_WR)
        os.close(out)
        os.close(into)


@dataclass(frozen=True)
class Cost:
    seconds: float
    up: int
    down: int


@contextlib.contextmanager
def engine_of_its_own(home: Path, real: Catalog) -> Iterator[Engine]:
    """Bring up an engine from the packages that the usual one is made of, and remove all of it."""
    os.environ["KILN_ENGINE"] = "embedded"
    for name in ("engine/debs", "bases"):
        shutil.copytree(real.state / name, home.parent / name)
    try:
        yield engine.up(home, QUIET)
    finally:
        engine.down(home, QUIET, purge=True)


@dataclass(frozen=True)
class Bench:
    """The engine, the way to its registry, and a folder for everything else."""

    docker: Engine
    counter: Counter
    scratch: Path

    @property
    def state(self) -> Path:
        return self.scratch / "state"


def push_base(bench: Bench, real: Catalog) -> str:
    """Push a base of random layers and the wheel's Python files; return its digest."""
    docker, folder = bench.docker, bench.scratch / "base"
    folder.mkdir()
    wheel = RemoteWheel(real.releases.releases[RELEASE].wheel)
    tree = wheel.read(name for name in wheel.names() if name.endswith(".py") or ".dist-info/" in name)
    files = {f"{SITE}/{name}": data for name, data in tree.items()}
    files["usr/local/lib/python3.11/dist-packages/official.pth"] = f"/{SITE}\n".encode()
    pins = dict(plan.make(real, **TARGET, release=RELEASE).pins)
    for name, pin in PINNED.items():
        version = pins[pin].lstrip("=~<>")
        files[f"{SITE}/{name.replace('-', '_')}-{version}.dist-info/METADATA"] = (
            f"Name: {name}\nVersion: {version}\n".encode()
        )
    with tarfile.open(folder / "tree.tar", "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    random = "\n".join(RANDOM.format(n=n, mb=LAYER_MB) for n in range(LAYERS))
    (folder / "Dockerfile").write_text(BASE.format(random=random))
    root = base.ensure("base", bench.state / "bases", QUIET)
    process.ask(
        (
            *docker.buildx,
            "build",
            f"--build-context=root={root.context}",
            "--provenance=false",
            f"--network={docker.build_network}",
            f"--output=type=image,name={bench.counter.name}/{REPOSITORY}:v{RELEASE},push=true,store=false,compression=uncompressed",
            f"--metadata-file={folder}/metadata.json",
            str(folder),
        ),
        env=docker.environment(),
    )
    return str(json.loads((folder / "metadata.json").read_text())["containerimage.digest"])


def adopted(real: Catalog, root: Path, digest: str, registry: str) -> None:
    """Write a copy of the catalog in which the official image is the base of this benchmark, locked and read."""
    for name in ("images", "patches", "recipes"):
        shutil.copytree(real.root / name, root / name)
    path = root / "images/releases.yaml"
    releases = yaml.safe_load(path.read_text())
    image = releases["releases"][RELEASE]["cuda"]["image"]
    image.pop("index", None)
    image["manifest"] = {"digest": digest, "confidence": "A", "verified": False}
    path.write_text(yaml.safe_dump(releases, sort_keys=False))
    (root / "kiln.yaml").write_text(yaml.safe_dump({"mirrors": {image["repository"]: f"{registry}/{REPOSITORY}"}}))
    locking.run(catalog.load(root, locked=False), locking.Wish(release=RELEASE, bases=True), QUIET)


def cost(bench: Bench, argv: tuple[str, ...], cwd: Path, env: dict[str, str]) -> Cost:
    """Run a command with no image and no cache in the engine."""
    docker, counter = bench.docker, bench.counter
    for prune in ((*docker.buildx, "prune"), (docker.docker, "image", "prune")):
        process.ask((*prune, "--all", "--force"), env=docker.environment())
    counter.up = counter.down = 0
    start = time.perf_counter()
    process.ask(argv, cwd=cwd, env=env)
    return Cost(time.perf_counter() - start, counter.up, counter.down)


def usual(bench: Bench, dockerfile: str, staged: Path, names: tuple[str, str]) -> tuple[str, ...]:
    """Return the command that a person types who has the patch folder and a Dockerfile."""
    reference, target = names
    (bench.scratch / "Dockerfile").write_text(dockerfile)
    return (
        *bench.docker.buildx,
        "build",
        "--provenance=false",
        f"--network={bench.docker.build_network}",
        f"--file={bench.scratch / 'Dockerfile'}",
        f"--build-arg=BASE={reference}",
        f"--output=type=image,name={target},push=true",
        str(staged),
    )


def show(name: str, costs: list[Cost]) -> Cost:
    middle = Cost(*(statistics.median(getattr(each, part) for each in costs) for part in ("seconds", "up", "down")))
    print(f"{name:<46} {middle.seconds:7.2f} s   up {middle.up / 1e6:9.3f} MB   down {middle.down / 1e6:9.3f} MB")
    return middle


def main() -> None:
    real = catalog.load(catalog.find_root(Path(__file__).parent))
    with tempfile.TemporaryDirectory(prefix="kiln-bench-") as name, contextlib.ExitStack() as undo:
        scratch = Path(name)
        docker = undo.enter_context(engine_of_its_own(scratch / "state/engine", real))
        assert docker.registry
        counter = Counter(int(docker.registry.rpartition(":")[2]))
        undo.callback(counter.listener.close)
        threading.Thread(target=counter.serve, daemon=True).start()
        bench = Bench(docker, counter, scratch)
        digest = push_base(bench, real)
        os.environ["KILN_HOME"] = str(bench.state)
        adopted(real, scratch / "catalog", digest, counter.name)
        measure(bench, scratch / "catalog")


def measure(bench: Bench, root: Path) -> None:
    copy = catalog.load(root)
    target = plan.make(copy, **TARGET, release=RELEASE)
    flags = (f"--variant={TARGET['variant']}", f"--arch={TARGET['arch']}", f"--release={RELEASE}")
    name = bench.counter.name
    kiln = process.python("-m", "kiln", "build", "--thin", *flags)
    environment = os.environ | {"KILN_ROOT": str(root)}
    # each time to a repository that has neither the layer nor the base's
    first, *thin = (cost(bench, (*kiln, f"--to={name}/bench/thin{n}"), root, environment) for n in range(1 + ROUNDS))
    staged = build.patch_folder(copy, target, twin=False).parent
    reference = f"{name}/{REPOSITORY}@{target.image.digest}"
    ways = {}
    for word, dockerfile in (("full", USUAL), ("copy", COPIED)):
        argv = usual(bench, dockerfile, staged, (reference, f"{name}/bench/{word}"))
        ways[word] = [cost(bench, argv, bench.scratch, bench.docker.environment())]
    print(f"base: {LAYERS} layers of {LAYER_MB} MB that do not compress, and vLLM {RELEASE}; an empty engine")
    show("kiln build --thin, the first on this base", [first])
    ours = show(f"kiln build --thin, median of {ROUNDS}", thin)
    peer = show("docker buildx build --push, FROM and RUN apply", ways["full"])
    show("docker buildx build --push, FROM and COPY", ways["copy"])
    print(f"ratio to the full build: {peer.seconds / ours.seconds:.1f} x in time")
    print(f"                         {(peer.up + peer.down) / (ours.up + ours.down):.0f} x in bytes")


if __name__ == "__main__":
    main()
