"""Says which names stand for images of this engine: those that builds give, which no registry is asked for."""

from __future__ import annotations

PREFIX = "kiln/"


def is_local(name: str) -> bool:
    """Say whether a name is one that a build gave, or an engine's own id of an image."""
    return name.startswith((PREFIX, "sha256:"))
