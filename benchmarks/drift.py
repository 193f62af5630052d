"""Times `drift` against the plain way to know the same, on the real wheels of every release; needs 2 GB of disk.

    python benchmarks/drift.py

Plain means: fetch each release's wheel, unpack its Python files, `git apply --check` every edition of the release, or
the nearest one below. It says nothing of merged changes, of moved files or of recipes; ours does. Cold means: no cache,
a new process. Both fetch from the same index in the same run, ours first: what the index keeps warm helps plain.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from kiln import catalog, plan, process
from kiln.catalog import edition_path
from kiln.upstream import wheel

ROOT = Path(__file__).resolve().parents[1]
GOALS = {"bytes": 50, "time": 10, "warm": 1.5}


def main() -> None:
    loaded = catalog.load(ROOT)
    loaded.state.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kiln-bench-", dir=loaded.state) as folder:
        where = Path(folder)
        cold, moved = ours(where / "home")
        warm = min(ours(where / "home")[0] for _ in range(5))
        plain, fetched = by_hand(loaded, where)
    count = len(loaded.releases.releases)
    print(f"{count} releases, {len(loaded.patches)} patches")
    print(f"{'':<22}{'drift':>12}{'plain':>12}{'ratio':>9}   goal")
    print(f"{'fetched, MB':<22}{moved / 1e6:>12.1f}{fetched / 1e6:>12.1f}{fetched / moved:>9.1f}   {GOALS['bytes']}")
    print(f"{'cold, s':<22}{cold:>12.2f}{plain:>12.2f}{plain / cold:>9.1f}   {GOALS['time']}")
    print(f"{'warm, s':<22}{warm:>12.2f}{'':>21}   under {GOALS['warm']}")


def ours(home: Path) -> tuple[float, float]:
    """Return seconds and bytes of the whole task, recipes and report included."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("KILN_")}
    start = time.perf_counter()
    done = process.run(
        (sys.executable, "-m", "kiln", "drift", "--json"), env=env | {"KILN_HOME": str(home)}, cwd=ROOT, timeout_s=600
    )
    seconds = time.perf_counter() - start
    match = re.search(r"read ([0-9.]+) MB", done.stderr)
    if done.code not in {0, 6} or not match:
        raise SystemExit(done.stderr)
    return seconds, float(match[1]) * 1e6


def by_hand(loaded: catalog.Catalog, where: Path) -> tuple[float, int]:
    """Return seconds and bytes of fetching, unpacking and checking, one release after the other."""
    fetched = 0
    start = time.perf_counter()
    for release, pins in loaded.releases.releases.items():
        file, tree = where / pins.wheel.file, where / release
        wheel.download(pins.wheel, file)
        fetched += file.stat().st_size
        with zipfile.ZipFile(file) as packed:
            packed.extractall(tree, [name for name in packed.namelist() if name.endswith(".py")])
        file.unlink()
        for patch in loaded.patches.values():
            if patch.editions:
                edition = loaded.root / edition_path(patch.id, plan.nearest(patch, release))
                process.run(("git", "apply", "--check", str(edition)), cwd=tree)
        print(f"  plain: {release}, {time.perf_counter() - start:.0f} s so far", file=sys.stderr)
    return time.perf_counter() - start, fetched


if __name__ == "__main__":
    main()
