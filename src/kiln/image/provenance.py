"""BuildKit's own provenance of a build, without what must not leave the machine: the proxies and their passwords."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from kiln import files, report
from kiln.image import bake

if TYPE_CHECKING:
    from pathlib import Path

# the last four come from `proxies` of a person's Docker configuration
_NAMES = (*bake.PROXIES, "ALL_PROXY", "all_proxy", "FTP_PROXY", "ftp_proxy")
_ARGUMENTS = frozenset(f"build-arg:{name}" for name in _NAMES)
_VARIABLES = tuple(f"{name}=" for name in _NAMES)
# the values of all proxies once more, and how busy the machine was
_DROPPED = frozenset({"proxy_env", "sysUsage"}) | _ARGUMENTS


def cleaned(value: Any) -> Any:
    """Return a copy without proxies: BuildKit records every argument with its value, a password in it too."""
    if isinstance(value, dict):
        return {name: cleaned(item) for name, item in value.items() if name not in _DROPPED}
    if isinstance(value, list):
        return [cleaned(item) for item in value if not (isinstance(item, str) and item.startswith(_VARIABLES))]
    return value


def write(folder: Path, kind: str, digest: str, said: dict[str, Any]) -> Path:
    """Keep the provenance of an image that was pushed as it was built, until it is published."""
    return files.write(_path(folder, kind), report.as_json({"digest": digest, "provenance": said}) + "\n")


def read(folder: Path, kind: str, digest: str) -> dict[str, Any] | None:
    """Return what `write` kept for this very image, None where that is not there."""
    try:
        kept = json.loads(_path(folder, kind).read_bytes())
        said = kept["provenance"] if kept["digest"] == digest else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return said if isinstance(said, dict) and said else None


def _path(folder: Path, kind: str) -> Path:
    return folder / f"{kind}-provenance.json"
