"""The `docker buildx bake` document and command of one image or many, as data."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kiln import errors, report

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# 2025-01-01: the time of everything Kiln puts into an image, so that the same inputs give the same digest
SOURCE_DATE_EPOCH = 1735689600
PLATFORM = "linux/amd64"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
# into the engine, without a tag, which an image gets when its ledger has been compared
LOAD = {"type": "docker"}
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
_HOST_NETWORK = "host"
# the machine's network is no other builder's to give
OTHERS_NETWORK = "default"


@dataclass(frozen=True, kw_only=True)
class Build:
    """One BuildKit build: `contexts` are named contexts, `secrets` files that reach no layer.

    `inherited` names arguments that BuildKit reads from the environment, so that a proxy's password is in no argv and
    no document.
    """

    name: str
    dockerfile: Path
    context: Path
    contexts: Mapping[str, str] = field(default_factory=dict)
    args: Mapping[str, str] = field(default_factory=dict)
    inherited: tuple[str, ...] = ()
    secrets: Mapping[str, Path] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    network: str = "default"
    output: Mapping[str, str] = field(default_factory=lambda: LOAD)

    @property
    def target(self) -> str:
        """The build's name in a bake document, where a release's dots may not stand."""
        return _NOT_IN_NAMES.sub("_", self.name)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What BuildKit says of a build that succeeded; `provenance` is its own, empty where it gives none."""

    digest: str
    provenance: dict[str, Any]


def pushed(reference: str) -> dict[str, str]:
    """Return the output that pushes under a tag; Docker's own driver can push no other way."""
    return {"type": "image", "name": reference, "push": "true"}


def pushed_by_digest(name: str) -> dict[str, str]:
    """Return the output that pushes without a tag, for builders of any driver but Docker's own."""
    return pushed(name) | {"push-by-digest": "true"}


def document(builds: Sequence[Build]) -> str:
    """Return the bake file of these builds; nothing in it is a secret, or what an environment holds."""
    inherited = sorted({name for build in builds for name in build.inherited})
    whole: dict[str, Any] = {
        "group": {"default": {"targets": [build.target for build in builds]}},
        "target": {build.target: _target(build) for build in builds},
    }
    if inherited:
        # a variable takes the value of the environment; null, and so no argument, where that has none
        whole["variable"] = {name: {"default": None} for name in inherited}
    return report.as_json(whole) + "\n"


def command(build: Build, *, buildx: Sequence[str], file: Path, metadata: Path, builder: str = "") -> tuple[str, ...]:
    """Return the argv that makes one build of a document, with leave to read what the build names."""
    folders = {value for value in build.contexts.values() if value.startswith("/")}
    files = {str(path) for path in (build.context, build.dockerfile, *build.secrets.values())}
    return (
        *buildx,
        "bake",
        f"--file={file}",
        "--progress=plain",
        f"--metadata-file={metadata}",
        *((f"--builder={builder}",) if builder else ()),
        *(("--allow=network.host",) if build.network == _HOST_NETWORK else ()),
        *(f"--allow=fs.read={path}" for path in sorted(folders | files)),
        build.target,
    )


def read(metadata: Path, build: Build) -> Made:
    """Read what BuildKit wrote about a build; raises CommandFailed where it wrote no digest."""
    try:
        said = json.loads(metadata.read_text(encoding="utf-8"))[build.target]
        return Made(digest=said["containerimage.digest"], provenance=said.get("buildx.build.provenance") or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.CommandFailed(f"{build.name}: BuildKit said no digest of what it built: {error!r}") from error


def _target(build: Build) -> dict[str, Any]:
    args: dict[str, str] = {"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH)} | _escaped(build.args)
    return {
        "context": _escape(str(build.context)),
        "dockerfile": _escape(str(build.dockerfile)),
        "contexts": _escaped(build.contexts),
        "args": args | {name: f"${{{name}}}" for name in build.inherited},
        "labels": _escaped(build.labels),
        "secret": [
            {"type": "file", "id": name, "src": _escape(str(path))} for name, path in sorted(build.secrets.items())
        ],
        "network": build.network,
        "platforms": [PLATFORM],
        "attest": [{"type": "provenance", "disabled": "true"}],
        "output": [_escaped(build.output)],
    }


def _escaped(values: Mapping[str, str]) -> dict[str, str]:
    return {name: _escape(value) for name, value in values.items()}


def _escape(text: str) -> str:
    """Return text that bake, to which every string is a template, reads as it is."""
    return text.replace("${", "$${").replace("%{", "%%{")
