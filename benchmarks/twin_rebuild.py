"""Rebuild of a twin after an edit of one patch, against the same image built the usual way: patch first, install after.

Both are whole processes with warm package caches, in the same run. Usage: .venv/bin/python benchmarks/twin_rebuild.py
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import catalog, engine, plan, process
from kiln.image import build
from kiln.patching import authoring
from kiln.patching.tree import Memory
from kiln.report import Reporter
from kiln.upstream import wheel

if TYPE_CHECKING:
    from kiln.catalog import Catalog

ROUNDS = 3
PATCH, RELEASE = "m3-stream-first-delta", "0.31.0"
PARSER = "vllm/reasoning/minimax_m3_reasoning_parser.py"
TARGET = ("--variant=mxfp8", "--arch=gfx942", "--twin")
USUAL = """
FROM builder
ENV UV_CACHE_DIR=/cache/uv UV_LINK_MODE=copy SSL_CERT_FILE=/run/secrets/ca.crt UV_CONFIG_FILE=/run/secrets/uv.toml \
    SITE=/usr/local/lib/python3.11/dist-packages
COPY patch /patch
RUN --mount=type=bind,from=tools,target=/tools --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=bind,source=install,target=/install --mount=type=bind,source=extras,target=/extras \
    --mount=type=cache,id=kiln-uv,target=/cache/uv --mount=type=secret,id=ca.crt --mount=type=secret,id=uv.toml \
    for lock in requirements torch vllm; do \
      /tools/uv pip install --quiet --target "$SITE" --no-deps --require-hashes --find-links /wheels \
        --requirement /install/$lock.lock; done \
 && mkdir -p /out/usr/local && python3 -B /install/rename.py "$SITE" /extras \
 && python3 -I -B /patch/kiln-patch.pyz apply --series /patch/series --root "$SITE"
"""


def edit(root: Path, pristine: dict[str, bytes], mark: str) -> None:
    """Change a comment of the edition, and the hashes that follow from it."""
    folder = root / "patches" / PATCH
    edition, record = folder / f"{RELEASE}.patch", folder / "patch.yaml"
    old = authoring.edition(PATCH, edition.read_bytes(), Memory(pristine))
    start = old.data.index(b"# A stray closer")
    line = old.data[start : old.data.index(b"\n", start)]
    new = authoring.edition(PATCH, old.data.replace(line, b"# A stray closer, " + mark.encode()), Memory(pristine))
    edition.write_bytes(new.data)
    block, rest = record.read_text().split("  0.33.0:")
    block = block.replace(old.sha256, new.sha256).replace(str(old.files[0].post), str(new.files[0].post))
    record.write_text(f"{block}  0.33.0:{rest}")


def seconds(argv: tuple[str, ...], cwd: Path, env: dict[str, str]) -> float:
    start = time.perf_counter()
    process.ask(argv, cwd=cwd, env=env)
    return time.perf_counter() - start


def usual(real: Catalog, folder: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the command that builds the same image the usual way, over the context that Kiln staged."""
    docker = engine.ensure(real.state / "engine", Reporter(quiet=True))
    contexts = sorted((real.state / "bases").glob("builder-*/index.json"))
    (folder / "Dockerfile").write_text(USUAL)
    target = plan.make(real, variant="mxfp8", arch="gfx942")
    staged = real.state / "contexts" / f"{target.target.slug}-twin"
    argv = (
        docker.docker,
        "buildx",
        "build",
        "--load",
        "--provenance=false",
        f"--network={docker.build_network}",
        f"--file={folder / 'Dockerfile'}",
        f"--build-context=builder=oci-layout://{contexts[-1].parent}",
        f"--build-context=tools={real.state / 'tools'}",
        f"--build-context=wheels={real.state / 'torch' / build.twin_of(target).torch.sha256}",
        f"--secret=id=uv.toml,src={real.state / 'secrets/uv.toml'}",
        f"--secret=id=ca.crt,src={os.environ.get('SSL_CERT_FILE', '/etc/ssl/certs/ca-certificates.crt')}",
        str(staged),
    )
    return argv, docker.environment()


def main() -> None:
    real = catalog.load(catalog.find_root(Path(__file__).parent))
    pristine = wheel.read(
        build.twin_of(plan.make(real, variant="mxfp8", arch="gfx942")).wheel, [PARSER], cache=real.state / "wheels"
    )
    ours, peer = [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "catalog"
        for name in ("images", "patches", "recipes"):
            shutil.copytree(real.root / name, root / name)
        kiln = process.python("-m", "kiln", "build", *TARGET)
        environment = os.environ | {"KILN_HOME": str(real.state)}
        seconds(kiln, root, environment)
        for count in range(ROUNDS):
            edit(root, pristine, f"round {count}")
            ours.append(seconds(kiln, root, environment))
            argv, docker_environment = usual(real, Path(scratch))
            peer.append(seconds(argv, root, docker_environment))
    print(f"edit one patch, rebuild: kiln build --twin  {statistics.median(ours):6.2f} s")
    print(f"the usual way, same packages, warm caches   {statistics.median(peer):6.2f} s")
    print(f"ratio                                       {statistics.median(peer) / statistics.median(ours):6.1f} x")


if __name__ == "__main__":
    main()
