"""Says where an image is to be pushed to, and whether a registry answers there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln import errors
from kiln.registry import client, reference

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.registry.reference import Reference


def repository_of(text: str) -> Reference:
    """Return the repository that a person names, its registry too; raises BadInput.

    Docker takes a name without a registry for one of Docker Hub; a push there must be asked for in so many words. A
    tag or digest is not a person's to choose.
    """
    first, slash, _ = text.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        raise errors.BadInput(
            f"--to {text}: names no registry", hint="--to registry.example.com/team/vllm; docker.io/team/vllm"
        )
    to = reference.parse(text)
    if to.tag or to.digest:
        raise errors.BadInput(f"--to {text}: a repository, without a tag or digest", hint=f"--to {to.name}")
    return to


def reach(to: Reference, ca: Path | None) -> None:
    """Raise Missing where no registry answers, before anything is built for it."""
    with client.connect(to.host, ca=ca) as registry:
        registry.head(to.repository, "latest")
