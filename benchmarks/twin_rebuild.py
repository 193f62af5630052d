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

import yaml

from kiln import catalog, engine, plan, process
from kiln.catalog import edition_path
from kiln.image import context, prepare
from kiln.image.rehearsal import DISTRIBUTION
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


def edit(root: Path, chain: list[str], pristine: dict[str, bytes], mark: str) -> None:
    """Change a comment of an edition, and the hashes that follow from it, of the editions on top of it too."""
    held = {name: (root / edition_path(name, RELEASE)).read_bytes() for name in chain}
    start = held[PATCH].index(b"# A stray closer")
    line = held[PATCH][start : held[PATCH].index(b"\n", start)]
    held[PATCH] = held[PATCH].replace(line, b"# A stray closer, " + mark.encode())
    for patch in authoring.series(DISTRIBUTION, RELEASE, held.items(), Memory(pristine)).patches:
        (root / edition_path(patch.id, RELEASE)).write_bytes(patch.data)
        path = root / "patches" / patch.id / "patch.yaml"
        record = yaml.safe_load(path.read_text())
        files = {file.path: {"pre": file.pre, "post": file.post} for file in patch.files}
        record["editions"][RELEASE] = {"sha256": patch.sha256, "files": files}
        path.write_text(yaml.safe_dump(record, sort_keys=False))


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
    secrets = context.stage_secrets(folder / "secrets", real.config.ca)
    staged = real.state / "contexts" / f"{target.target.slug}-twin"
    argv = (
        *docker.buildx,
        "build",
        "--load",
        "--provenance=false",
        f"--network={docker.build_network}",
        f"--file={folder / 'Dockerfile'}",
        f"--build-context=builder=oci-layout://{contexts[-1].parent}",
        f"--build-context=tools={real.state / 'tools'}",
        f"--build-context=wheels={real.state / 'torch' / prepare.twin_of(target).torch.sha256}",
        *(f"--secret=id={name},src={path}" for name, path in secrets.items()),
        str(staged),
    )
    return argv, docker.environment()


def main() -> None:
    real = catalog.load(catalog.find_root(Path(__file__).parent))
    target = plan.make(real, variant="mxfp8", arch="gfx942")
    chain = [use.id for use in target.series if any(path == PARSER for path, _, _ in use.files)]
    paths = sorted({path for use in target.series if use.id in chain for path, _, _ in use.files})
    pristine = wheel.read(prepare.twin_of(target).wheel, paths, cache=real.state / "wheels")
    ours, peer = [], []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "catalog"
        for name in ("images", "patches", "recipes"):
            shutil.copytree(real.root / name, root / name)
        kiln = process.python("-m", "kiln", "build", *TARGET)
        environment = os.environ | {"KILN_HOME": str(real.state)}
        seconds(kiln, root, environment)
        for count in range(ROUNDS):
            edit(root, chain, pristine, f"round {count}")
            ours.append(seconds(kiln, root, environment))
            argv, docker_environment = usual(real, Path(scratch))
            peer.append(seconds(argv, root, docker_environment))
    print(f"edit one patch, rebuild: kiln build --twin  {statistics.median(ours):6.2f} s")
    print(f"the usual way, same packages, warm caches   {statistics.median(peer):6.2f} s")
    print(f"ratio                                       {statistics.median(peer) / statistics.median(ours):6.1f} x")


if __name__ == "__main__":
    main()
