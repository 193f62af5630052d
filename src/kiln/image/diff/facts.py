"""Reads what an image says of itself out of its files: pins, patches, packages; every text of it is untrusted."""

from __future__ import annotations

import email.parser
import json
import re
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name

from kiln.registry import records

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kiln.registry.image import Image
    from kiln.registry.layers import Found

PINS, LEDGER = "opt/kiln/pins.json", "opt/kiln/ledger.json"
DEBIAN = "var/lib/dpkg/status"
_DEBIAN_PARTS = "var/lib/dpkg/status.d/"  # of images that were made without dpkg
_METADATA = re.compile(r"(?:.*/)?([^/]+)-([^/-]+)\.dist-info(?:/METADATA)?")
_MAX_BYTES = 16_000_000
_MAX_DEPTH = 6
# what the patches are is told by the ledger, and what each flag is by how it is served
_NOT_PINS = ("series", "serve")
_SETTINGS = ("Entrypoint", "Cmd", "User", "WorkingDir", "ExposedPorts", "Volumes", "StopSignal", "Healthcheck", "Shell")

Facts = dict[str, str]


def wanted(path: str) -> bool:
    """Say whether the bytes of a file are needed."""
    if path in {PINS, LEDGER, DEBIAN}:
        return True
    return path.endswith(".dist-info/METADATA") or (
        path.startswith(_DEBIAN_PARTS) and not path.endswith((".md5sums", ".preinst"))
    )


def pins(found: Mapping[str, Found]) -> Facts:
    """Return every value of the pins, by the keys that lead to it."""
    data = _json(found, PINS)
    return dict(_flat({key: value for key, value in data.items() if key not in _NOT_PINS}, ""))


def patches(found: Mapping[str, Found]) -> Facts:
    """Return each patch that the ledger names, with the edition and the files of which it is made."""
    rows = _json(found, LEDGER).get("patches")
    told = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return {str(row.get("id")): _edition(row) for row in told}


def python(found: Mapping[str, Found]) -> Facts:
    """Return the version of each Python distribution; one that lies in several folders is named with each."""
    seen: dict[str, list[tuple[str, str]]] = {}
    for path, entry in found.items():
        if path.endswith(".dist-info/METADATA") and entry.data is not None:
            headers = email.parser.BytesHeaderParser().parsebytes(entry.data[:_MAX_BYTES])
            name = canonicalize_name(str(headers.get("Name", "")))
            folder = path.rsplit("/", 2)[0]
            seen.setdefault(name or path, []).append((folder, str(headers.get("Version", ""))))
    return {
        name if len(places) == 1 else f"{name} in {folder}": version
        for name, places in seen.items()
        for folder, version in places
    }


def python_removed(removed: frozenset[str]) -> Facts:
    """Return the distributions whose metadata layers take away, as the names of their folders tell them."""
    matches = (_METADATA.fullmatch(path) for path in removed)
    return {canonicalize_name(match[1]): match[2] for match in matches if match}


def debian(found: Mapping[str, Found]) -> Facts:
    """Return the version of each Debian package that is installed."""
    texts = [
        entry.data.decode("utf-8", "replace")
        for path, entry in found.items()
        if entry.data is not None and (path == DEBIAN or path.startswith(_DEBIAN_PARTS))
    ]
    return {name: version for text in texts for name, version in _stanzas(text)}


def environment(image: Image) -> Facts:
    entries = _config(image).get("Env")
    texts = [entry for entry in entries if isinstance(entry, str)] if isinstance(entries, list) else []
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def settings(image: Image) -> Facts:
    """Return how a container of the image is started."""
    found = _config(image)
    return {name: _text(found[name]) for name in _SETTINGS if found.get(name)}


def made_by(image: Image) -> tuple[str, ...]:
    """Return what made each layer, as the image's history says; empty texts where that does not fit the layers."""
    history = image.config.get("history")
    rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
    told = tuple(str(row.get("created_by", "")) for row in rows if not row.get("empty_layer"))
    return told if len(told) == len(image.layers) else ("",) * len(image.layers)


def _config(image: Image) -> dict[str, Any]:
    found = image.config.get("config")
    return found if isinstance(found, dict) else {}


def _json(found: Mapping[str, Found], path: str) -> dict[str, Any]:
    entry = found.get(path)
    return records.read_json(entry.data, path) if entry and entry.data is not None else {}


def _edition(row: Mapping[str, Any]) -> str:
    files = row.get("files")
    count = len(files) if isinstance(files, list | dict) else 0
    return f"{str(row.get('edition_sha256'))[:12]}, {count} file{'' if count == 1 else 's'}"


def _flat(value: object, key: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield every value in a piece of JSON with its dotted key; what is nested deeply is one text."""
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        for name, inner in value.items():
            yield from _flat(inner, f"{key}.{name}" if key else str(name), depth + 1)
    elif value is not None:
        yield key, _text(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _stanzas(text: str) -> Iterator[tuple[str, str]]:
    for stanza in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and line[:1] not in " \t")
        if "Package" in fields and fields.get("Status", "install ok installed").endswith(" installed"):
            yield fields["Package"], fields.get("Version", "")
