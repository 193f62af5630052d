"""Runs the verify command as somebody else would: another home, no settings of this person, nothing cached."""

from __future__ import annotations

import os
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import kiln
from kiln import errors, process
from kiln.registry import credentials

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMEOUT_S = 3600
# the way to the network is the machine's, whoever asks
_KEPT = (
    *("PATH", "LANG", "LC_ALL"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
)


def shown(arguments: Sequence[str]) -> str:
    """Return the command as a person types it."""
    return shlex.join((os.environ.get("KILN_PROGRAM", "kiln"), *arguments))


def run(arguments: Sequence[str], *, host: str, scratch: Path) -> None:
    """Run Kiln from the working folder; raises PublishRefused, with what it said, unless it ends with 0.

    Docker's configuration is this person's where the registry is one that they have logged in to, else there is none.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".publish.client-") as folder:
        for name in ("home", "docker", "kiln", "tmp"):
            Path(folder, name).mkdir()
        docker = (
            os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")
            if credentials.find(host)
            else Path(folder) / "docker"
        )
        env = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            "HOME": f"{folder}/home",
            "DOCKER_CONFIG": str(docker),
            "KILN_HOME": f"{folder}/kiln",
            "TMPDIR": str(Path(folder, "tmp")),
            "PYTHONPATH": str(Path(kiln.__file__).parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        result = process.run(process.python("-P", "-m", "kiln", *arguments), env=env, timeout_s=TIMEOUT_S)
    if result.code:
        said = f"{result.stdout.strip()}\n{result.stderr.strip()}".strip()
        raise errors.PublishRefused(
            f"what was pushed does not verify from a clean client (exit code {result.code}):\n{said}",
            hint=shown(arguments),
        )
