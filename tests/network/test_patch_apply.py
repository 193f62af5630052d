"""`patch.apply` as a person types it, on a venv that holds every real source file of a release."""

from __future__ import annotations

import hashlib
import venv
from typing import TYPE_CHECKING

from kiln import catalog, process
from kiln.upstream.wheel import RemoteWheel

if TYPE_CHECKING:
    from pathlib import Path

CATALOG = catalog.load(catalog.find_root())
TARGET = ("--variant=mxfp8", "--arch=gfx942")


def state(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return mode, time and content of every file."""
    return {
        str(path): (path.stat().st_mode, path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def patch(verb: str, *words: str) -> tuple[int, str]:
    ended = process.run(process.python("-m", "kiln", f"patch.{verb}", *words), cwd=CATALOG.root)
    return ended.code, ended.stdout.splitlines()[-1].rpartition(": ")[2]


def test_twice_applied_then_reverted(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    (site,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    wheel = RemoteWheel(CATALOG.releases.releases["0.31.0"].wheel)
    for name, data in wheel.read(n for n in wheel.names() if n.endswith(".py") or ".dist-info/" in n).items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_bytes(data)
    pristine = state(site)
    root = f"--root={tmp_path / 'venv'}"
    assert patch("apply", root, *TARGET) == (0, "APPLIED")
    applied = state(site)
    assert applied != pristine
    assert patch("apply", root, *TARGET) == (0, "ALREADY_APPLIED")
    assert state(site) == applied
    assert patch("verify", root) == (0, "ALREADY_APPLIED")
    assert patch("revert", root) == (0, "REVERTED")
    without_times = {path: (mode, content) for path, (mode, _, content) in state(site).items()}
    assert without_times == {path: (mode, content) for path, (mode, _, content) in pristine.items()}
