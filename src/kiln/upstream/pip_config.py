"""What pip is configured with on this machine: index, find-links and CA bundle; the default index is pip's own."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pip._internal.configuration import Configuration
from pip._internal.models.index import PyPI

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class PipConfig:
    """`find_links` holds the local folders only; `cert` is a CA bundle, None for the default one."""

    index_url: str
    find_links: tuple[Path, ...]
    cert: Path | None


@functools.cache
def read() -> PipConfig:
    """Return pip's settings: environment before `install` section before `global` section, as pip merges them."""
    configuration = Configuration(isolated=False)
    configuration.load()
    # one group a file, the strongest last, then the environment
    merged = {key: value for _, group in configuration.items() for key, value in group.items()}

    def value(name: str) -> str:
        return next(
            (str(merged[key]) for key in (f":env:.{name}", f"install.{name}", f"global.{name}") if key in merged),
            "",
        )

    cert = value("cert")
    return PipConfig(
        index_url=value("index-url").rstrip("/") or PyPI.simple_url,
        find_links=tuple(_local_folders(value("find-links"))),
        cert=Path(cert) if cert else None,
    )


def _local_folders(value: str) -> Iterator[Path]:
    for word in value.split():
        parts = urlsplit(word)
        path = Path(unquote(parts.path) if parts.scheme == "file" else word)
        if parts.scheme in {"", "file"} and path.is_dir():
            yield path
