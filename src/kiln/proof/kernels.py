"""The environment with torch and Triton in which patched vLLM modules are imported: extra `kernels`, locked by hash."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from kiln import errors, files, process
from kiln.image import context

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.report import Reporter

LOCK = "requirements-kernels.lock"


def ensure(catalog: Catalog, reporter: Reporter) -> Path:
    """Return the environment's interpreter; makes it where it is missing or of another lock.

    Raises Missing where torch's CPU wheel or a requirement cannot be had.
    """
    home = catalog.state / "kernels"
    pins = catalog.releases.releases[catalog.releases.default_release]
    if not pins.twin:
        raise errors.Missing(f"release {catalog.releases.default_release} pins no CPU wheel of torch")
    lock = (catalog.root / LOCK).read_text(encoding="utf-8")
    for name in ("pytest", "triton"):
        if f"\n{name}==" not in lock:
            raise errors.BadInput(f"{LOCK}: does not lock {name}", hint=f"git checkout {LOCK}")
    wanted = lock + context.requirement(pins.twin.torch)
    with files.locked(home):
        made = home / "made-from.lock"
        python = home / "venv/bin/python"
        if made.is_file() and made.read_text(encoding="utf-8") == wanted and python.exists():
            return python
        with reporter.step("torch and Triton (once, under a minute)"):
            made.unlink(missing_ok=True)
            shutil.rmtree(home / "venv", ignore_errors=True)
            _make(catalog, home, python)
            files.write(made, wanted)
    return python


def _make(catalog: Catalog, home: Path, python: Path) -> None:
    import uv

    twin = catalog.releases.releases[catalog.releases.default_release].twin
    assert twin is not None
    torch = context.torch_wheel(catalog.state, twin)
    requirement = files.write(home / "torch.lock", f"{torch} --hash=sha256:{twin.torch.sha256}\n")
    tool = uv.find_uv_bin()
    install = (tool, "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--require-hashes")
    try:
        process.ask((tool, "venv", "--quiet", "--python", twin.python, str(home / "venv")))
        process.ask((*install, "--requirement", str(catalog.root / LOCK), "--requirement", str(requirement)))
    except errors.CommandFailed as error:
        hint = f"it needs Python {twin.python} and a package index that pip can reach: pip config list"
        raise errors.Missing(f"the environment with torch and Triton: {error.message}", hint=hint) from error
