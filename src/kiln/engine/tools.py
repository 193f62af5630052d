"""Unpacks the embedded engine's programs from Debian packages; nothing is installed on the system."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, process
from kiln.engine import plan
from kiln.upstream import debian

if TYPE_CHECKING:
    from kiln.engine.plan import Home
    from kiln.report import Reporter

_KEPT = ("usr/bin", "usr/sbin", "usr/libexec")
_UNUSED = ("usr/bin/ctr", "usr/bin/tini")
_MADE_FROM = "MADE-FROM"
_WORKERS = os.cpu_count() or 1


def require() -> None:
    """Refuse, with what to install, a machine on which the embedded engine cannot run."""
    reasons = {
        "not Linux": os.uname().sysname != "Linux",
        "not root": os.geteuid() != 0,
        "no apt-get": shutil.which("apt-get") is None,
        "no dpkg-deb": shutil.which("dpkg-deb") is None,
    }
    why = ", ".join(reason for reason, holds in reasons.items() if holds)
    if why:
        raise errors.Missing(
            f"no Docker engine answers here, and the embedded one needs Debian, Linux and root ({why})",
            hint="install and start Docker with its buildx plugin (packages docker.io and docker-buildx, or "
            "docker-ce), or set DOCKER_HOST; then ./inv engine.status",
        )


def ensure(home: Home, reporter: Reporter) -> None:
    """Make `home.unpacked`, from cached packages where they are whole."""
    debs: list[debian.Deb] = []
    for suite, packages in plan.PACKAGES:
        dest = home.root / "debs" / suite
        found = debian.fetched(packages, suite=suite, dest=dest)
        if not found or not _is_unpacked(home):
            with reporter.step(f"packages of {suite}") as progress:
                found = debian.fetch(packages, suite=suite, dest=dest, progress=progress)
        debs += found
    if not _is_unpacked(home, debs):
        with reporter.step("unpack the engine"):
            _unpack(home, debs)


def _is_unpacked(home: Home, debs: list[debian.Deb] | None = None) -> bool:
    made_from = home.unpacked / _MADE_FROM
    return made_from.exists() and (debs is None or made_from.read_text() == _key(debs))


def _key(debs: list[debian.Deb]) -> str:
    return hashlib.sha256("\n".join(deb.sha256 for deb in debs).encode()).hexdigest()


def _unpack(home: Home, debs: list[debian.Deb]) -> None:
    for left in home.root.glob(".unpack.*"):
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=home.root, prefix=".unpack.") as scratch:
        whole, fresh = Path(scratch) / "all", Path(scratch) / "root"
        debian.unpack(debs, whole, workers=_WORKERS)
        (fresh / "usr").mkdir(parents=True)
        for folder in _KEPT:
            (whole / folder).rename(fresh / folder)
        for name in _UNUSED:
            (fresh / name).unlink()
        for program in ("usr/sbin/dockerd", "usr/sbin/runc", "usr/bin/containerd", "usr/bin/docker-registry"):
            _check_loads(fresh / program)
        (fresh / _MADE_FROM).write_text(_key(debs))
        shutil.rmtree(home.unpacked, ignore_errors=True)
        fresh.rename(home.unpacked)


def _check_loads(program: Path) -> None:
    """Refuse a program whose shared libraries are not on this machine (apt itself needs the same ones)."""
    result = process.run((str(program), "--version"))
    if result.code:
        raise errors.Missing(
            f"{program.name} of the embedded engine does not start: {result.stderr.strip()}",
            hint="apt-get install libseccomp2 libsystemd0",
        )
