"""Says of a deployment what a person must know or do: about its image, its GPUs, its port and its cluster."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from kiln import errors
from kiln.deploy.records import API_KEY
from kiln.image import local

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.deploy.records import Gpu, Wanted
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

WHOLE = "amd-smi set --compute-partition SPX"
_LABELLERS = {"rocm": "AMD's node labeller", "cuda": "NVIDIA's GPU feature discovery"}


def doubt(plan: Plan, wanted: Wanted, image: str, built: Receipt | None) -> errors.Finding | None:
    """Return why the image may not be the target's: it was not built here, or with another series than the plan's."""
    target = plan.target
    hint = f"./inv build --variant {target.variant} --arch {target.arch} --release {target.release}"
    planned = tuple(use.id for use in plan.series)
    if built is None:
        return None if wanted.image else errors.Finding(where=image, problem="was not built here", hint=hint)
    if image in {built.image, built.pushed} and built.series != planned:
        shown = (", ".join(series) or "no patch" for series in (built.series, planned))
        problem = "was built with {}, and the plan has {}".format(*shown)
        return errors.Finding(where=image, problem=problem, hint=hint)
    return None


def of_image(wanted: Wanted, image: str, *, doubted: errors.Finding | None) -> Iterator[str]:
    if doubted:
        yield f"{doubted.where} {doubted.problem}: {doubted.hint}"
    if local.is_local(image):
        if wanted.form == "k8s":
            yield f"{image} is in no registry, so nodes must have it already: publish it, then --image HOST/NAME@DIGEST"
    elif "@" not in image:
        yield (
            f"{image} is a tag, which can move, so nothing that it compiles is kept between starts: "
            "name the image by its digest"
        )


def of_devices(plan: Plan, wanted: Wanted, *, present: Sequence[Gpu], gpus: Sequence[Gpu]) -> Iterator[str]:
    """Yield what is not known of the device files of a docker command or compose file."""
    arch = plan.target.arch
    if plan.image.kind != "rocm" or present:
        return
    if any(gpu.arch == arch and gpu.parts > 1 for gpu in gpus):
        yield f"{arch} GPUs here are split into parts, and the target needs whole ones: {WHOLE}"
    if wanted.cdi:
        return
    yield f"too few {arch} GPUs here, so the render nodes are assumed; where the GPUs are: ls -l /dev/dri"
    if not wanted.gid:
        yield "no group is added; where the GPUs are: stat -c %g /dev/kfd /dev/dri/renderD*, then --gid with that"


def of_port(wanted: Wanted, address: str) -> Iterator[str]:
    """Yield who else can use the server, where not only this machine can."""
    if wanted.form != "k8s" and not ipaddress.ip_address(address.strip("[]")).is_loopback:
        yield f"whoever reaches {address} can use the model, unless {API_KEY} is set where this is run"


def of_cluster(plan: Plan, wanted: Wanted, labels: Sequence[tuple[str, str]]) -> Iterator[str]:
    own = ", ".join(f"{name}={value}" for name, value in labels if "gpu" in name)
    yield f"it waits for a node that {_LABELLERS[plan.image.kind]} labelled {own}"
    yield "a token, where the model needs one: kubectl create secret generic kiln-hf-token --from-file=token=FILE"
    yield (
        "whoever reaches the Service can use the model, unless that secret has a key for the API too: "
        "--from-file=api-key=FILE"
    )
    if not wanted.cache:
        yield (
            "the model goes onto the node's own disk, hundreds of GB, and every new pod fetches it again: "
            "--cache NAME of a PersistentVolumeClaim keeps it"
        )
    if plan.image.kind == "rocm":
        yield "the namespace must allow it: pod-security.kubernetes.io/enforce=privileged, for SYS_PTRACE and seccomp"


def of_engine(image: str, engine: Engine | None) -> Iterator[str]:
    """Yield how the printed command finds an image of the embedded engine, and what it cannot do there."""
    if engine and engine.embedded and local.is_local(image):
        yield (
            f"{image} lies in Kiln's embedded engine, whose containers have no GPUs and no way out of this machine; "
            f"docker sees it there with: export DOCKER_HOST={engine.host}"
        )
