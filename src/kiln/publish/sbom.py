"""Lists what is in a pushed image, as CycloneDX JSON made by syft from the registry."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kiln import errors, process
from kiln.image.bake import PLATFORM
from kiln.publish import sign
from kiln.registry import tokens

# 25 GB of layers are fetched, unpacked and read
TIMEOUT_S = 3600
MAX_BYTES = 100_000_000


def make(reference: str, *, scratch: Path, host: str, ca: Path | None) -> Any:
    """Return the CycloneDX document of an image; the layers lie under `scratch` for as long as that takes."""
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".publish.") as folder:
        out = Path(folder) / "sbom.json"
        argv = (
            str(Path(sys.executable).with_name("syft")),
            "scan",
            f"registry:{reference}",
            f"--platform={PLATFORM}",
            f"--output=cyclonedx-json={out}",
        )
        result = process.run(argv, env=_environment(folder, host, ca), timeout_s=TIMEOUT_S)
        if result.code:
            raise process.failed(argv, result.code, result.stderr)
        if out.stat().st_size > MAX_BYTES:
            raise errors.CommandFailed(f"{reference}: its SBOM is larger than {MAX_BYTES} bytes")
        return _checked(json.loads(out.read_bytes()), reference)


def _environment(folder: str, host: str, ca: Path | None) -> dict[str, str]:
    """Return what syft runs with: credentials stay in Docker's config, where it reads them itself."""
    kept = {name: value for name, value in os.environ.items() if name != sign.PASSWORD}
    settings = {
        "TMPDIR": folder,
        "SYFT_CHECK_FOR_APP_UPDATE": "false",
        "SYFT_CACHE_DIR": f"{folder}/cache",
        "SYFT_REGISTRY_INSECURE_USE_HTTP": str(tokens.is_loopback(urlsplit(f"//{host}").hostname or "")).lower(),
    }
    return kept | settings | ({"SYFT_REGISTRY_CA_CERT": str(ca)} if ca else {})


def _checked(document: Any, reference: str) -> Any:
    found = isinstance(document, dict) and document.get("bomFormat") == "CycloneDX" and document.get("components")
    if not found:
        raise errors.CommandFailed(f"{reference}: syft found no component in it")
    return document
