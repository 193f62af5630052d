"""Reads out of all layers of an image where its vLLM lies, and what the editions of a release would meet there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name
from pydantic import ValidationError

from kiln import errors
from kiln.catalog import installed, lock_records
from kiln.registry import layers

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from kiln.registry.image import RemoteImage
    from kiln.registry.layers import Found

# the caches that images/install/finish.py removes: what was compiled of sources that the series may have changed
_IN_HOME = (".triton/cache", ".triton/dump", ".triton/override", ".cache/vllm", ".cache/flashinfer")
_SETTINGS = frozenset({"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "VLLM_CACHE_ROOT", "FLASHINFER_WORKSPACE_BASE"})
_IN_TMP = r"tmp/torchinductor_[^/]+"
# what pins are compared with, and what else tells one image from another
DISTRIBUTIONS = installed.DISTRIBUTIONS | {
    *("aiter", "amd-mori", "flash-attn", "flashinfer-cubin", "mori", "pybind11", "transformers", "vllm"),
}
_PLACED = re.compile(r"(?P<root>(?:[^/]+/)*?(?:dist|site)-packages)(?:/(?P<rest>.+))?")
# what the folders above packages are called: their modes are kept, and which of them it is turns out at the end
_ABOVE = re.compile(
    r"(?:usr|local|lib|lib64|opt|root|home|srv|var|app|venv|\.venv|env|tmp|[\w.-]{0,40}python[\w.]{0,10})"
)
_METADATA = re.compile(r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[^-/]+)\.dist-info/METADATA")
_VLLM_METADATA = re.compile(r"vllm-[^-/]+\.dist-info(?P<record>/RECORD)?")
_BYTECODE = re.compile(r"(?P<folder>(?:[^/]+/)+)__pycache__/(?P<stem>[^/.]+)\.[^/]+\.pyc")
_VERSION_FILE = "vllm/_version.py"
_OWN = "opt/kiln"  # the folder that every image of Kiln's gets


def read(image: RemoteImage, paths: Collection[str], progress: Callable[[str], None]) -> lock_records.Base:
    """Read every layer of an image, once; raises BadInput where it does not hold one vLLM.

    Nothing less than all layers says that a file, its bytecode or a cache is not there.
    """
    wanted = _Wanted.of(paths, cache_folders(_environment(image)))
    found = layers.scan(image, wanted.is_met_by, layers=None, progress=progress)
    where = f"{image.repository}@{image.digest}"
    try:
        return _base(image, found, wanted, where)
    except ValidationError as error:
        names = ", ".join(sorted({repr(item["input"])[:80] for item in error.errors(include_url=False)}))
        raise errors.BadInput(f"{where}: it holds names that Kiln does not write down: {names}") from error


def cache_folders(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the folders in which an image with this environment keeps what was compiled."""
    homes = {environment.get("HOME") or "/root", "/root"}
    named = [value for name, value in environment.items() if name in _SETTINGS]
    folders = (PurePosixPath(path) for path in (*named, *(f"{home}/{each}" for home in homes for each in _IN_HOME)))
    paths = {str(path).lstrip("/") for path in folders if path.is_absolute() and ".." not in path.parts}
    return tuple(sorted(paths - {""}))


def _environment(image: RemoteImage) -> dict[str, str]:
    """Return what an image's config sets; what is no setting there is left out."""
    config = image.config.get("config")
    listed = config.get("Env") if isinstance(config, dict) else None
    texts = [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
    return {name: value for name, _, value in (each.partition("=") for each in texts)}


def _base(image: RemoteImage, found: Mapping[str, Found], wanted: _Wanted, where: str) -> lock_records.Base:
    root, dist_info = _place(found, where)
    here = {path.removeprefix(f"{root}/"): each for path, each in found.items() if path.startswith(f"{root}/")}
    record = here[f"{dist_info}/RECORD"]
    files = {path: here.get(path) for path in sorted(wanted.files)}
    bytecode = [path for path in here if wanted.is_bytecode(path)]
    caches = sorted({match[0] for path in found if (match := wanted.caches.match(path))})
    caches = [path for path in caches if path not in found or found[path].kind == "folder"]
    entries = [f"{root}/{path}" for path in (f"{dist_info}/RECORD", *files, *bytecode)] + [*caches, _OWN]
    above = {str(parent) for path in entries for parent in PurePosixPath(path).parents} - {"."}
    return lock_records.Base(
        root=root,
        dist_info=dist_info,
        record_sha256=record.sha256,
        record_layer=record.layer,
        layers=tuple(layer.digest for layer in image.layers),
        diff_ids=image.diff_ids,
        files={path: _sha256(each, where) if each else None for path, each in files.items()},
        bytecode=tuple(bytecode),
        caches=tuple(caches),
        modes={path: f"{found[path].mode:04o}" for path in sorted({*entries, *above} - {*caches}) if path in found},
        versions=dict(sorted(_versions(here))),
        reader=lock_records.READER,
    )


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """What is looked for: in packages files, the bytecode of modules, and the folders above both; and caches.

    `above` are the folders above the caches.
    """

    files: frozenset[str]
    modules: frozenset[str]
    folders: frozenset[str]
    caches: re.Pattern[str]
    above: frozenset[str]

    @classmethod
    def of(cls, paths: Collection[str], caches: Collection[str]) -> _Wanted:
        parents = {parent for path in paths for parent in PurePosixPath(path).parents}
        folders = {str(each) for folder in parents for each in (folder, folder / "__pycache__")}
        modules = (path.removesuffix(".py") for path in paths if path.endswith(".py"))
        return cls(
            files=frozenset(paths),
            modules=frozenset(modules),
            folders=frozenset(folders),
            caches=re.compile(rf"(?:{'|'.join([*map(re.escape, caches), _IN_TMP])})(?=/|$)"),
            above=frozenset(str(parent) for path in caches for parent in PurePosixPath(path).parents),
        )

    def is_met_by(self, path: str) -> bool:
        if path in self.above or self.caches.match(path):
            return True
        match = _PLACED.fullmatch(path)
        if not match:
            return all(_ABOVE.fullmatch(part) for part in path.split("/"))
        rest = match["rest"]
        if rest is None or rest in self.files or rest in self.folders or rest == _VERSION_FILE:
            return True
        if _VLLM_METADATA.fullmatch(rest) or self.is_bytecode(rest):
            return True
        named = _METADATA.fullmatch(rest)
        return bool(named and canonicalize_name(named["name"]) in DISTRIBUTIONS)

    def is_bytecode(self, path: str) -> bool:
        match = _BYTECODE.fullmatch(path)
        return bool(match and match["folder"] + match["stem"] in self.modules)


def _place(found: Mapping[str, Found], where: str) -> tuple[str, str]:
    """Return the folder of packages that holds vLLM, and the name of its metadata there."""
    roots = [path.removesuffix(f"/{_VERSION_FILE}") for path in found if path.endswith(f"/{_VERSION_FILE}")]
    if len(roots) != 1:
        places = ", ".join(sorted(roots)) or "no folder"
        raise errors.BadInput(f"{where}: it must hold one vLLM, and {_VERSION_FILE} lies in {places}")
    (root,) = roots
    rests = (path.removeprefix(f"{root}/") for path in found if path.startswith(f"{root}/"))
    names = [rest.partition("/")[0] for rest in rests if (match := _VLLM_METADATA.fullmatch(rest)) and match["record"]]
    if len(names) != 1:
        which = ", ".join(sorted(names)) or "none"
        raise errors.BadInput(f"{where}: {root} must hold one vllm-VERSION.dist-info/RECORD, and has {which}")
    return root, names[0]


def _sha256(found: Found, where: str) -> str:
    if found.kind != "file":
        raise errors.BadInput(f"{where}: {found.path} is no regular file, and a patch touches it")
    return found.sha256


def _versions(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    for path in paths:
        if match := _METADATA.fullmatch(path):
            yield canonicalize_name(match["name"]), match["version"]
