"""Times kiln-patch.pyz against the same guarantees bought by hand, on real sources; needs the package index once.

    python benchmarks/apply.py [repeats]

Every time is that of whole processes, the interpreter's start included; the runs take turns, each on a fresh tree.
By hand means: sha256sum before, git apply --check, git apply, sha256sum after, python -m py_compile of what changed.
Neither RECORD, ledger, journal, fsync, bytecode nor a way back are in that; all are in ours. No side gets bytecode
of its own code: the zipapp is compiled from source each time, as it is on a node.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import catalog, plan, process
from kiln.image import rehearsal
from kiln.patching import authoring, zipapp
from kiln.patching import series as patching
from kiln.patching.outcomes import digest
from kiln.patching.tree import Memory
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiln.patching.series import Series

RELEASE = "0.31.0"
INFO = f"vllm-{RELEASE}.dist-info"
SMALLEST, LARGEST, FILES = 20_000, 120_000, 12
PYTHON = (sys.executable, "-I", "-S", "-B")
IMPORTS = ("argparse", "dataclasses", "hashlib", "json", "pathlib", "re", "typing")  # the floor under any such tool
GOAL_MS = 200
CONTEXT = 3


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One series, where its directory lies, and the tree it is for."""

    name: str
    series: Series
    folder: Path
    site: Path
    pristine: Mapping[str, bytes]

    @property
    def patches(self) -> list[str]:
        return [str(self.folder / patch.edition) for patch in self.series.patches]

    @property
    def files(self) -> list[str]:
        return list(self.series.chains())


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    loaded = catalog.load(catalog.find_root())
    pin = loaded.releases.releases[RELEASE].wheel
    cache = loaded.state / "wheels"
    record = wheel.read(pin, [f"{INFO}/RECORD", f"{INFO}/METADATA"], cache=cache)
    rows = list(csv.reader(io.StringIO(record[f"{INFO}/RECORD"].decode())))
    sizes = {path: int(size) for path, _, size in rows if path.endswith(".py") and size}
    wanted = sorted((path for path in sizes if SMALLEST < sizes[path] < LARGEST), key=sizes.__getitem__)
    target = plan.make(loaded, model="", variant="mxfp8", arch="gfx942", release=RELEASE)
    chosen = [
        *wanted[:: max(1, len(wanted) // FILES)][:FILES],
        *(path for use in target.series for path, *_ in use.files),
    ]
    pristine = {**record, **wheel.read(pin, chosen, cache=cache)}
    with tempfile.TemporaryDirectory(prefix="kiln-bench-", dir=loaded.state) as folder:
        where = Path(folder)
        zipapp.build(where / "kiln-patch.pyz")
        for path, _, _ in rows:
            lay(where / "site" / path, pristine.get(path, b""))
        for name, made in {
            f"catalog series for {target.target.slug}": rehearsal.compile_series(target, loaded),
            "synthetic, 1 file": synthetic(chosen[:1], pristine),
            "synthetic, 4 files": synthetic(chosen[:FILES:3], pristine),
            f"synthetic, {FILES} files": synthetic(chosen[:FILES], pristine),
        }.items():
            place = where / name.replace(" ", "-")
            patching.write_series(place, made)
            bench = Bench(name=name, series=made, folder=place, site=where / "site", pristine=pristine)
            told(bench, timed(bench, where / "kiln-patch.pyz", repeats))


def lay(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def synthetic(paths: list[str], pristine: Mapping[str, bytes]) -> Series:
    """Return a patch for every three files, each with a comment put before two of its statements."""
    editions = []
    for n in range(0, len(paths), 3):
        parts = [edition(path, pristine[path]) for path in sorted(paths[n : n + 3])]
        editions.append((f"synthetic-{n}", b"".join(parts)))
    return authoring.series("vllm", RELEASE, editions, Memory(pristine))


def edition(path: str, data: bytes) -> bytes:
    lines = data.splitlines(keepends=True)
    starts = (b"import ", b"def ", b"class ")
    places = [n for n in range(CONTEXT, len(lines) - CONTEXT) if lines[n].startswith(starts)]
    name = path.encode()
    out = b"diff --git a/%s b/%s\n--- a/%s\n+++ b/%s\n" % (name, name, name, name)
    for shift, n in enumerate((places[0], places[-1])):
        start = n - CONTEXT + 1
        out += b"@@ -%d,%d +%d,%d @@\n" % (start, 2 * CONTEXT, start + shift, 2 * CONTEXT + 1)
        around = [b" " + line for line in lines[n - CONTEXT : n + CONTEXT]]
        out += b"".join((*around[:CONTEXT], b"+# put in by a benchmark\n", *around[CONTEXT:]))
    return out


def timed(bench: Bench, packed: Path, repeats: int) -> dict[str, float]:
    """Return the median in milliseconds of each way to do it."""
    ours = (*PYTHON, str(packed))
    place = (f"--root={bench.site}", f"--series={bench.folder}")
    fresh = {
        "kiln apply": (*ours, "apply", *place, "--fresh"),
        "by hand": ("/bin/sh", "-c", by_hand(bench)),
        "git apply, bare": ("git", "apply", *bench.patches),
    }
    if shutil.which("patch"):
        script = " && ".join(f"patch -s -p1 < {shlex.quote(patch)}" for patch in bench.patches)
        fresh["GNU patch, bare"] = ("/bin/sh", "-c", script)
    fresh["python, our stdlib imports"] = (*PYTHON, "-c", f"import {', '.join(IMPORTS)}")
    held: dict[str, list[float]] = {name: [] for name in fresh}
    applied = {
        "kiln apply, applied already": (*ours, "apply", *place),
        "kiln verify": (*ours, "verify", place[0]),
        "kiln revert": (*ours, "revert", place[0]),
    }
    held.update({name: [] for name in applied})
    for _ in range(repeats):
        for name, argv in fresh.items():
            reset(bench)
            held[name].append(one(argv, bench.site))
            check(bench, changed="imports" not in name)
        reset(bench)
        one(fresh["kiln apply"], bench.site)
        for name, argv in applied.items():
            held[name].append(one(argv, bench.site))
    reset(bench)
    return {name: statistics.median(times) * 1000 for name, times in held.items()}


def by_hand(bench: Bench) -> str:
    """Return the script of a careful person, with as few processes as possible."""
    before = bench.folder.with_suffix(".before")
    after = bench.folder.with_suffix(".after")
    chains = bench.series.chains()
    before.write_text("".join(f"{chain[0].pre}  {path}\n" for path, chain in chains.items()))
    after.write_text("".join(f"{chain[-1].post}  {path}\n" for path, chain in chains.items()))
    return " && ".join(
        (
            f"sha256sum --quiet --check {shlex.quote(str(before))}",
            shlex.join(("git", "apply", "--check", *bench.patches)),
            shlex.join(("git", "apply", *bench.patches)),
            f"sha256sum --quiet --check {shlex.quote(str(after))}",
            shlex.join((sys.executable, "-m", "py_compile", *bench.files)),
        )
    )


def one(argv: tuple[str, ...], site: Path) -> float:
    env = {"PATH": os.environ["PATH"], "HOME": str(site), "GIT_CONFIG_NOSYSTEM": "1"}
    env["GIT_CEILING_DIRECTORIES"] = str(site.parent)
    start = time.perf_counter()
    done = process.run(argv, env=env, cwd=site)
    seconds = time.perf_counter() - start
    if done.code:
        raise SystemExit(f"{shlex.join(argv)}\n{done.stdout}{done.stderr}")
    return seconds


def reset(bench: Bench) -> None:
    """Give the tree its pristine files, as new files, and let the disk settle."""
    for path in (*bench.files, f"{INFO}/RECORD"):
        (bench.site / path).unlink()
        (bench.site / path).write_bytes(bench.pristine[path])
        shutil.rmtree((bench.site / path).parent / "__pycache__", ignore_errors=True)
    for left in (bench.site / INFO).glob("kiln-*"):
        left.unlink()
    os.sync()


def check(bench: Bench, *, changed: bool) -> None:
    for path, chain in bench.series.chains().items():
        wanted = chain[-1].post if changed else chain[0].pre
        assert digest((bench.site / path).read_bytes()) == wanted, path


def told(bench: Bench, medians: Mapping[str, float]) -> None:
    patches, files = len(bench.series.patches), len(bench.files)
    size = sum(len(bench.pristine[path]) for path in bench.files)
    print(f"\n{bench.name}: {patches} patches, {files} files, {size / 1000:.0f} kB of source")
    hand, ours = medians["by hand"], medians["kiln apply"]
    for name, median in medians.items():
        print(f"  {name:<28} {median:7.1f} ms  {median / hand:5.2f} of by hand")
    print(f"  goal, at most by hand: {'met' if ours <= hand else 'missed'} ({ours / hand:.2f})")
    print(f"  goal, under {GOAL_MS} ms:      {'met' if ours < GOAL_MS else 'missed'} ({ours:.1f} ms)")


if __name__ == "__main__":
    main()
