"""Ends an image: the series applied, stale caches removed, /opt/kiln filled, the image's facts read, one time set."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import facts
import settle

VERSIONS = Path("/opt/kiln/versions.json")
# what was compiled of sources that the series may have changed
CACHES = (
    *("~/.triton/cache", "~/.triton/dump", "~/.triton/override", "~/.cache/vllm", "~/.cache/flashinfer"),
    "/tmp/torchinductor_*",  # noqa: S108  # where torch puts it
)
CACHE_SETTINGS = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE")


def main(rootfs: str, patch: list[str]) -> int:
    """Run the patch step, whose exit code counts, then the rest; `rootfs` is the tar of what is put in place."""
    since = settle.mark()
    if code := subprocess.run([sys.executable, "-I", "-B", *patch], check=False).returncode:
        return code
    for path in caches():
        print(f"finish: a stale cache is removed: {path}", flush=True)
        shutil.rmtree(path)
    unpack(rootfs)
    VERSIONS.write_text(json.dumps(facts.facts(), indent=2, sort_keys=True) + "\n")
    settle.settle(since)
    return 0


def caches() -> list[Path]:
    """Return the caches that are there; a setting that names a cache names all of its content."""
    homes = {str(Path.home()), "/root"}
    patterns = {pattern.replace("~", home) for pattern in CACHES for home in homes}
    patterns |= {os.environ[name] for name in CACHE_SETTINGS if os.environ.get(name)}
    found = {path for pattern in patterns for path in Path("/").glob(pattern.lstrip("/"))}
    return sorted(path for path in found if path.is_dir() and not path.is_symlink())


def unpack(rootfs: str) -> None:
    """Put the files of a tar below /, and the folders above them."""
    with tarfile.open(rootfs) as archive:
        for member in archive:
            path = Path("/") / member.name
            if member.isdir():
                path.mkdir(exist_ok=True)
            elif content := archive.extractfile(member):
                path.write_bytes(content.read())
                path.chmod(member.mode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
