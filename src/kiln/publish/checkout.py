"""Says whether all that makes, smokes and judges images is as some commit holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln import process

if TYPE_CHECKING:
    from pathlib import Path

_WHOLE = ("src/kiln", "images", "patches", "recipes")


def state(root: Path) -> tuple[str, bool]:
    """Return the last commit to any of it, and whether it was edited since; ("none", True) outside of git."""
    git = ("git", "-C", str(root))
    at = process.run((*git, "log", "-1", "--format=%H", "--", *_WHOLE))
    if at.code or not at.stdout.strip():
        return "none", True
    return at.stdout.strip(), bool(process.ask((*git, "status", "--porcelain", "--", *_WHOLE)).strip())
