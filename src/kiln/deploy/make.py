"""Makes the deployment of a plan; pure: what this machine has comes in as records."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import re
from typing import TYPE_CHECKING, get_args

from kiln import errors
from kiln.deploy.records import CACHE, Deployment, Form
from kiln.image import local
from kiln.registry import reference

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
_KFD = "/dev/kfd"
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PARALLEL = ("--tensor-parallel-size", "--pipeline-parallel-size", "--data-parallel-size")


def make(plan: Plan, wanted: Wanted, *, built: Receipt | None = None, gpus: Sequence[Gpu] = ()) -> Deployment:
    """Return how a target is served; raises one BadInput that lists all that is wrong with what was asked for."""
    amd = plan.image.kind == "rocm"
    if problems := list(_problems(wanted, amd=amd)):
        raise errors.BadInput("\n".join(problems), hint="see what it takes: ./inv run --help")
    count = math.prod(int(_flag(plan, name) or 1) for name in _PARALLEL)
    own = [gpu for gpu in gpus if gpu.arch == plan.target.arch][:count]
    present = own if len(own) == count else []
    image = wanted.image or (built.image if built else f"{local.PREFIX}{plan.target.slug}:latest")
    never = local.is_local(image)
    host_folder = bool(wanted.cache) and wanted.form != "k8s"
    address, port = _address(wanted.port)
    return Deployment(
        name=_name(plan.target.slug),
        target=plan.target.slug,
        release=plan.target.release,
        arch=plan.target.arch,
        vendor="amd" if amd else "nvidia",
        image=image,
        digest=built.digest if built and built.image == image else "",
        pull="never" if never else "missing" if "@" in image else "always",
        command=plan.serve.argv,
        env=(*((item.name, item.value) for item in plan.serve.env), ("HF_HOME", CACHE)),
        gpus=count,
        devices=_devices(wanted, count, present, amd=amd),
        groups=_groups(wanted, present) if amd and not wanted.cdi else (),
        # vLLM asks for SYS_PTRACE and no system call filter on ROCm: the workers of a node map each other's memory;
        # without DAC_OVERRIDE the container's root cannot write into a folder of somebody else
        cap_add=(*(["SYS_PTRACE"] if amd else []), *(["DAC_OVERRIDE"] if host_folder else [])),
        seccomp="unconfined" if amd else "default",
        shm_gib=_SHM_GIB,
        cache=wanted.cache or ("" if wanted.form == "k8s" else _VOLUME),
        host_folder=host_folder,
        address=address,
        port=port,
        server_port=int(_flag(plan, "--port") or _SERVER_PORT),
        notes=tuple(_notes(plan, wanted, image, present=present, built=bool(built))),
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
        yield f"--port {wanted.port}: neither PORT nor ADDRESS:PORT, such as 8000 or 0.0.0.0:8000"
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
    """Return address and port of `[ADDRESS:]PORT`; raises ValueError."""
    address, _, port = text.rpartition(":")
    host = ipaddress.ip_address(address.removeprefix("[").removesuffix("]") or "127.0.0.1")
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


def _devices(wanted: Wanted, count: int, present: Sequence[Gpu], *, amd: bool) -> tuple[str, ...]:
    """Return device files or CDI names; none where the engine's toolkit or a device plugin gives them."""
    if wanted.form == "k8s":
        return ()
    if wanted.cdi:
        return tuple(f"{'amd' if amd else 'nvidia'}.com/gpu={index}" for index in range(count))
    if not amd:
        return ()
    assumed = (f"/dev/dri/renderD{_FIRST_RENDER_NODE + index}" for index in range(count))
    return (_KFD, *([gpu.node for gpu in present] or assumed))


def _groups(wanted: Wanted, present: Sequence[Gpu]) -> tuple[int, ...]:
    if wanted.gid:
        return tuple(sorted({int(part) for part in wanted.gid.split(",")}))
    here = () if wanted.form == "k8s" else present  # a pod runs on another machine
    return tuple(sorted({gid for gpu in here for gid in gpu.gids} - {0}))


def _notes(plan: Plan, wanted: Wanted, image: str, *, present: Sequence[Gpu], built: bool) -> Iterator[str]:
    target = plan.target
    if local.is_local(image):
        if not (built or wanted.image):
            words = f"--variant {target.variant} --arch {target.arch} --release {target.release}"
            yield f"{image} was not built here: ./inv build {words}"
        if wanted.form == "k8s":
            yield f"{image} is in no registry, so nodes must have it already: publish it, then --image HOST/NAME@DIGEST"
    elif "@" not in image:
        yield f"{image} is a tag, which can move: name the image by its digest"
    if wanted.form == "k8s":
        yield from _cluster_notes(plan, wanted)
    elif plan.image.kind == "rocm" and not (wanted.cdi or present):
        yield f"too few {target.arch} GPUs here, so the render nodes are assumed; where the GPUs are: ls -l /dev/dri"
        if not wanted.gid:
            yield "no group is added; where the GPUs are: stat -c %g /dev/kfd /dev/dri/renderD*, then --gid with that"


def _cluster_notes(plan: Plan, wanted: Wanted) -> Iterator[str]:
    yield "a token, where the model needs one: kubectl create secret generic kiln-hf-token --from-file=token=FILE"
    if not wanted.cache:
        yield "every new pod fetches the model again: --cache NAME of a PersistentVolumeClaim keeps it"
    if plan.image.kind == "rocm":
        yield "the namespace must allow it: pod-security.kubernetes.io/enforce=privileged, for SYS_PTRACE and seccomp"
