"""The `docker buildx build` command of an image, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# 2025-01-01: the time of everything Kiln puts into an image, so that the same inputs give the same digest
SOURCE_DATE_EPOCH = 1735689600
PLATFORM = "linux/amd64"


@dataclass(frozen=True, kw_only=True)
class Build:
    """One BuildKit build: `contexts` are named contexts, `secrets` files that reach no layer.

    `inherited` names arguments that BuildKit reads from the environment, so that a proxy's password is in no argv.
    """

    dockerfile: Path
    context: Path
    contexts: Mapping[str, str]
    args: Mapping[str, str]
    inherited: tuple[str, ...]
    secrets: Mapping[str, Path]
    labels: Mapping[str, str]
    network: str
    metadata: Path


def command(build: Build, *, docker: str = "docker") -> tuple[str, ...]:
    """Return the argv; the image is loaded without a tag, which it gets when its ledger has been compared."""
    return (
        docker,
        "buildx",
        "build",
        "--progress=plain",
        f"--platform={PLATFORM}",
        "--provenance=false",
        "--load",
        f"--network={build.network}",
        f"--metadata-file={build.metadata}",
        f"--file={build.dockerfile}",
        f"--build-arg=SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH}",
        *(f"--build-arg={name}={value}" for name, value in build.args.items()),
        *(f"--build-arg={name}" for name in build.inherited),
        *(f"--build-context={name}={value}" for name, value in build.contexts.items()),
        *(f"--secret=id={name},src={path}" for name, path in build.secrets.items()),
        *(f"--label={name}={value}" for name, value in build.labels.items()),
        str(build.context),
    )
