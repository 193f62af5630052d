"""Where files are read from: a dict in memory, or a directory with no symlink on the way."""

from __future__ import annotations

import os
import stat
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from kiln.patching import errors, paths

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class Tree(Protocol):
    def read(self, path: str) -> bytes | None:
        """Return the bytes of the file, or None when there is no such file."""


@dataclass(frozen=True)
class Memory:
    files: Mapping[str, bytes]

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)


@dataclass(frozen=True)
class Directory:
    """A directory seen through `lstat`: a symlink, a twin by letter case or an odd file raises BadPath.

    Remembers the names of each folder it has looked into, to find twins; what it reads is what is there now.
    """

    root: Path
    _names: dict[Path, dict[str, str]] = field(default_factory=dict, repr=False)

    def read(self, path: str) -> bytes | None:
        try:
            descriptor = os.open(self.locate(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def names(self, folder: str) -> tuple[str, ...]:
        """Return the names in a folder, none when there is no such folder."""
        where = self.locate(folder, folder=True)
        return tuple(sorted(entry.name for entry in where.iterdir())) if where.is_dir() else ()

    def locate(self, path: str, *, folder: bool = False) -> Path:
        """Return where `path` lies (or would lie), after looking at every component on the way."""
        if not path.isascii() and sys.getfilesystemencoding() != "utf-8":
            problem = f"this Python names files in {sys.getfilesystemencoding()}"
            raise errors.BadPath(f"{path!a}: {problem}", hint="run it again with: python3 -X utf8")
        where = self.root
        *above, name = paths.safe(path).split("/")
        for part in above:
            where = self._step(where, part, is_folder=True)
        return self._step(where, name, is_folder=folder)

    def _step(self, where: Path, name: str, *, is_folder: bool) -> Path:
        other = self._listed(where).get(paths.folded(name), name)
        there = where / name
        if other != name:
            raise errors.BadPath(f"{there}: {other!r} lies beside it and differs by letter case only")
        try:
            mode = there.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            return there
        if stat.S_ISLNK(mode):
            raise errors.BadPath(
                f"{there}: a symlink to {os.path.realpath(there)}; a patch is never written through a link",
                hint="install the package with its files copied (uv: --link-mode=copy), then apply again",
            )
        if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
            raise errors.BadPath(f"{there}: not a {'directory' if is_folder else 'regular file'}")
        return there

    def _listed(self, where: Path) -> dict[str, str]:
        """Return the names in `where` by their folded form; of two twins, the first in sorting order."""
        if where not in self._names:
            found: dict[str, str] = {}
            if where.is_dir():
                with os.scandir(where) as entries:
                    names = sorted(entry.name for entry in entries)
                for name in names:
                    found.setdefault(paths.folded(name), name)
            self._names[where] = found
        return self._names[where]
