"""Makes an installed tree small and reproducible: drops what serving never opens, strips, sets every time to the epoch.

Usage: python3 slim.py SITE   (SOURCE_DATE_EPOCH is set; SITE lies under /out)
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

DROPPED = (
    "torch/test",
    "torch/include",
    "torch/share",
    "mistral_common/data",
    "pycountry/locales",
    "bin",
)
TEST_LIBRARIES = (
    "libtorchbind_test.so",
    "libjitbackend_test.so",
    "libbackend_with_compiler.so",
    "libaoti_custom_ops.so",
)
SOURCE_SUFFIXES = {".pyi", ".pxd", ".pyx", ".c", ".cpp", ".h", ".hpp", ".cu", ".cuh", ".a", ".lib", ".md"}
STRIPPED_FROM_BYTES = 200_000


def drop(site: Path) -> None:
    """Remove what only developers open."""
    for name in DROPPED:
        shutil.rmtree(site / name, ignore_errors=True)
    for name in TEST_LIBRARIES:
        (site / "torch/lib" / name).unlink(missing_ok=True)
    for tool in (site / "torch/bin").glob("*"):
        if tool.is_dir():
            shutil.rmtree(tool)
        elif tool.name != "torch_shm_manager":
            tool.unlink()
    drop_by_name(site)


def drop_by_name(site: Path) -> None:
    """Remove test packages, bytecode, headers and stubs wherever they are."""
    for folder, folders, files in os.walk(site):
        here = Path(folder)
        top = here.relative_to(site).parts[:1]
        for name in list(folders):
            tests = name == "tests" or (name == "test" and (here / name / "__init__.py").exists())
            if name == "__pycache__" or (tests and top != ("torch",)):  # torch imports its own testing modules
                shutil.rmtree(here / name)
                folders.remove(name)
        for name in files:
            path = here / name
            keeps_source = "torch/_inductor" in folder or here.name.endswith(".dist-info")
            if path.suffix in SOURCE_SUFFIXES and not keeps_source:
                path.unlink()


def strip(site: Path) -> set[Path]:
    """Strip debug symbols of shared objects in place and return those that changed."""
    objects = [
        path
        for path in site.rglob("*.so*")
        if path.is_file() and not path.is_symlink() and path.stat().st_size > STRIPPED_FROM_BYTES
        if not path.parent.name.endswith(".libs")  # repaired by auditwheel: strip would damage them
    ]
    for path in objects:
        subprocess.run(["strip", "--strip-unneeded", str(path)], check=True)  # noqa: S607
    return set(objects)


def correct_records(site: Path, changed: set[Path]) -> None:
    """Make every RECORD true again: no line for a file that is gone, the new hash for one that changed."""
    for record in site.glob("*.dist-info/RECORD"):
        # uv notes when the local wheel was made: the one thing that differs from machine to machine
        (record.parent / "uv_cache.json").unlink(missing_ok=True)
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        for name, *hash_and_size in csv.reader(io.StringIO(record.read_text(encoding="utf-8"))):
            path = site / name
            if path.exists():
                unknown = path in changed or (not hash_and_size[0] and path != record)
                writer.writerow([name, *(hashed(path) if unknown else hash_and_size)])
        record.write_text(out.getvalue(), encoding="utf-8")


def hashed(path: Path) -> tuple[str, str]:
    """Return the hash and size columns of a RECORD line (the binary distribution format of PyPA)."""
    data = path.read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}", str(len(data))


def set_times(top: Path, epoch: int) -> None:
    """Give every file and folder the same time, so that the same bytes make the same layer."""
    for folder, folders, files in os.walk(top, topdown=False):
        for name in (*files, *folders):
            os.utime(Path(folder) / name, (epoch, epoch), follow_symlinks=False)
    os.utime(top, (epoch, epoch))


def main(site: Path) -> None:
    drop(site)
    correct_records(site, strip(site))
    set_times(Path("/out"), int(os.environ["SOURCE_DATE_EPOCH"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
