"""The hash over all that a build reads: equal ones make equal images, on whatever machine and from whatever mirror."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors
from kiln.image import bake

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kiln.image.bake import Build

_BY_DIGEST = re.compile(r"^[^@\s]+@(sha256:[0-9a-f]{64})$")
_BY_COMMIT = re.compile(r"^[a-z]+://[^#\s]+#([0-9a-f]{40})$")
_CHUNK = 1 << 20
# a commit to something else makes no other image; whether the catalog was edited since does count
_NOT_READ = frozenset({"ai.kiln.catalog.commit"})


def sha256(build: Build) -> str:
    """Return the hash over the Dockerfile, every staged file, the named contexts, the arguments and the labels.

    Images count by digest alone and repositories by commit, as a mirror's name does not matter. Secrets and proxies do
    not count: what comes through them is pinned by hashes that do.
    """
    data = {
        "arguments": {name: _by_digest(value) for name, value in build.args.items()},
        "context": dict(_listed(build.context)),
        "contexts": {name: _context(value) for name, value in build.contexts.items()},
        "dockerfile": _file(build.dockerfile),
        "epoch": bake.SOURCE_DATE_EPOCH,
        "labels": labels(build.labels),
        "platform": bake.PLATFORM,
    }
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def labels(held: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that say what a build is made of."""
    return {name: value for name, value in held.items() if name not in _NOT_READ}


def _by_digest(value: str) -> str:
    """Return the digest of an image reference that has one, and any other text as it is."""
    found = _BY_DIGEST.match(value)
    return found[1] if found else value


def _context(value: str) -> object:
    if found := _BY_DIGEST.match(value) or _BY_COMMIT.match(value):
        return found[1]
    if value.startswith("/"):
        return dict(_listed(Path(value)))
    raise errors.BadInput(
        f"{value}: a build context that can change unseen", hint="name an image by digest, a repository by commit"
    )


def _listed(folder: Path) -> Iterator[tuple[str, list[object]]]:
    """Yield every file below a folder by its path there: its bytes, and whether it can be run."""
    if not folder.is_dir():
        raise errors.BadInput(f"{folder}: no such folder to build from")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            yield str(path.relative_to(folder)), ["link", str(path.readlink())]
        elif path.is_file():
            yield str(path.relative_to(folder)), [_file(path), bool(path.stat().st_mode & 0o100)]


def _file(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()
