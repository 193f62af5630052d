"""Says which GPUs this machine has, as the kernel and the vendor's tool name them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, process
from kiln.deploy.records import Gpu

if TYPE_CHECKING:
    from collections.abc import Iterator

_NODES = "sys/class/kfd/kfd/topology/nodes"
_TIMEOUT_S = 60
_SMI = ("nvidia-smi", "--query-gpu=index,compute_cap", "--format=csv,noheader,nounits")
# bus and device of a PCI address: a split device's nodes have the number of their part above it, or as the function
_DEVICE_BITS = 0xFFF8
_SMI_LINE = re.compile(r"(\d+), (\d+)\.(\d+)")


def amd(root: Path = Path("/")) -> tuple[Gpu, ...]:
    """Return the GPUs that the ROCm driver lists, by the number of their render node; none where it is not loaded.

    Not the numbers from 128 upwards: partitions and display adapters take some.
    """
    folders = sorted((root / _NODES).glob("[0-9]*"))
    nodes = sorted(node for folder in folders for node in _render_node(folder))
    parts = Counter(device for _, _, device in nodes)
    return tuple(
        Gpu(arch=arch, node=f"/dev/dri/renderD{minor}", gids=tuple(_gids(root, minor)), parts=parts[device])
        for minor, arch, device in nodes
    )


def nvidia() -> tuple[Gpu, ...]:
    """Return the GPUs that nvidia-smi lists; none where it is not installed. Raises CommandFailed when it fails."""
    try:
        said = process.ask(_SMI, timeout_s=_TIMEOUT_S)
    except errors.Missing:
        return ()
    matches = [_SMI_LINE.fullmatch(line.strip()) for line in said.splitlines()]
    return tuple(Gpu(arch=f"sm{match[2]}{match[3]}", node=match[1]) for match in matches if match)


def _render_node(folder: Path) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """Yield number, arch and device (domain, place) of a node of the topology that is a GPU which this user may use."""
    try:
        properties = dict(line.split(" ", 1) for line in (folder / "properties").read_text().splitlines())
        version, minor = int(properties["gfx_target_version"]), int(properties["drm_render_minor"])
        device = (int(properties["domain"]), int(properties["location_id"]) & _DEVICE_BITS)
    except (OSError, ValueError, KeyError):  # the kernel shows no properties of a GPU that a cgroup forbids
        return
    if version and minor > 0:
        yield minor, f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}", device


def _gids(root: Path, minor: int) -> Iterator[int]:
    for path in (root / "dev/kfd", root / f"dev/dri/renderD{minor}"):
        try:
            yield path.stat().st_gid
        except OSError as error:
            raise errors.of_system(error) from error
