"""Times `drift` against the plain way to know the same, on the real wheels of every release; needs 2 GB of disk.

    python benchmarks/drift.py [MB/s]

Plain means: fetch each release's wheel, unpack its Python files, `git apply --check` every edition of the release, or
the nearest one below. It says nothing of merged changes, of moved files or of recipes; ours does. Cold means: no cache,
a new process. Both fetch from the same index in the same run, ours first: what the index keeps warm helps plain. With a
rate, both fetch through a server on this machine that passes no more than that on, as a line of that speed would.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urljoin

from kiln import catalog, plan, process
from kiln.catalog import edition_path
from kiln.upstream import index, pip_config, wheel

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[1]
GOALS = {"bytes": 50, "time": 10, "warm": 1.5}


def main() -> None:
    with slowed(float(sys.argv[1])) if len(sys.argv) > 1 else contextlib.nullcontext():
        compare()


def compare() -> None:
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


@contextlib.contextmanager
def slowed(rate: float) -> Iterator[None]:
    """Put a server before the package index that passes on `rate` megabytes a second in all."""
    upstream, session, lock = pip_config.read().index_url, index.session(), threading.Lock()
    free_at = [time.monotonic()]

    def pace(size: int) -> None:
        with lock:
            free_at[0] = max(free_at[0], time.monotonic()) + size / rate / 1e6
            wait = free_at[0] - time.monotonic()
        time.sleep(max(0.0, wait))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = unquote(self.path.removeprefix("/f/").partition("/")[0]) if self.path.startswith("/f/") else ""
            url = asked or upstream + self.path.removeprefix("/simple")
            given = {"Range": self.headers["Range"]} if "Range" in self.headers else {}
            with session.get(url, headers=given, stream=True, timeout=60) as answer:
                blocks = answer.iter_content(1 << 18) if asked else iter([links(answer.content, answer.url)])
                self.send_response(answer.status_code)
                if "Content-Range" in answer.headers:
                    self.send_header("Content-Range", answer.headers["Content-Range"])
                self.end_headers()
                for block in blocks:
                    pace(len(block))
                    self.wfile.write(block)

        def log_message(self, *_: object) -> None:
            pass

    def links(page: bytes, at: str) -> bytes:
        def own(match: re.Match[str]) -> str:
            url, _, fragment = urljoin(at, match[1]).partition("#")
            return f'href="/f/{quote(url, safe="")}/{url.rpartition("/")[2]}#{fragment}"'

        return re.sub(r'href="([^"]+)"', own, page.decode()).encode()

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        os.environ["PIP_INDEX_URL"] = f"http://127.0.0.1:{server.server_address[1]}/simple"
        pip_config.read.cache_clear()
        yield
        server.shutdown()


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
