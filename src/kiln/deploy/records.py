"""The records of a deployment: what a person asks for, which GPUs there are, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from kiln.errors import Finding

Form = Literal["docker", "compose", "k8s"]

CAPABILITIES = "ALL"  # what is dropped; `cap_add` gives single ones back
CACHE = "/cache/huggingface"
TOKEN = "HF_TOKEN"  # noqa: S105 - the name of the variable, never its value
API_KEY = "VLLM_API_KEY"
# a server that is told to end finishes its requests and frees its GPUs
STOP_S = 120
# two hours for half a terabyte of weights to be fetched and loaded; until then nothing asks whether it lives
START_PERIOD_S = 7200


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a person asks for beside the target; an empty text means Kiln's own choice.

    `port` is PORT or ADDRESS:PORT; `cache` a folder of the host, or in Kubernetes the name of a volume claim; `gid` the
    numbers of the groups that own the GPUs' device files; `cdi` asks for devices by their CDI names.
    """

    form: str = "docker"
    image: str = ""
    port: str = "8000"
    cache: str = ""
    gid: str = ""
    cdi: bool = False


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU of this machine: its device file, or its index where the engine's toolkit finds the files.

    `parts` is how many such files its device has: more than one where the device is split, and this is one part.
    """

    arch: str
    node: str
    gids: tuple[int, ...] = ()
    parts: int = 1


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """A target as it is served; the same record gives the docker command, the compose file and the manifests.

    `devices` are device files or CDI names; where there are none, the engine's own toolkit gives `gpus` of them.
    `node_labels` are what a Kubernetes node must have. `memlock` is in bytes, -1 for no limit. `pull` says whether the
    image may come from a registry, `digest` what it must be where a receipt says so, `doubt` why it may not be the
    target's image. `host_folder` says that `cache` is a folder of the host, not a volume. `notes` are what a person
    must know or do.
    """

    name: str
    target: str
    release: str
    arch: str
    vendor: Literal["amd", "nvidia"]
    image: str
    digest: str
    doubt: Finding | None
    pull: Literal["never", "missing", "always"]
    command: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    gpus: int
    devices: tuple[str, ...]
    groups: tuple[int, ...]
    node_labels: tuple[tuple[str, str], ...]
    cap_add: tuple[str, ...]
    seccomp: Literal["default", "unconfined"]
    shm_gib: int
    memlock: int
    cache: str
    host_folder: bool
    address: str
    port: int
    server_port: int
    notes: tuple[str, ...]
