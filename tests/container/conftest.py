"""Real engine, real wheels, real images: brought up once for all container tests."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import marshal
import shutil
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
import yaml

from kiln import catalog, engine, plan, process
from kiln.catalog import lock_records, locked, records
from kiln.image import base, build
from kiln.image.bake import SOURCE_DATE_EPOCH
from kiln.report import Reporter
from kiln.upstream.wheel import RemoteWheel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import docker

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

    Content = bytes | str
    Kind = Literal["rocm", "cuda"]
    Make = Callable[..., "Lookalike"]

REPORTER = Reporter()
QUIET = Reporter(quiet=True)
SITE = "usr/local/lib/python3.12/dist-packages"
# the base's Python is Debian's; the official images have 3.12, and everything in the folder of that
PYTHON = "3.11"
LOCKED_AT = "2026-11-20T00:00:00Z"


@pytest.fixture(scope="session")
def real_catalog() -> Catalog:
    return catalog.load(catalog.find_root(Path(__file__).parent))


@pytest.fixture(scope="session")
def real_engine(real_catalog: Catalog) -> Engine:
    return engine.ensure(real_catalog.state / "engine", REPORTER)


@pytest.fixture(scope="session")
def client(real_engine: Engine) -> Iterator[docker.DockerClient]:
    client = real_engine.client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def twin_plan(real_catalog: Catalog) -> Plan:
    return plan.make(real_catalog, variant="mxfp8", arch="gfx942")


@pytest.fixture(scope="session")
def twin(real_catalog: Catalog, twin_plan: Plan, client: docker.DockerClient) -> Receipt:
    """The twin that `./inv build --variant mxfp8 --arch gfx942 --twin` makes."""
    made = build.run(real_catalog, twin_plan, twin=True, reporter=REPORTER)
    # tests build others of its name, by which one without another would be removed
    client.images.get(made.digest).tag("kiln-test/twin", tag="session")
    return made


@pytest.fixture(scope="session")
def twin_image(twin: Receipt) -> str:
    return twin.digest


@pytest.fixture
def edited(real_catalog: Catalog, tmp_path: Path) -> Callable[[Callable[[Path], None]], Catalog]:
    """Return a function that loads a copy of the catalog after an edit; engine and caches are the real ones."""

    def copy(edit: Callable[[Path], None]) -> Catalog:
        root = tmp_path / "catalog"
        for folder in ("images", "patches", "recipes"):
            shutil.copytree(real_catalog.root / folder, root / folder)
        edit(root)
        return replace(catalog.load(root), state=real_catalog.state)

    return copy


# bases that look like the official images


@dataclass(frozen=True, kw_only=True)
class Lookalike:
    """An image in the local registry; `index` is the digest of the index that its tag names, "" where it names none."""

    kind: Kind
    release: str
    digest: str
    index: str
    layers: int
    registry: str
    repository: str
    tag: str

    @property
    def name(self) -> str:
        return f"{self.registry}/{self.repository}"

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.digest}"

    def adopt(self, root: Path) -> None:
        """Edit a copy of the catalog so that it builds on this image; both kinds can be adopted by one copy.

        Its entry in images/lock.json is that of `./inv lock` with a registry, but for what is read out of the layers.
        """
        path = root / "images/releases.yaml"
        releases = yaml.safe_load(path.read_text())
        stack = releases["releases"][self.release][self.kind]
        image = {name: stack["image"][name] for name in ("repository", "tag")}
        digests = {"manifest": self.digest} | ({"index": self.index} if self.index else {})
        for name, digest in digests.items():
            image[name] = {"digest": digest, "confidence": "A"}
        stack |= {"image": image, "python": PYTHON}
        path.write_text(yaml.safe_dump(releases, sort_keys=False))
        lock_path = root / locked.LOCK
        lock = json.loads(lock_path.read_text())
        pin = records.ImagePin.model_validate(image)
        found = {"confidence": "registry", "confirmed": LOCKED_AT}
        entry = {
            **{name: image[name] for name in ("repository", "tag")},
            **{name: {"digest": digest, **found} for name, digest in digests.items()},
            "inputs_sha256": locked.inputs_sha256(pin),
            "locked": LOCKED_AT,
        }
        made = locked.sealed(lock_records.LockedImage.model_validate(entry))
        lock["images"][pin.reference] = made.model_dump(mode="json")
        lock_path.write_text(json.dumps(lock))
        config = root / "kiln.yaml"
        settings = (yaml.safe_load(config.read_text()) or {}) if config.exists() else {}
        settings.setdefault("mirrors", {})[image["repository"]] = self.name
        config.write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="session")
def wheel_tree(real_catalog: Catalog) -> Callable[[str], dict[str, bytes]]:
    """Return a function that gives every Python file and the metadata of a release's GPU wheel."""
    held: dict[str, dict[str, bytes]] = {}

    def tree(release: str = "0.31.0") -> dict[str, bytes]:
        if release not in held:
            wheel = RemoteWheel(real_catalog.releases.releases[release].wheel)
            names = (name for name in wheel.names() if name.endswith(".py") or ".dist-info/" in name)
            held[release] = wheel.read(names)
        return held[release]

    return tree


@pytest.fixture(scope="session")
def lookalike(
    real_catalog: Catalog,
    real_engine: Engine,
    wheel_tree: Callable[[str], dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Make:
    """Return a function that builds and pushes a base that looks like an official image, each one once.

    `edits` replaces files, by their name in the wheel or by "/" and their path in the image. Each content has its own
    repository in the registry, so that no tag is ever moved by another one.
    """
    made: dict[str, Lookalike] = {}

    def make(edits: Mapping[str, bytes] | None = None, *, kind: Kind = "rocm", tag: str = "v0.31.0") -> Lookalike:
        assert real_engine.registry, "these tests need the embedded engine's registry"
        release = tag.removeprefix("v")
        pins = real_catalog.releases.releases[release]
        layers = _layers(kind, release, pins, wheel_tree(release))
        for name, data in (edits or {}).items():
            _layer_of(layers, path := name.removeprefix("/") if name.startswith("/") else f"{SITE}/{name}")[path] = data
        tars = [_tar(layer) for layer in layers]
        dockerfile = _dockerfile(kind, pins, len(tars)).encode()
        identity = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in (*tars, dockerfile))).hexdigest()
        if identity not in made:
            folder = tmp_path_factory.mktemp("lookalike")
            for number, data in enumerate(tars):
                (folder / f"{number}.tar").write_bytes(data)
            (folder / "Dockerfile").write_bytes(dockerfile)
            root = base.ensure("base", real_catalog.state / "bases", QUIET)
            stack = pins.rocm if kind == "rocm" else pins.cuda
            repository = f"lookalike/{identity[:12]}/{stack.image.repository.rpartition('/')[2]}"
            name = f"{real_engine.registry}/{repository}:{tag}"
            digest, index, count = _push(real_engine, root.context, folder, name)
            made[identity] = Lookalike(
                kind=kind,
                release=release,
                digest=digest,
                index=index,
                layers=count,
                registry=real_engine.registry,
                repository=repository,
                tag=tag,
            )
        return made[identity]

    return make


def _push(real_engine: Engine, root: str, folder: Path, name: str) -> tuple[str, str, int]:
    """Build the folder and push it as upstream does: a CUDA tag names an index, a ROCm tag the manifest itself.

    The one has Docker's media types, the other those of OCI. Return both digests and the number of layers.
    """
    metadata = folder / "metadata.json"
    indexed = "-rocm:" not in name
    pushed = f"{name}-x86_64" if indexed else f"{name},oci-mediatypes=true"
    process.ask(
        (
            *real_engine.buildx,
            "build",
            f"--build-context=base={root}",
            f"--build-arg=SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH}",
            "--provenance=false",
            f"--output=type=image,name={pushed},push=true,store=false",
            f"--metadata-file={metadata}",
            str(folder),
        ),
        env=real_engine.environment(),
    )
    digest = json.loads(metadata.read_text())["containerimage.digest"]
    tools, env = (*real_engine.buildx, "imagetools"), real_engine.environment()
    manifest = process.ask((*tools, "inspect", "--raw", f"{name.rpartition(':')[0]}@{digest}"), env=env)
    count = len(json.loads(manifest)["layers"])
    if not indexed:
        return digest, "", count
    process.ask((*tools, "create", "--tag", name, f"{name}-x86_64"), env=env)
    written = process.ask((*tools, "inspect", "--raw", name), env=env)
    return digest, f"sha256:{hashlib.sha256(written.encode()).hexdigest()}", count


def _dockerfile(kind: Kind, pins: records.ReleasePins, layers: int) -> str:
    env, labels = {"TOKENIZERS_PARALLELISM": "false"}, {}
    if kind == "cuda":
        env |= {"CUDA_VERSION": pins.cuda.cuda, "VLLM_BUILD_COMMIT": pins.commit}
        labels = {"revision": pins.commit, "source": "https://github.com/vllm-project/vllm", "version": pins.date}
    else:
        env |= {"HIP_FORCE_DEV_KERNARG": "1", "SAFETENSORS_FAST_GPU": "1"}
    return "\n".join(
        (
            "FROM base",
            *(f"ADD {number}.tar /" for number in range(layers)),
            *(f"ENV {name}={value}" for name, value in env.items()),
            *(f"LABEL org.opencontainers.image.{name}={value}" for name, value in labels.items()),
            f"WORKDIR {'/app' if kind == 'rocm' else '/vllm-workspace'}",
            'ENTRYPOINT ["vllm", "serve"]',
            "",
        )
    )


def _layers(kind: Kind, release: str, pins: records.ReleasePins, vllm: Mapping[str, bytes]) -> list[dict[str, Content]]:
    """Return the layers of a lookalike: what is below vLLM, vLLM, and the bytecode and caches that runs of it left."""
    below: dict[str, Content] = {
        # the base's Python has its packages where the official image's has them
        f"usr/local/lib/python{PYTHON}": "python3.12",
        "usr/lib/os-release": f'ID=ubuntu\nVERSION_ID="{_ubuntu(kind, pins)}"\n'.encode(),
        "usr/local/bin/vllm": b"#!/usr/bin/python3\nfrom vllm.entrypoints.cli.main import main\n\nmain()\n",
    }
    for name, version, files in _distributions(kind, pins):
        below |= _installed(name, version, files)
    if kind == "rocm" and pins.rocm.base_image.startswith("rocm/"):
        below |= {
            "opt/rocm": f"rocm-{pins.rocm.rocm}",
            f"opt/rocm-{pins.rocm.rocm}/.info/version": f"{pins.rocm.rocm}-81\n".encode(),
            f"opt/rocm-{pins.rocm.rocm}/lib/librccl.so.1.0": b"\x7fELF rccl",
            f"opt/rocm-{pins.rocm.rocm}/lib/librccl.so": "librccl.so.1.0",
        }
    tree = {**vllm}
    if kind == "rocm":
        tree = _with_version(vllm, release, f"{release}+rocm{pins.rocm.rocm.removesuffix('.0').replace('.', '')}")
        below["app/versions.txt"] = _refs(pins.rocm)
    top: dict[str, Content] = {f"{SITE}/{name}": data for name, data in tree.items()}
    ran: dict[str, Content] = {}
    for name, data in tree.items():
        folder, _, module = name.rpartition("/")
        if folder in {"vllm/reasoning", "vllm/tool_parsers"}:
            ran[f"{SITE}/{folder}/__pycache__/{module.removesuffix('.py')}.cpython-311.pyc"] = _bytecode(name, data)
    return [below, top, ran]


def _ubuntu(kind: Kind, pins: records.ReleasePins) -> str:
    return "22.04" if kind == "rocm" else pins.cuda.ubuntu


def _distributions(kind: Kind, pins: records.ReleasePins) -> Iterator[tuple[str, str, dict[str, bytes]]]:
    """Yield name, version and files of the distributions that the catalog pins, as the official image has them."""

    def module(name: str, version: str) -> dict[str, bytes]:
        return {f"{name}/__init__.py": f'__version__ = "{version}"\n'.encode()}

    def with_library(name: str, version: str, library: str) -> dict[str, bytes]:
        return {**module(name, version), library: f"\x7fELF {library} {version}".encode()}

    if kind == "cuda":
        cuda = pins.cuda
        plain = {"torchvision": cuda.torchvision, "torchaudio": cuda.torchaudio}
        yield "torch", f"{cuda.torch}+cu130", with_library("torch", cuda.torch, "torch/lib/libtorch_cuda.so")
        triton = cuda.triton.replace("~=", "")
        yield "triton", triton, with_library("triton", triton, "triton/_C/libtriton.so")
        yield "flashinfer-python", cuda.flashinfer, module("flashinfer", cuda.flashinfer)
        yield "nvidia-cutlass-dsl", cuda.cutlass_dsl, module("cutlass", cuda.cutlass_dsl)
        nccl = cuda.nccl or "2.28.9"
        yield "nvidia-nccl-cu13", nccl, {"nvidia/nccl/lib/libnccl.so.2": b"\x7fELF nccl"}
    else:
        rocm = pins.rocm
        torch, triton = rocm.torch_reported, rocm.triton_reported or "3.6.0"
        plain = {"torchvision": "0.24.1+d801a34" if rocm.torchvision == "wheel" else f"{rocm.torchvision[1:]}+d801a34"}
        yield "torch", torch, with_library("torch", torch, "torch/lib/libtorch_hip.so")
        yield "triton", triton, with_library("triton", triton, "triton/_C/libtriton.so")
        of_aiter = rocm.aiter[1:]
        jit = {"aiter/jit/module_moe_asm.so": b"\x7fELF built for gfx942;gfx950", "aiter_meta/__init__.py": b""}
        yield "amd-aiter", of_aiter, {**module("aiter", of_aiter), **jit}
        yield "flydsl", "0.1.4.2" if of_aiter == "0.1.13.post1" else "0.2.0", module("flydsl", "")
        quark = rocm.amd_quark.removeprefix("==") if rocm.amd_quark.startswith("==") else "0.11.2"
        yield "amd-quark", quark, module("quark", quark)
        if not rocm.base_image.startswith("rocm/"):
            yield "rocm", rocm.rocm, module("rocm_sdk", rocm.rocm)
            yield "rocm-sdk-devel", rocm.rocm, {"_rocm_sdk_devel/lib/librccl.so.1": b"\x7fELF rccl"}
    for name, version in plain.items():
        yield name, version, module(name, version)


def _installed(name: str, version: str, files: Mapping[str, bytes]) -> dict[str, Content]:
    """Return a distribution as pip leaves it: the files, METADATA, INSTALLER and a RECORD of them."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    held = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\n".encode(),
        f"{info}/INSTALLER": b"pip\n",
    }
    record = "".join(f"{path},{_hashed(data)}\n" for path, data in held.items()) + f"{info}/RECORD,,\n"
    return {f"{SITE}/{path}": data for path, data in (held | {f"{info}/RECORD": record.encode()}).items()}


def _hashed(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest},{len(data)}"


def _with_version(vllm: Mapping[str, bytes], release: str, version: str) -> dict[str, bytes]:
    """Return the wheel's files as those of a build with a local version, as vLLM's ROCm images have it."""
    old, new = f"vllm-{release}.dist-info/", f"vllm-{version}.dist-info/"
    renamed = {name.replace(old, new): data for name, data in vllm.items()}
    metadata, record = f"{new}METADATA", f"{new}RECORD"
    renamed[metadata] = renamed[metadata].replace(f"Version: {release}\n".encode(), f"Version: {version}\n".encode())
    rows = [row for row in renamed[record].decode().replace(old, new).splitlines() if not row.startswith(metadata)]
    renamed[record] = "\n".join([*rows, f"{metadata},{_hashed(renamed[metadata])}", ""]).encode()
    return renamed


def _refs(rocm: records.RocmStack) -> bytes:
    refs = {
        "BASE_IMAGE": rocm.base_image,
        "TRITON_BRANCH": rocm.triton_ref[:8],
        "PYTORCH_BRANCH": rocm.torch_ref[:8],
        "AITER_BRANCH": rocm.aiter,
    }
    return "".join(f"{name}: {value}\n" for name, value in refs.items()).encode()


def _bytecode(name: str, data: bytes) -> bytes:
    """Return what Python 3.11 caches of a module whose file has the time that all files here have."""
    code = marshal.dumps(compile(data, f"/{SITE}/{name}", "exec", dont_inherit=True))
    stamp = SOURCE_DATE_EPOCH.to_bytes(4, "little") + len(data).to_bytes(4, "little")
    return importlib.util.MAGIC_NUMBER + bytes(4) + stamp + code


def _layer_of(layers: Iterable[dict[str, Content]], path: str) -> dict[str, Content]:
    """Return the layer that holds a path; the last one for a new file."""
    last: dict[str, Content] = {}
    for last in layers:
        if path in last:
            return last
    return last


def _tar(files: Mapping[str, Content]) -> bytes:
    """Return files, and links for values that are text, as a tar whose bytes depend on nothing else."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.mtime = SOURCE_DATE_EPOCH
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                member.mode = 0o755 if content.startswith(b"#!") else 0o644
                archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
