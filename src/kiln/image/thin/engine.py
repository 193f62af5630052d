"""What a thin build needs of the engine: that its BuildKit pushes an image whose base it never had."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING

from kiln import errors, process

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.engine import Engine

# what this was measured with; 26.1 with buildx 0.13 pushes, and then fails over a tag that it looks for in the engine
_OLDEST_ENGINE = (28, 0)
_OLDEST_BUILDX = (0, 29)
_STORE = ["driver-type", "io.containerd.snapshotter.v1"]
_VERSION = re.compile(r"(?:^|\s)v?(\d+)\.(\d+)\.\d")
_TIMEOUT_S = 60
_OWN_ENGINE = "KILN_ENGINE=embedded and the same command: Kiln brings up one of its own (Debian, root)"


def require(engine: Engine) -> None:
    """Raise Missing, with what to install, for an engine or buildx that would pull the base, or fail after the push."""
    said = process.ask((*engine.buildx, "version"), env=engine.environment(), timeout_s=_TIMEOUT_S)
    with contextlib.closing(engine.client()) as client:
        store = client.info().get("DriverStatus") or []
    if problems := list(lacking(engine.server_version, said, is_containerd=_STORE in store)):
        raise errors.Missing("\n".join(("a thin build cannot be made here:", *problems)), hint=_OWN_ENGINE)


def lacking(server: str, buildx: str, *, is_containerd: bool) -> Iterator[str]:
    """Yield what is too old or set up in another way, and what to do about it."""
    if _number(buildx) < _OLDEST_BUILDX:
        yield f"  buildx is {_shown(buildx)}; install docker-buildx-plugin {_text(_OLDEST_BUILDX)} or newer"
    if _number(server) < _OLDEST_ENGINE:
        yield f"  the engine is {_shown(server)}; install Docker {_text(_OLDEST_ENGINE)} or newer"
    if not is_containerd:
        yield '  the engine has the old image store; daemon.json needs "features": {"containerd-snapshotter": true}'


@contextlib.contextmanager
def forgetting(engine: Engine, layer: str) -> Iterator[None]:
    """Let BuildKit forget, at the end, what it made of the file `layer`, which removes files of the base.

    In BuildKit's own cache those entries lie as files, and a later FROM of that image on this engine would take them
    from there instead of from the layer that was pushed.
    """
    try:
        yield
    finally:
        argv = (*engine.buildx, "prune", "--force", "--all", f"--filter=description~={layer}")
        process.ask(argv, env=engine.environment(), timeout_s=_TIMEOUT_S)


def _number(text: str) -> tuple[int, int]:
    found = _VERSION.search(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _shown(text: str) -> str:
    found = _VERSION.search(text)
    return found[0].strip() if found else repr(text[:40])


def _text(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
