"""Makes the small Debian roots of the twin as OCI layouts: the same packages give the same digest, always."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from kiln import errors, files, process
from kiln.upstream import debian

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kiln.report import Reporter

Name = Literal["base", "builder"]

SUITE = "bookworm"
EPOCH = 1_700_000_000
_DATA = Path(__file__).parents[3] / "images" / "twin" / "base"
_LISTS: dict[Name, str] = {"base": "packages.txt", "builder": "builder.txt"}
# The base is pushed, so it travels compressed; the builder never leaves the machine.
_COMPRESSED: dict[Name, bool] = {"base": True, "builder": False}
_FINISH = "finish.sh"
_RECORD = "kiln.json"
_FORMAT = "1"  # raise it when this module makes other bytes out of the same inputs
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NEEDED = ("apt-get", "apt-config", "dpkg", "dpkg-deb", "tar", "bash", "ldconfig")
_SMALLEST_TAR = 1 << 20
_CHUNK = 1 << 20
_OCI = "application/vnd.oci.image"


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """An OCI image layout on disk; `digest` names its one image manifest."""

    path: Path
    digest: str
    packages: tuple[Package, ...]

    @property
    def context(self) -> str:
        """The value of `--build-context NAME=` that makes it a build's base."""
        return f"oci-layout://{self.path}@{self.digest}"


def ensure(name: Name, cache: Path, reporter: Reporter, *, data: Path = _DATA) -> Layout:
    """Return the layout of `name`, made once per package list, finish script and package versions."""
    packages = read_list(data / _LISTS[name])
    finish = data / _FINISH
    dest = cache.resolve() / "debs" / f"{name}-{_digest(packages)[:12]}"
    debs = debian.fetched(packages, suite=SUITE, dest=dest, dependencies=True)
    if debs and (layout := _read(_place(cache, name, debs, finish))):
        return layout
    _require_tools()
    with reporter.step(f"packages of the {name} root") as progress:
        debs = debian.fetch(packages, suite=SUITE, dest=dest, dependencies=True, progress=progress)
    place = _place(cache, name, debs, finish)
    with files.locked(place):
        if layout := _read(place):
            return layout
        with reporter.step(f"make the {name} root"):
            return _make(name, debs, finish, place)


def ensure_both(cache: Path, reporter: Reporter, *, data: Path = _DATA) -> tuple[Layout, Layout]:
    """Return the base and the builder, made at the same time."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        jobs = [pool.submit(ensure, name, cache, reporter, data=data) for name in _LISTS]
        base, builder = (job.result() for job in jobs)
    return base, builder


def read_list(path: Path) -> tuple[str, ...]:
    """Read package names, one a line, with `#` comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return tuple(line for line in lines if line)


def write_layout(
    tar: Path, dest: Path, *, architecture: str, compressed: bool = True, smallest: int = _SMALLEST_TAR
) -> str:
    """Write the one-layer image of a root tar as an OCI layout; return its digest, the same for the same tar."""
    size = tar.stat().st_size
    if size < smallest:
        raise errors.CommandFailed(f"{tar}: {size} bytes are too few for a root file system")
    blobs = dest / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    kind = "tar+gzip" if compressed else "tar"
    layer, diff_id = _write_layer(tar, blobs, compressed=compressed)
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(EPOCH))
    config = {
        "architecture": architecture,
        "config": {"Cmd": ["/bin/sh"], "Env": [f"PATH={_PATH}"]},
        "created": created,
        "history": [{"created": created, "created_by": "kiln"}],
        "os": "linux",
        "rootfs": {"diff_ids": [diff_id], "type": "layers"},
    }
    manifest = {
        "config": _write_blob(blobs, config, kind=f"{_OCI}.config.v1+json"),
        "layers": [{"mediaType": f"{_OCI}.layer.v1.{kind}", **layer}],
        "mediaType": f"{_OCI}.manifest.v1+json",
        "schemaVersion": 2,
    }
    descriptor = _write_blob(blobs, manifest, kind=f"{_OCI}.manifest.v1+json")
    platform = {"architecture": architecture, "os": "linux"}
    index = {
        "manifests": [{**descriptor, "platform": platform}],
        "mediaType": f"{_OCI}.index.v1+json",
        "schemaVersion": 2,
    }
    (dest / "index.json").write_bytes(_canonical(index))
    (dest / "oci-layout").write_bytes(_canonical({"imageLayoutVersion": "1.0.0"}))
    return str(descriptor["digest"])


def tar_argv(root: Path, tar: Path) -> tuple[str, ...]:
    """Return the argv that packs `root` so that only names, modes and content decide the bytes."""
    return (
        "tar",
        "--create",
        f"--file={tar}",
        f"--directory={root}",
        "--format=gnu",
        "--sort=name",
        f"--mtime=@{EPOCH}",
        "--clamp-mtime",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        ".",
    )


def _require_tools() -> None:
    search = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    lacking = [tool for tool in _NEEDED if not shutil.which(tool, path=search)]
    if lacking:
        raise errors.Missing(
            f"the twin's base image is made of Debian packages, which needs {', '.join(lacking)} on this machine",
            hint="build the twin on Debian (or in a Debian container), with these on PATH",
        )


def _make(name: Name, debs: Sequence[debian.Deb], finish: Path, place: Path) -> Layout:
    architecture = process.ask(("dpkg", "--print-architecture")).strip()
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as scratch:
        root, tar, fresh = (Path(scratch) / part for part in ("root", "root.tar", "layout"))
        _unpack(debs, root)
        process.ask(_finish_argv(finish, root), env=_environment())
        process.ask(tar_argv(root, tar), env=_environment())
        digest = write_layout(tar, fresh, architecture=architecture, compressed=_COMPRESSED[name])
        packages = [{"name": deb.name, "version": deb.version, "sha256": deb.sha256} for deb in debs]
        (fresh / _RECORD).write_bytes(_canonical({"digest": digest, "packages": packages}))
        fresh.rename(place)
    layout = _read(place)
    assert layout is not None
    return layout


def _unpack(debs: Sequence[debian.Deb], root: Path) -> None:
    """Unpack, and leave each package's control record where image scanners look for it."""
    debian.unpack(debs, root)
    records = root / "var/lib/dpkg/status.d"
    records.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        (records / deb.name).write_text(process.ask(("dpkg-deb", "--field", str(deb.path))))
    root.chmod(0o755)


def _finish_argv(finish: Path, root: Path) -> tuple[str, ...]:
    """Return the argv of the finish script, which needs chroot(2): a user namespace gives it to those not root."""
    own = () if os.geteuid() == 0 else ("unshare", "--map-root-user")
    return (*own, "bash", str(finish), str(root))


def _environment() -> dict[str, str]:
    path = os.environ.get("PATH", os.defpath)
    return {"PATH": f"{path}:/usr/sbin:/sbin", "LC_ALL": "C", "SOURCE_DATE_EPOCH": str(EPOCH)}


def _place(cache: Path, name: Name, debs: Sequence[debian.Deb], finish: Path) -> Path:
    versions = [f"{deb.name}={deb.version}={deb.sha256}" for deb in debs]
    key = _digest((_FORMAT, SUITE, str(EPOCH), finish.read_text(), str(_COMPRESSED[name]), *versions))
    return cache.resolve() / f"{name}-{key[:16]}"


def _read(place: Path) -> Layout | None:
    try:
        record = json.loads((place / _RECORD).read_text())
    except FileNotFoundError:
        return None
    packages = tuple(Package(**package) for package in record["packages"])
    return Layout(path=place, digest=record["digest"], packages=packages)


def _write_layer(tar: Path, blobs: Path, *, compressed: bool) -> tuple[dict[str, Any], str]:
    """Write the layer's blob; return the rest of its descriptor, and the digest of the tar itself."""
    content, blob = hashlib.sha256(), hashlib.sha256()
    unnamed = blobs / "layer"
    with tar.open("rb") as source, unnamed.open("wb") as out:
        for piece in _pieces(source, content, compressed=compressed):
            blob.update(piece)
            out.write(piece)
    size = unnamed.stat().st_size
    unnamed.rename(blobs / blob.hexdigest())
    return {"digest": f"sha256:{blob.hexdigest()}", "size": size}, f"sha256:{content.hexdigest()}"


def _pieces(source: BinaryIO, content: hashlib._Hash, *, compressed: bool) -> Iterator[bytes]:
    """Yield the bytes of `source`, hashed into `content` and then, if asked, as gzip without name and time."""
    squeeze = zlib.compressobj(level=6, wbits=31)
    while chunk := source.read(_CHUNK):
        content.update(chunk)
        yield squeeze.compress(chunk) if compressed else chunk
    if compressed:
        yield squeeze.flush()


def _write_blob(blobs: Path, value: dict[str, Any], *, kind: str) -> dict[str, Any]:
    data = _canonical(value)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "mediaType": kind, "size": len(data)}


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
