"""Which process is which: a pid with its start time and boot, so that a recycled pid is never taken for ours."""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_DELETED = " (deleted)"
_TERM_S = 20.0
_KILL_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """One process for all time: its pid, its start in clock ticks since boot, and the boot."""

    pid: int
    started: int
    boot: str


def boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def of(pid: int) -> Identity | None:
    """Return who has `pid` now; nobody when it ended, even if its parent has not noticed."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else Identity(pid=pid, started=int(fields[18]), boot=boot())


def alive(identity: Identity) -> bool:
    return of(identity.pid) == identity


def running(programs: tuple[Path, ...]) -> tuple[Identity, ...]:
    """Return the processes that run one of these very files (the kernel's word, not their arguments), in that order."""
    found: list[tuple[int, Identity]] = []
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            program = Path(str((entry / "exe").readlink()).removesuffix(_DELETED))
        except OSError:
            continue
        identity = of(int(entry.name)) if program in programs else None
        if identity:
            found.append((programs.index(program), identity))
    return tuple(identity for _, identity in sorted(found, key=lambda pair: pair[0]))


def end(identity: Identity, *, term_s: float = _TERM_S) -> None:
    """End exactly this process: ask first, kill after `term_s`."""
    try:
        handle = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return
    try:
        for number, wait_s in ((signal.SIGTERM, term_s), (signal.SIGKILL, _KILL_S)):
            if not alive(identity):
                return
            signal.pidfd_send_signal(handle, number)
            select.select([handle], [], [], wait_s)
    except ProcessLookupError:
        return
    finally:
        os.close(handle)
