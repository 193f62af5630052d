"""Builds the wheel of a package from its pinned source, on the base that it will run on, without a network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import facts
import install
import protect


def main(tools: str, wheels: str, source: str, out: str) -> None:
    """Build what installs.json names as `source` into `out`; raises Refused."""
    asked = json.loads(facts.INSTALLS.read_text())["source"]
    before = protect.state()
    with tempfile.TemporaryDirectory() as needed:
        for package in asked["requires"]:
            install.install(package, f"{tools}/uv", [wheels], target=needed)
        build(asked, source, out, needed)
    protect.compare(before, protect.state(), f"the build of {asked['name']}")


def build(asked: dict[str, Any], source: str, out: str, needed: str) -> None:
    """Run setup.py; raises Refused unless it makes one wheel, of the package and version that are asked for."""
    name, version = asked["name"], asked["version"]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(part for part in (needed, os.environ.get("PYTHONPATH", "")) if part),
        "PYTHONDONTWRITEBYTECODE": "1",
        # the source comes without its history, out of which setuptools_scm would read the version
        "SETUPTOOLS_SCM_PRETEND_VERSION": version,
        **asked["env"],
    }
    argv = [sys.executable, "setup.py", "--quiet", "bdist_wheel", f"--dist-dir={out}"]
    if code := subprocess.run(argv, cwd=source, env=env, check=False).returncode:
        raise protect.Refused(f"{name} {version} cannot be built: setup.py ends with {code}, and says why above")
    found = sorted(path.name for path in Path(out).glob("*.whl"))
    begins = f"{name.replace('-', '_')}-{version}"
    # a package may add of what it is built for: 1.0+rocm7.2
    if len(found) != 1 or not found[0].startswith((f"{begins}-", f"{begins}+")):
        raise protect.Refused(f"{name} {version} was to be built, and {' '.join(found) or 'nothing'} was")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:5])
    except protect.Refused as why:
        sys.exit(install.refused(why))
