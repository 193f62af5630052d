"""A place where the patch engine can run: takes files, runs kiln-patch, gives back what it printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from kiln import errors, process

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SITES = tuple(
    f"{above}lib*/python3*/{name}"
    for above in ("", "local/", "usr/", "usr/local/")
    for name in ("site-packages", "dist-packages")
)


class Place(Protocol):
    """`name` is what a person calls the tree; `root` what `--root` gets, empty where Python's own path decides."""

    @property
    def name(self) -> str: ...

    @property
    def root(self) -> str: ...

    def send(self, path: Path) -> str:
        """Bring a file or folder to where the tree is, and return its path there."""

    def run(self, argv: tuple[str, ...], *, seconds: int) -> process.Result:
        """Run Python with `argv`; raises CommandFailed when that takes longer, or prints too much."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A site-packages on this machine."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    @property
    def root(self) -> str:
        return str(self.path)

    def send(self, path: Path) -> str:
        return str(path)

    def run(self, argv: tuple[str, ...], *, seconds: int) -> process.Result:
        return process.run(process.python("-I", "-B", *argv), timeout_s=seconds)


def site(root: Path, distribution: str) -> Path:
    """Return the one folder that holds the distribution: `root` itself, or its site-packages if it is a venv.

    Raises BadInput for none or two.
    """
    if not root.is_dir():
        raise errors.BadInput(f"--root {root}: no such folder")
    found = sorted(set(_sites(root, distribution)))
    if len(found) > 1:
        listed = "\n".join(f"  {path}" for path in found)
        raise errors.BadInput(f"--root {root}: {distribution} is installed in it twice:\n{listed}", hint="name one")
    if not found:
        raise errors.BadInput(
            f"--root {root}: no {distribution}-*.dist-info in it, nor in a lib/python3*/site-packages below it",
            hint=f"name the folder that this prints: python -m pip show {distribution}",
        )
    return found[0]


def _sites(root: Path, distribution: str) -> Iterator[Path]:
    for folder in (root, *(path for pattern in _SITES for path in root.glob(pattern))):
        if any(folder.glob(f"{distribution}-*.dist-info")):
            yield folder.resolve()
