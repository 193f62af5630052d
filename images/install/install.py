"""Installs the wheels that a target needs over its base, each by hash, and proves that nothing protected changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import facts
import protect
import settle

REFUSED = 6
# --reinstall: the same version of the base has other bytes, perhaps, than the pinned wheel
UV = (
    *("pip", "install", "--quiet", "--no-config", "--no-cache", "--offline", "--no-python-downloads"),
    *("--break-system-packages", "--no-deps", "--no-index", "--only-binary=:all:", "--require-hashes", "--reinstall"),
)
# INSTALLER and its like, one of which holds a time
SETTINGS = {"UV_NO_INSTALLER_METADATA": "1"}
AITER = "amd-aiter"
# AITER compiles at run time into these, and into its own folders
AITER_JIT = ("~/.aiter", "/root/.aiter")
AITER_FOLDERS = ("aiter", "aiter_meta")


def main(tools: str, folders: list[str]) -> None:
    """Install every package of installs.json; raises Refused with a line for each thing that is wrong."""
    since = settle.mark()
    before = protect.state()
    for package in json.loads(facts.INSTALLS.read_text())["packages"]:
        if found := versions(package["name"]):
            print(f"install: {package['name']} {' and '.join(found)} makes way for {package['version']}", flush=True)
        install(package, f"{tools}/uv", folders)
        protect.compare(before, protect.state(), f"{package['name']} {package['version']}")
        check(package)
        if package["name"] == AITER:
            forget_aiter()
    settle.settle(since)


def install(package: dict[str, str], uv: str, folders: list[str], target: str = "") -> None:
    """Install one wheel, by its pinned hash, or by that of the one file that was built here."""
    name, version = package["name"], package["version"]
    into = f"--target={target}" if target else f"--python={sys.executable}"
    places = [f"--find-links={folder}" for folder in folders]
    asked = f"{name}=={version} --hash=sha256:{package['sha256'] or hash_of_built(name, folders)}\n"
    argv, env = [uv, *UV, into, *places, "--requirement=-"], {**os.environ, **SETTINGS}
    if subprocess.run(argv, input=asked, text=True, env=env, check=False).returncode:
        raise protect.Refused(f"{name} {version} cannot be installed: uv says why above")


def hash_of_built(name: str, folders: list[str]) -> str:
    """Return the hash of the one wheel of a package that was built from source."""
    found = [path for folder in folders for path in Path(folder).glob(f"{name.replace('-', '_')}-*.whl")]
    if len(found) != 1:
        raise protect.Refused(f"{name}: {len(found)} wheels were built, and one was expected")
    return hashlib.sha256(found[0].read_bytes()).hexdigest()


def versions(name: str) -> list[str]:
    """Return the version of each installation of a distribution that Python can see."""
    return sorted(facts.installations().get(facts.canonical(name), {}).values())


def check(package: dict[str, str]) -> None:
    """Raise Refused unless the package is installed once, in the version asked for."""
    name, version = package["name"], package["version"]
    found = versions(name)
    if len(found) > 1:
        raise protect.Refused(f"{name} is installed {len(found)} times: {', '.join(found)}")
    if [each.partition("+")[0] for each in found] != [version.partition("+")[0]]:
        raise protect.Refused(f"{name} {version} was asked for, and {' '.join(found) or 'none'} is installed")


def forget_aiter() -> None:
    """Remove what another AITER compiled, which this one must not load: outside of it, and beside its own files."""
    for path in {Path(place).expanduser() for place in (*AITER_JIT, os.environ.get("AITER_JIT_DIR")) if place}:
        if path.is_dir():
            shutil.rmtree(path)
    distribution = metadata.distribution(AITER)
    listed = {Path(str(distribution.locate_file(path))).resolve() for path in distribution.files or ()}
    for top in AITER_FOLDERS:
        # what lies in a folder comes before it
        for path in sorted(Path(str(distribution.locate_file(top))).rglob("*"), reverse=True):
            if protect.is_folder(path):
                if not any(path.iterdir()):
                    path.rmdir()
            elif path.resolve() not in listed:
                path.unlink()


def refused(error: protect.Refused) -> int:
    """Print why, line by line, and return the exit code that says so."""
    print("\n".join(f"install: {line}" for line in str(error).splitlines()), flush=True)
    return REFUSED


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except protect.Refused as why:
        sys.exit(refused(why))
