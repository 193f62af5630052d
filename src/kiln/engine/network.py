"""Chooses addresses that nothing on the machine uses, and makes and removes bridges (ioctl: `ip` may be missing)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors
from kiln.engine.plan import Network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_RANGES = (IPv4Network("172.16.0.0/12"), IPv4Network("10.0.0.0/8"), IPv4Network("192.168.0.0/16"))
_BLOCK = 18
_FIRST_PORT = 21000  # above what services use by habit, below what the kernel gives to clients
_PORTS = 4000
_SYS_NET = Path("/sys/class/net")

# linux/sockios.h, linux/if.h
_SIOCGIFADDR = 0x8915
_SIOCSIFFLAGS = 0x8914
_SIOCSIFADDR = 0x8916
_SIOCSIFNETMASK = 0x891C
_SIOCBRADDBR = 0x89A0
_SIOCBRDELBR = 0x89A1
_IFF_UP = 0x1


def choose(
    identity: str, *, taken: Iterable[IPv4Network], is_free: Callable[[int], bool], before: Network | None = None
) -> Network:
    """Return what `before` had if still free, else the first free block and port from a start that `identity` gives."""
    used = tuple(taken)
    seed = int(identity, 16)
    blocks = [block for base in _RANGES for block in _rotated(tuple(base.subnets(new_prefix=_BLOCK)), seed)]
    ports = [_FIRST_PORT + (seed + step) % _PORTS for step in range(_PORTS)]
    if before:
        blocks, ports = [before.block, *blocks], [before.port, *ports]
    block = next((block for block in blocks if not any(block.overlaps(other) for other in used)), None)
    port = next((port for port in ports if is_free(port)), None)
    if block is None or port is None:
        raise errors.Missing("no free private address block or loopback port for the engine on this machine")
    return Network(block=block, port=port)


def _rotated(blocks: Sequence[IPv4Network], seed: int) -> tuple[IPv4Network, ...]:
    start = seed % len(blocks)
    return (*blocks[start:], *blocks[:start])


def parse_routes(text: str) -> tuple[IPv4Network, ...]:
    """Read /proc/net/route: every destination but the default one."""
    networks = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        destination, mask = (IPv4Address(int(fields[i], 16).to_bytes(4, "little")) for i in (1, 7))
        if int(mask):
            networks.append(IPv4Network(f"{destination}/{mask}"))
    return tuple(networks)


def parse_nameservers(text: str) -> tuple[IPv4Network, ...]:
    """Read /etc/resolv.conf: a name server may lie behind the default route, and must stay reachable."""
    found = []
    for line in text.splitlines():
        keyword, _, address = line.strip().partition(" ")
        if keyword == "nameserver":
            with contextlib.suppress(ValueError):
                found.append(IPv4Network(address.strip()))
    return tuple(found)


def taken() -> tuple[IPv4Network, ...]:
    """Return the networks that the machine has a route to, or its names come from."""
    resolver = Path("/etc/resolv.conf")
    names = parse_nameservers(resolver.read_text()) if resolver.exists() else ()
    return (*parse_routes(Path("/proc/net/route").read_text()), *names)


def is_free(port: int) -> bool:
    """Say whether a server could listen on this loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def add_bridge(name: str, network: Network) -> None:
    """Make a bridge, up, with the network's gateway as its address."""
    with _control() as control:
        fcntl.ioctl(control, _SIOCBRADDBR, _name(name))
        fcntl.ioctl(control, _SIOCSIFADDR, _address(name, network.gateway))
        fcntl.ioctl(control, _SIOCSIFNETMASK, _address(name, str(network.bridge.netmask)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _flags(name, _IFF_UP))


def bridges(name: str, block: IPv4Network | None) -> tuple[str, ...]:
    """Return the bridges that are an engine's: `name`, and the user-defined networks in its block."""
    found = []
    with _control() as control:
        for _, interface in socket.if_nameindex():
            if not (_SYS_NET / interface / "bridge").is_dir():
                continue
            address = _address_of(control, interface)
            inside = block is not None and interface.startswith("br-") and address is not None and address in block
            if interface == name or inside:
                found.append(interface)
    return tuple(found)


def remove_bridge(name: str) -> None:
    """Take a bridge down and remove it; one that is gone is fine."""
    with _control() as control:
        try:
            fcntl.ioctl(control, _SIOCSIFFLAGS, _flags(name, 0))
            fcntl.ioctl(control, _SIOCBRDELBR, _name(name))
        except OSError as error:
            if error.errno not in {errno.ENODEV, errno.ENXIO}:
                raise


def _address_of(control: socket.socket, name: str) -> IPv4Address | None:
    try:
        answer = fcntl.ioctl(control, _SIOCGIFADDR, _name(name))
    except OSError:
        return None
    return IPv4Address(answer[20:24])


def _control() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def _name(name: str) -> bytes:
    return struct.pack("40s", name.encode())


def _address(name: str, address: str) -> bytes:
    return struct.pack("16sH2x4s16x", name.encode(), socket.AF_INET, socket.inet_aton(address))


def _flags(name: str, flags: int) -> bytes:
    return struct.pack("16sh22x", name.encode(), flags)
