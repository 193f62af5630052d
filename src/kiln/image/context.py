"""Stages what a Dockerfile reads into one folder.

Files keep the time they were written: BuildKit takes a file of the same size and time for the one it already has. What
goes into a layer as it is travels in a tar, with the epoch as its time.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kiln import errors, files, report
from kiln.image.bake import SOURCE_DATE_EPOCH
from kiln.patching import zipapp
from kiln.patching.outcomes import digest
from kiln.patching.series import write_series
from kiln.upstream import pip_config, wheel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiln.catalog import Catalog, records
    from kiln.image.rehearsal import Rehearsal


def stage(folder: Path, rehearsal: Rehearsal, pins: dict[str, object], tuned: Path | None = None) -> None:
    """Write what every image gets: the applier, the series and /opt/kiln/pins.json; files of `tuned` beside that.

    The recipes' VLLM_TUNED_CONFIG_FOLDER names the folder that those are in: /opt/kiln/tuned.
    """
    shutil.rmtree(folder, ignore_errors=True)
    patch = folder / "patch"
    patch.mkdir(parents=True)
    zipapp.build(patch / "kiln-patch.pyz")
    write_series(patch / "series", rehearsal.series)
    tiles = sorted(tuned.iterdir()) if tuned and tuned.is_dir() else []
    held = {f"opt/kiln/tuned/{path.name}": path.read_bytes() for path in tiles}
    write_tar(folder / "rootfs.tar", held | {"opt/kiln/pins.json": (report.as_json(pins) + "\n").encode()})


def stage_twin(folder: Path, catalog: Catalog, twin: records.Twin, release: records.ReleasePins) -> None:
    """Write what the twin's installer stages get: locks, scripts and the files its wheel lacks."""
    install = folder / "install"
    install.mkdir()
    for script in ("slim.py", "rename.py"):
        shutil.copy(catalog.root / "images/twin" / script, install / script)
    shutil.copy(catalog.root / twin.requirements, install / "requirements.lock")
    for name, pin in (("torch.lock", twin.torch), ("vllm.lock", twin.wheel)):
        (install / name).write_text(f"{requirement(pin)}\n", encoding="utf-8")
    extras = folder / "extras"
    extras.mkdir()
    members = {extra.member: extra.sha256 for extra in twin.extras}
    found = wheel.read(release.wheel, members, cache=catalog.state / "wheels")
    for member, sha256 in members.items():
        data = found.get(member)
        if digest(data) != sha256:
            raise errors.BadInput(
                f"{release.wheel.file}: {member}: pinned sha256 {sha256}, found {digest(data) or 'no such file'}",
                hint="edit images/releases.yaml after checking the release",
            )
        target = extras / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data or b"")


def stage_tools(state: Path, twin: records.Twin) -> dict[str, str]:
    """Return the named contexts of the installer stages: `tools` holds uv, `wheels` holds torch's CPU wheel."""
    return {"tools": str(stage_uv(state)), "wheels": str(torch_wheel(state, twin).parent)}


def stage_uv(state: Path) -> Path:
    """Return a folder that holds nothing but uv, one program without libraries that runs in every image."""
    import uv

    tools = state / "tools"
    with files.locked(tools):
        link(uv.find_uv_bin(), tools / "uv")
    return tools


def torch_wheel(state: Path, twin: records.Twin) -> Path:
    """Return torch's CPU wheel, alone in its folder."""
    return whole_wheel(state / "torch", twin.torch)


def whole_wheel(folder: Path, pin: records.WheelPin) -> Path:
    """Return a wheel as a file, from pip's find-links folders or fetched once; alone in its folder.

    Its bytes are those of its pin: others that lie in its place are replaced.
    """
    target = folder / pin.sha256 / pin.file
    # another build at the same time reads the whole folder
    with files.locked(target.parent):
        if not _is_pinned(target, pin):
            target.unlink(missing_ok=True)
            local = (each / pin.file for each in pip_config.read().find_links)
            source = next((path for path in local if _is_pinned(path, pin)), None)
            if source:
                link(str(source), target)
            else:
                wheel.download(pin, target)
    return target


def _is_pinned(path: Path, pin: records.WheelPin) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == pin.sha256


def stage_secrets(folder: Path, ca: Path | None) -> dict[str, Path]:
    """Write the files that installer stages see and no layer keeps: CA bundle and package index."""
    import certifi

    settings = pip_config.read()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    index = folder / "uv.toml"
    index.write_text(f'[[index]]\nurl = "{settings.index_url}"\ndefault = true\n', encoding="utf-8")
    index.chmod(0o600)
    bundle = ca or settings.cert or Path(os.environ.get("SSL_CERT_FILE", certifi.where()))
    return {"ca.crt": bundle, "uv.toml": index}


def requirement(pin: records.WheelPin) -> str:
    """Return the pip requirement line of a pinned wheel."""
    return f"{pin.project}=={pin.version} --hash=sha256:{pin.sha256}"


def write_tar(target: Path, files: Mapping[str, bytes]) -> None:
    """Write files and the folders above them as a tar whose bytes depend on nothing else."""
    with tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted({str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}):
            archive.addfile(_member(name, tarfile.DIRTYPE, 0o755, 0))
        for name, data in sorted(files.items()):
            archive.addfile(_member(name, tarfile.REGTYPE, 0o644, len(data)), io.BytesIO(data))


def _member(name: str, kind: bytes, mode: int, size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size, member.mtime = kind, mode, size, SOURCE_DATE_EPOCH
    return member


def link(source: str, target: Path) -> None:
    """Put `source` at `target` without a copy where the file system allows it; what is there already is left alone."""
    if target.exists() and _is_same(source, target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _is_same(source: str, target: Path) -> bool:
    """Say whether a file is the source, or a copy that has its size and time."""
    one, other = Path(source).stat(), target.stat()
    return os.path.samestat(one, other) or (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
