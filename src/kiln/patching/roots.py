"""Finds the one directory that holds an installed distribution, without importing it."""

from __future__ import annotations

import itertools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from kiln.patching import errors


@dataclass(frozen=True)
class Root:
    """`path` holds the package and, beside it, the folder named `dist_info`."""

    path: Path
    dist_info: str
    distribution: str
    version: str

    @property
    def metadata(self) -> Path:
        return self.path / self.dist_info


def find(distribution: str, *, root: Path | None = None, release: str | None = None) -> Root:
    """Return the one root, given or found on sys.path; raise BadRoot for none, two, or another release."""
    try:
        return _found(distribution, root, release)
    except OSError as error:
        raise errors.BadRoot(f"{error.filename}: {error.strerror}") from error


def _found(distribution: str, root: Path | None, release: str | None) -> Root:
    if root is not None and not root.is_dir():
        raise errors.BadRoot(f"{root}: no such directory")
    places = [root] if root is not None else [Path(entry) for entry in sys.path if entry]
    found = {where.resolve(): where for place in places for where in _dist_infos(distribution, place)}
    if not found:
        where = root if root is not None else "any directory on sys.path"
        hint = "run this with the Python that has the package, or name its site-packages with --root"
        raise errors.BadRoot(f"no {distribution}-*.dist-info in {where}", hint=hint)
    if len(found) > 1:
        listed = ", ".join(str(where) for where in sorted(found.values()))
        raise errors.BadRoot(f"{distribution} is installed more than once: {listed}", hint="name one with --root")
    checked = _checked(next(iter(found.values())), distribution)
    if root is None:
        _refuse_shadow(checked, distribution)
    if release is not None and checked.version.partition("+")[0] != release:
        raise errors.BadRoot(
            f"{checked.path} holds {distribution} {checked.version}, the series is for {release}",
            hint=f"use the series made for {checked.version.partition('+')[0]}",
        )
    return checked


def _refuse_shadow(found: Root, distribution: str) -> None:
    """Raise BadRoot when an earlier entry of sys.path holds the package too: Python would import that one."""
    package = _normalised(distribution).replace("-", "_")
    entries = (Path(name) for name in sys.path if name)
    for entry in itertools.takewhile(lambda entry: entry.resolve() != found.path.resolve(), entries):
        if (entry / package / "__init__.py").is_file() or (entry / f"{package}.py").is_file():
            raise errors.BadRoot(
                f"{entry} holds another {package}, which Python imports before that of {found.path}",
                hint="take it off PYTHONPATH, or name the tree that you mean with --root",
            )


def _dist_infos(distribution: str, place: Path) -> list[Path]:
    if not place.is_dir():
        return []
    wanted = _normalised(distribution)
    return [
        entry
        for entry in place.iterdir()
        if entry.name.endswith(".dist-info") and _normalised(entry.name.partition("-")[0]) == wanted
    ]


def _checked(where: Path, distribution: str) -> Root:
    if where.is_symlink() or not where.is_dir():
        raise errors.BadRoot(f"{where}: not a directory of its own")
    for name in ("METADATA", "RECORD"):
        file = where / name
        if file.is_symlink() or not file.is_file():
            raise errors.BadRoot(f"{file}: no such regular file", hint=f"reinstall {distribution} from its wheel")
    headers = (where / "METADATA").read_bytes().decode("utf-8", "replace").partition("\n\n")[0]
    version = re.search(r"^Version:\s*(\S+)\s*$", headers, re.MULTILINE | re.IGNORECASE)
    if version is None:
        raise errors.BadRoot(f"{where / 'METADATA'}: no Version")
    return Root(where.parent.resolve(), where.name, distribution, version.group(1))


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
