"""Thin builds on bases that look like the official images, against real builds of the same targets."""

from __future__ import annotations

import contextlib
import io
import secrets
import shutil
import socket
import tarfile
import threading
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, errors, plan, process, trees
from kiln import engine as engines
from kiln.catalog import records
from kiln.image import build
from kiln.image import receipt as receipts
from kiln.image.thin import layer as thin_layer
from kiln.image.thin import run as thin
from kiln.lock import run as locking
from kiln.patching.outcomes import Outcome
from kiln.registry import client as clients
from kiln.registry import image as images
from kiln.registry import layers, reference
from kiln.registry.client import Registry
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import docker
    from tests.container.conftest import Kind, Lookalike, Make

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan
    from kiln.registry.image import RemoteImage

    Adopt = Callable[..., Catalog]

QUIET = Reporter(quiet=True)
RELEASE = "0.31.0"
SITE = "usr/local/lib/python3.12/dist-packages"
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"
PARSER_BYTECODE = f"{SITE}/vllm/reasoning/__pycache__/minimax_m3_reasoning_parser.cpython-311.pyc"
SETTINGS = ("Env", "Entrypoint", "Cmd", "WorkingDir", "User", "Labels")
CACHES = {"/root/.triton/cache/k/launcher.so": b"old", "/root/.cache/vllm/torch_compile_cache/x": b"old"}
REMOVED = (PARSER_BYTECODE, *(path.removeprefix("/") for path in CACHES))
KINDS: tuple[tuple[str, Kind], ...] = (("gfx942", "rocm"), ("sm100", "cuda"))


@pytest.fixture(scope="module")
def adopt(real_catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Adopt:
    """Return a function that copies the catalog, adopts bases, and locks them with what their layers hold."""

    def adopted(*bases: Lookalike, read: bool = True) -> Catalog:
        root = tmp_path_factory.mktemp("catalog")
        for folder in ("images", "patches", "recipes"):
            shutil.copytree(real_catalog.root / folder, root / folder)
        for each in bases:
            each.adopt(root)
        made = replace(catalog.load(root), state=real_catalog.state)
        if read:
            locking.run(made, locking.Wish(release=RELEASE, bases=True), QUIET)
            made = replace(catalog.load(root), state=real_catalog.state)
        return made

    return adopted


@pytest.fixture(scope="module")
def bases(lookalike: Make) -> dict[str, Lookalike]:
    """Both bases, with caches of earlier runs in them."""
    return {kind: lookalike(CACHES, kind=kind) for _, kind in KINDS}


@pytest.fixture(scope="module")
def both(adopt: Adopt, bases: dict[str, Lookalike]) -> Catalog:
    return adopt(*bases.values())


@pytest.fixture
def to(real_engine: Engine) -> str:
    """A repository that no run has used before."""
    return f"{real_engine.registry}/thin/{secrets.token_hex(6)}"


@contextlib.contextmanager
def opened(name: str) -> Iterator[RemoteImage]:
    at = reference.parse(name)
    with clients.connect(at.host) as registry:
        yield images.open_image(registry, at.repository, at.digest)


def over(image: RemoteImage, below: int) -> dict[str, tuple[str, int, str, str]]:
    """Return kind, mode, hash and link of everything in the layers over the lowest ones."""
    chosen = range(below, len(image.layers))
    found = layers.scan(image, lambda _: True, layers=chosen, progress=QUIET.note)
    return {path: (each.kind, each.mode, each.sha256, each.link) for path, each in found.items()}


def members(image: RemoteImage, layer: int) -> list[tarfile.TarInfo]:
    with image.stream_blob(image.layers[layer]) as pieces:
        data = zlib.decompress(b"".join(pieces), wbits=31)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def really_built(made: Catalog, target: Plan, repository: str) -> tuple[Receipt, build.Pushed]:
    """Build the whole image and push it; nothing of it stays in the engine."""
    receipt = build.run(made, target, twin=False, reporter=QUIET)
    with contextlib.closing(engines.ensure(made.state / "engine", QUIET).client()) as client:
        try:
            return receipt, build.push(made, target, twin=False, repository=repository, reporter=QUIET)
        finally:
            client.images.remove(receipt.digest, force=True)


@pytest.mark.parametrize("case", KINDS, ids="-".join)
def test_the_image_is_that_of_a_real_build(
    case: tuple[str, Kind], both: Catalog, bases: dict[str, Lookalike], to: str
) -> None:
    arch, kind = case
    base = bases[kind]
    target = plan.make(both, variant="mxfp8", arch=arch)
    made = thin.run(both, target, repository=f"{to}/{kind}", reporter=QUIET)
    assert (made.kind, made.thin, made.base, made.image) == (kind, True, base.digest, f"{to}/{kind}@{made.digest}")
    real, pushed = really_built(both, target, f"{to}/{kind}/real")
    assert made.ledger_sha256 == real.ledger_sha256
    with opened(made.image) as ours, opened(pushed.reference) as theirs, opened(base.reference) as below:
        count = len(below.layers)
        assert [each.digest for each in ours.layers[:-1]] == [each.digest for each in below.layers]
        assert made.layers == len(ours.layers) == count + 1
        # measured inside of an image, so a thin one has none
        measured = {"opt/kiln/versions.json"}
        mine, other = over(ours, count), over(theirs, count)
        assert other.keys() - mine.keys() == measured
        assert mine == {path: each for path, each in other.items() if path not in measured}
        assert {(each.uid, each.gid) for each in members(ours, count)} == {(0, 0)}
        assert layers.find(below, REMOVED, progress=QUIET.note).keys() == set(REMOVED)
        for each in (ours, theirs):
            assert layers.find(each, REMOVED, progress=QUIET.note) == {}
        for name in SETTINGS:
            assert ours.config["config"].get(name) == theirs.config["config"].get(name)


@pytest.mark.parametrize("case", KINDS, ids="-".join)
def test_the_ledger_is_verified_in_a_container(
    case: tuple[str, Kind], both: Catalog, client: docker.DockerClient, to: str
) -> None:
    target = plan.make(both, variant="mxfp8", arch=case[0])
    made = thin.run(both, target, repository=to, reporter=QUIET)
    client.images.pull(made.image)
    wanted = trees.Wanted(variant=target.target.variant, arch=target.target.arch)
    try:
        said = trees.run("verify", trees.Where(image=made.image), wanted, both)
    finally:
        client.images.remove(made.image)
    assert said.report.outcome is Outcome.ALREADY_APPLIED


def test_two_clean_folders_give_the_same_layer_and_the_same_image(
    both: Catalog, real_engine: Engine, tmp_path: Path, to: str
) -> None:
    roots = [tmp_path / "one", tmp_path / "a/longer/way/to/two"]
    made = []
    for root in roots:
        shutil.copytree(both.root, root / "catalog")
        state = root / "state"
        state.mkdir()
        (state / "engine").symlink_to(both.state / "engine")
        copy = replace(catalog.load(root / "catalog"), state=state)
        target = plan.make(copy, variant="mxfp8", arch="gfx942")
        made.append(thin.run(copy, target, repository=to, reporter=QUIET))
        # nothing of the layer is left in BuildKit, so the second is made anew
        argv = (*real_engine.buildx, "du", "--format=json", f"--filter=description~={thin.LAYER}")
        assert process.ask(argv, env=real_engine.environment()) == ""
    tars = [next((root / "state/contexts").glob(f"*-thin/{thin.LAYER}")).read_bytes() for root in roots]
    assert tars[0] == tars[1]
    assert made[0].digest == made[1].digest
    assert made[0].inputs_sha256 == made[1].inputs_sha256


def test_an_image_built_from_it_on_the_same_engine_lacks_what_it_removes(
    both: Catalog, real_engine: Engine, tmp_path: Path, to: str
) -> None:
    """BuildKit's own cache of the layer holds the removals as files; it must be gone."""
    made = thin.run(both, plan.make(both, variant="mxfp8", arch="sm100"), repository=to, reporter=QUIET)
    (tmp_path / "Dockerfile").write_text(
        f"FROM {made.image} AS image\nFROM scratch\nCOPY --from=image /{SITE}/vllm /\n"
    )
    out = tmp_path / "out.tar"
    argv = (*real_engine.buildx, "build", f"--output=type=tar,dest={out}", str(tmp_path))
    process.ask(argv, env=real_engine.environment())
    with tarfile.open(out) as archive:
        names = set(archive.getnames())
    assert PARSER.removeprefix("vllm/") in names
    assert PARSER_BYTECODE.removeprefix(f"{SITE}/vllm/") not in names
    assert not [name for name in names if "/.wh." in name]


def test_an_image_with_the_same_inputs_is_not_pushed_again(both: Catalog, to: str) -> None:
    target = plan.make(both, variant="bf16", arch="sm100")

    def run(repository: str = to, *, rebuild: bool = False) -> Receipt:
        return thin.run(both, target, repository=repository, reporter=QUIET, rebuild=rebuild)

    first = run()
    assert not first.unchanged
    again = run()
    assert (again.unchanged, again.digest, again.image) == (True, first.digest, first.image)
    assert not run(rebuild=True).unchanged
    elsewhere = run(f"{to}/elsewhere")
    assert (elsewhere.unchanged, elsewhere.image) == (False, f"{to}/elsewhere@{first.digest}")
    # a plain build of the target has the receipt in its turn
    receipts.write(both.output(target.target.slug), replace(first, thin=False))
    assert not run().unchanged
    at = reference.parse(first.image)
    with clients.connect(at.host) as registry:
        assert registry.delete(at.repository, at.digest)
    assert not run().unchanged


def test_no_byte_of_the_base_moves(both: Catalog, bases: dict[str, Lookalike], to: str) -> None:
    base = bases["cuda"]
    target = plan.make(both, variant="mxfp8", arch="sm100")
    thin.run(both, target, repository=to, reporter=QUIET)  # reads RECORD, once
    with contextlib.closing(Proxy(int(base.registry.rpartition(":")[2]))) as proxy:
        mirrors = {"docker.io/vllm/vllm-openai": f"{proxy.name}/{base.repository}"}
        seen = replace(both, config=both.config.model_copy(update={"mirrors": mirrors}))
        made = thin.run(seen, target, repository=f"{proxy.name}/thin/counted", reporter=QUIET)
        with opened(made.image) as pushed:
            layer = pushed.layers[-1].size
    # the layer goes up once and is read back twice; the rest is manifests and mounts
    assert 2 * layer < proxy.bytes < 3 * layer + 100_000 < made.compressed_bytes / 10


class Proxy:
    """A way to the registry on loopback that counts the bytes of both directions."""

    def __init__(self, port: int) -> None:
        self.port, self.bytes = port, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sockets: list[socket.socket] = []
        self.threads = [threading.Thread(target=self.serve)]
        self.threads[0].start()

    @property
    def name(self) -> str:
        return f"127.0.0.1:{self.listener.getsockname()[1]}"

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # closed at the end
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.port))
                self.sockets += (client, server)
                for ends in ((client, server), (server, client)):
                    self.threads.append(threading.Thread(target=self.move, args=ends))
                    self.threads[-1].start()

    def move(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.bytes += len(data)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in (self.listener, *self.sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        for each in (self.listener, *self.sockets):
            each.close()


def test_a_base_whose_file_was_edited_is_refused_with_the_file_named(
    adopt: Adopt, lookalike: Make, wheel_tree: Callable[[str], dict[str, bytes]], to: str
) -> None:
    changed = wheel_tree(RELEASE)[PARSER].replace(b"MiniMax M3 can start", b"MiniMax M3 may start")
    made = adopt(lookalike({PARSER: changed}, kind="rocm"))
    with pytest.raises(errors.NotApplied) as caught:
        thin.run(made, plan.make(made, variant="bf16", arch="gfx942"), repository=to, reporter=QUIET)
    assert f"/{SITE}/{PARSER}" in caught.value.message
    assert caught.value.exit_code == 5


def test_a_base_that_was_not_read_is_refused(adopt: Adopt, lookalike: Make, to: str) -> None:
    made = adopt(lookalike(kind="cuda"), read=False)
    with pytest.raises(errors.BadInput, match="never read") as caught:
        thin.run(made, plan.make(made, variant="mxfp8", arch="sm100"), repository=to, reporter=QUIET)
    assert caught.value.hint == f"./inv lock --bases --release {RELEASE}"


def test_another_registry_cannot_mount_the_base(both: Catalog) -> None:
    target = plan.make(both, variant="mxfp8", arch="sm100")
    with pytest.raises(errors.Missing, match="cannot mount layers of another registry") as caught:
        thin.run(both, target, repository="registry.example.com/vllm", reporter=QUIET)
    assert "imagetools create --tag registry.example.com/" in caught.value.hint


def test_a_registry_that_does_not_mount_is_named_before_anything_is_pushed(
    both: Catalog, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "mount", lambda *_: False)
    with pytest.raises(errors.Missing, match="does not mount"):
        thin.run(both, plan.make(both, variant="mxfp8", arch="sm100"), repository=to, reporter=QUIET)
    assert tags(to) == ()


def test_an_image_that_is_not_what_was_rehearsed_does_not_count_as_built(
    both: Catalog, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = thin_layer.render

    def tampered(entries: tuple[thin_layer.Member, ...]) -> bytes:
        return render([replace(each, data=b"x = 1\n") if each.path == f"{SITE}/{PARSER}" else each for each in entries])

    monkeypatch.setattr(thin_layer, "render", tampered)
    target = plan.make(both, variant="mxfp8", arch="sm100")
    shutil.rmtree(both.output(target.target.slug), ignore_errors=True)
    with pytest.raises(errors.NotApplied) as caught:
        thin.run(both, target, repository=to, reporter=QUIET)
    assert f"/{SITE}/{PARSER}: not the bytes" in caught.value.message
    assert f"/{SITE}/{PARSER}: sha256" in caught.value.message
    assert not both.output(target.target.slug).exists()
    assert tags(to) == ()


def test_a_layer_over_its_budget_is_not_pushed(both: Catalog, to: str) -> None:
    budgets = both.releases.budgets.model_copy(update={"thin": records.Budget(added_mb=0, layers=1)})
    tight = replace(both, releases=both.releases.model_copy(update={"budgets": budgets}))
    with pytest.raises(errors.Findings, match="its budget is 0 MB"):
        thin.run(tight, plan.make(tight, variant="mxfp8", arch="sm100"), repository=to, reporter=QUIET)
    assert tags(to) == ()


def tags(name: str) -> tuple[str, ...]:
    """Return the tags that stand for something: a registry may still list those of a manifest that it deleted."""
    at = reference.parse(name)
    with clients.connect(at.host) as registry:
        return tuple(tag for tag in registry.tags(at.repository) if registry.head(at.repository, tag))
