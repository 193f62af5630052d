"""Packs this package and unidiff into one file that runs on a bare Python, always with the same bytes."""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

import unidiff

_SHEBANG = b"#!/usr/bin/env python3\n"
_LEFT_OUT = frozenset({"zipapp.py", "authoring.py"})  # the host's half
_WHEN = (1980, 1, 1, 0, 0, 0)


def build(target: Path) -> str:
    """Write the zipapp to `target`, executable, and return its sha256."""
    data = _SHEBANG + _packed(_members())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    target.chmod(0o755)
    return hashlib.sha256(data).hexdigest()


def _members() -> dict[str, bytes]:
    own = Path(__file__).parent
    members = {
        f"kiln/patching/{path.name}": path.read_bytes() for path in own.glob("*.py") if path.name not in _LEFT_OUT
    }
    members["kiln/__init__.py"] = b""
    members["__main__.py"] = members["kiln/patching/__main__.py"]
    for path in Path(unidiff.__path__[0]).glob("*.py"):
        if path.name != "__main__.py":
            members[f"unidiff/{path.name}"] = path.read_bytes()
    licences = [path for path in metadata.files("unidiff") or () if path.name == "LICENSE"]
    assert licences, "unidiff is installed without its licence"
    members["unidiff/LICENSE"] = licences[0].read_binary()
    return members


def _packed(members: dict[str, bytes]) -> bytes:
    """Store, not deflate: zlib's output differs between builds of Python, and the file is small."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _WHEN)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, members[name])
    return out.getvalue()
