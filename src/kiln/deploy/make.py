"""Makes the deployment of a plan; pure: what this machine has comes in as records."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlsplit

from kiln import errors
from kiln.deploy import notes
from kiln.deploy.records import CACHE, Deployment, Form
from kiln.image import local
from kiln.registry import reference, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.deploy.records import Gpu, Wanted
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

# a limit, not a reservation: workers of one node meet in /dev/shm, and 64 MB, the engine's default, is too little
_SHM_GIB = 32
_VOLUME = "kiln-huggingface"
_SERVER_PORT = 8000
_LAST_PORT = 65535
_MAX_NAME = 63  # of a Kubernetes name; docker's and compose's may be longer
_FIRST_RENDER_NODE = 128  # the kernel numbers render nodes from here
_RENDER_NODES = {"gfx942": 8, "gfx950": 8}  # what one GPU takes of them, for the parts that it can be split into
_COMPUTE_UNITS = {"gfx942": "304", "gfx950": "256"}
_COMPILERS = (
    ("VLLM_CACHE_ROOT", "vllm", {"rocm", "cuda"}),
    ("TRITON_CACHE_DIR", "triton", {"rocm", "cuda"}),
    ("FLASHINFER_WORKSPACE_BASE", "flashinfer", {"cuda"}),
)
_KFD = "/dev/kfd"
_DIGEST = re.compile(r"(?:^|@)sha256:([0-9a-f]{64})$")
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PARALLEL = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


def make(plan: Plan, wanted: Wanted, *, built: Receipt | None = None, gpus: Sequence[Gpu] = ()) -> Deployment:
    """Return how a target is served; raises one BadInput that lists all that is wrong with what was asked for."""
    amd = plan.image.kind == "rocm"
    if problems := list(_problems(wanted, amd=amd)):
        raise errors.BadInput("\n".join(problems), hint="see what it takes: ./inv run --help")
    count = math.prod(int(_flag(plan, name) or 1) for name in _PARALLEL)
    own = [gpu for gpu in gpus if gpu.arch == plan.target.arch and gpu.parts == 1][:count]
    present = own if len(own) == count else []
    image = wanted.image or _image(plan, wanted, built)
    digest = built.digest if built and image in {built.image, built.pushed} else ""
    doubt = notes.doubt(plan, wanted, image, built)
    address, port = _address(wanted.port)
    return Deployment(
        name=_name(plan.target.slug),
        target=plan.target.slug,
        release=plan.target.release,
        arch=plan.target.arch,
        vendor="amd" if amd else "nvidia",
        image=image,
        digest=digest,
        doubt=doubt,
        pull="never" if local.is_local(image) else "missing" if "@" in image else "always",
        command=plan.serve.argv,
        env=(
            *((item.name, item.value) for item in plan.serve.env),
            ("HF_HOME", CACHE),
            *_compiled(plan, digest or _digest(image)),
        ),
        gpus=count,
        devices=_devices(plan, wanted, count, present),
        groups=_groups(wanted, present) if amd and not wanted.cdi else (),
        node_labels=_node_labels(plan.target.arch) if wanted.form == "k8s" else (),
        # vLLM asks for SYS_PTRACE and no system call filter on ROCm: the workers of a node map each other's memory;
        # without DAC_OVERRIDE the container's root cannot write where somebody else owns it
        cap_add=(*(["SYS_PTRACE"] if amd else []), *(["DAC_OVERRIDE"] if wanted.cache else [])),
        seccomp="unconfined" if amd else "default",
        shm_gib=_SHM_GIB,
        memlock=-1,  # GPUs and network cards read what is pinned in memory
        cache=wanted.cache or ("" if wanted.form == "k8s" else _VOLUME),
        host_folder=bool(wanted.cache) and wanted.form != "k8s",
        address=address,
        port=port,
        server_port=int(_flag(plan, "--port") or _SERVER_PORT),
        notes=tuple(_notes(plan, wanted, image, doubted=doubt, gpus=(present, gpus))),
    )


def _problems(wanted: Wanted, *, amd: bool) -> Iterator[str]:
    if wanted.form not in get_args(Form):
        yield f"--format: {errors.unknown('format', wanted.form, get_args(Form))}"
    if wanted.image:
        try:
            reference.parse(wanted.image)
        except errors.BadInput as error:
            yield f"--image: {error.message}"
    try:
        _address(wanted.port)
    except ValueError:
        yield f"--port {wanted.port}: neither PORT nor ADDRESS:PORT, such as 8000, 0.0.0.0:8000 or [::1]:8000"
    if wanted.gid and not all(part.isascii() and part.isdecimal() for part in wanted.gid.split(",")):
        yield f"--gid {wanted.gid}: not a group's number, or several with commas between"
    if wanted.gid and (wanted.cdi or not amd):
        yield f"--gid {wanted.gid}: only ROCm's device files, not asked for by CDI, need their groups"
    if wanted.form == "k8s":
        yield from _cluster_problems(wanted)
    elif wanted.cache and (not wanted.cache.startswith("/") or re.search(r'[,:"\x00-\x1f]', wanted.cache)):
        yield f"--cache {wanted.cache}: not the absolute path of a folder, without comma, colon and quote"


def _cluster_problems(wanted: Wanted) -> Iterator[str]:
    if ":" in wanted.port:
        yield f"--port {wanted.port}: in Kubernetes a port of the Service, which has no address"
    if wanted.cache and not _CLAIM.fullmatch(wanted.cache):
        yield f"--cache {wanted.cache}: with --format k8s it is the name of a PersistentVolumeClaim"
    if wanted.cdi:
        yield "--cdi: in Kubernetes the vendor's device plugin gives the devices"


def _address(text: str) -> tuple[str, int]:
    """Return address and port of `[ADDRESS:]PORT`, an address of IPv6 in brackets; raises ValueError."""
    address, _, port = text.rpartition(":")
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    host = ipaddress.ip_address(bare or "127.0.0.1")
    if (host.version == 6) != (bare != address):  # noqa: PLR2004 - IPv6
        raise ValueError(text)
    if not (port.isascii() and port.isdecimal() and 0 < int(port) <= _LAST_PORT):
        raise ValueError(text)
    return f"[{host}]" if host.version == 6 else str(host), int(port)  # noqa: PLR2004 - IPv6


def _name(slug: str) -> str:
    """Return a name for the container, the compose service and the Kubernetes objects alike: a DNS label."""
    name = "kiln-" + re.sub(r"[^a-z0-9]+", "-", slug).strip("-")
    if len(name) <= _MAX_NAME:
        return name
    mark = hashlib.sha256(slug.encode()).hexdigest()[:8]
    return f"{name[: _MAX_NAME - len(mark) - 1].rstrip('-')}-{mark}"


def _flag(plan: Plan, name: str) -> str | None:
    return next((flag.value for flag in plan.serve.flags if flag.name == name), None)


def _image(plan: Plan, wanted: Wanted, built: Receipt | None) -> str:
    """Return the image of the last build, for a cluster as it was pushed; else the name that a build would give."""
    if built is None:
        return f"{local.PREFIX}{plan.target.slug}:latest"
    return built.pushed if wanted.form == "k8s" and _reachable(built.pushed) else built.image


def _reachable(image: str) -> bool:
    """Say whether other machines can pull it: it was pushed, and not to a registry of this machine alone."""
    return bool(image) and not tokens.is_loopback(urlsplit(f"//{image}").hostname or "")


def _digest(image: str) -> str:
    """Return the digest or the id that a name itself tells; none for a tag."""
    return f"sha256:{found[1]}" if (found := _DIGEST.search(image)) else ""


def _devices(plan: Plan, wanted: Wanted, count: int, present: Sequence[Gpu]) -> tuple[str, ...]:
    """Return device files or CDI names; none where the engine's toolkit or a device plugin gives them."""
    amd = plan.image.kind == "rocm"
    if wanted.form == "k8s":
        return ()
    if wanted.cdi:
        return tuple(f"{'amd' if amd else 'nvidia'}.com/gpu={index}" for index in range(count))
    if not amd:
        return ()
    step = _RENDER_NODES.get(plan.target.arch, 1)
    assumed = (f"/dev/dri/renderD{_FIRST_RENDER_NODE + step * index}" for index in range(count))
    return (_KFD, *([gpu.node for gpu in present] or assumed))


def _groups(wanted: Wanted, present: Sequence[Gpu]) -> tuple[int, ...]:
    if wanted.gid:
        return tuple(sorted({int(part) for part in wanted.gid.split(",")}))
    here = () if wanted.form == "k8s" else present  # a pod runs on another machine
    return tuple(sorted({gid for gpu in here for gid in gpu.gids} - {0}))


def _node_labels(arch: str) -> tuple[tuple[str, str], ...]:
    """Return what a node must have by the labels that the vendors' own programs give it.

    Compute units say architecture and whole GPU at once: a part of a split GPU has fewer.
    """
    labels = {"kubernetes.io/arch": "amd64"}
    if arch.startswith("sm"):
        labels |= {"nvidia.com/gpu.compute.major": arch[2:-1], "nvidia.com/gpu.compute.minor": arch[-1]}
    else:
        labels |= {"amd.com/gpu.cu-count": _COMPUTE_UNITS[arch]}
    return tuple(labels.items())


def _compiled(plan: Plan, digest: str) -> Iterator[tuple[str, str]]:
    """Yield where what is compiled at the first start is kept: a folder for this very image, or none at all.

    AITER has no such folder: with one it would not see what was compiled for it in the image.
    """
    own = {item.name for item in plan.serve.env}
    folder = f"{CACHE}/kiln/{digest.removeprefix('sha256:')[:16]}"
    for name, part, kinds in _COMPILERS:
        if digest and plan.image.kind in kinds and name not in own:
            yield name, f"{folder}/{part}"


def _notes(
    plan: Plan, wanted: Wanted, image: str, *, doubted: errors.Finding | None, gpus: tuple[Sequence[Gpu], Sequence[Gpu]]
) -> Iterator[str]:
    present, found = gpus
    yield from notes.of_image(wanted, image, doubted=doubted)
    if wanted.form == "k8s":
        yield from notes.of_cluster(plan, wanted, _node_labels(plan.target.arch))
    else:
        yield from notes.of_devices(plan, wanted, present=present, gpus=found)
        yield from notes.of_port(wanted, _address(wanted.port)[0])
