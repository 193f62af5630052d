"""Makes the layer of a thin build: what the patch engine leaves in a small copy of the base, as a tar."""

from __future__ import annotations

import io
import stat
import tarfile
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from kiln import errors
from kiln.image.bake import SOURCE_DATE_EPOCH
from kiln.image.rehearsal import describe
from kiln.patching import engine, roots
from kiln.patching import errors as patching_errors
from kiln.patching.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from kiln.patching.series import Series

_WHITEOUT = ".wh."
_FOLDER_MODE = 0o755


@dataclass(frozen=True, kw_only=True)
class Site:
    """The part of a base that a series meets; `bytecode` lies under `root`, `modes` are by path in the image."""

    root: str
    dist_info: str
    record: bytes
    bytecode: tuple[str, ...]
    modes: Mapping[str, int]

    def mode(self, path: str) -> int:
        """Return the mode that a file or folder has in the base; raises BadInput where the base did not say."""
        if path in self.modes:
            return self.modes[path]
        raise errors.BadInput(
            f"/{path}: its mode in the base is not in images/lock.json",
            hint="./inv lock --bases; where that does not find it: build without --thin",
        )


@dataclass(frozen=True, kw_only=True)
class Member:
    """One entry of a layer; `data` is None for a folder. A file named .wh.NAME removes NAME of the layers below."""

    path: str
    mode: int
    data: bytes | None

    @property
    def removes(self) -> str:
        """The path of the layers below that this entry removes; "" for any other entry."""
        folder, slash, name = self.path.rpartition("/")
        return f"{folder}{slash}{name.removeprefix(_WHITEOUT)}" if name.startswith(_WHITEOUT) else ""


def patched(series: Series, before: Mapping[str, bytes], site: Site) -> tuple[Member, ...]:
    """Run the patch engine on `before`, RECORD and bytecode of the base; return each file that it wrote or removed.

    `before` are the files that the series touches, by their path under the root. Raises NotApplied.
    """
    with tempfile.TemporaryDirectory(prefix="kiln-thin-") as scratch:
        top = Path(scratch).resolve() / site.root
        touched = {change.path for patch in series.patches for change in patch.files}
        _lay_out(top, before, site, there=_folders(touched, site))
        start = _held(top)
        try:
            report = engine.apply(series, roots.find(series.distribution, root=top, release=series.release))
        except patching_errors.PatchingError as error:
            raise errors.NotApplied(error.message, hint=error.hint) from error
        if report.outcome is not Outcome.APPLIED:
            raise errors.NotApplied("\n".join(describe(report)), hint="./inv lock, then the same command")
        end = _held(top)
    changed = (path for path in sorted(end) if end[path] != start.get(path))
    written = (Member(path=f"{site.root}/{path}", mode=end[path][0], data=end[path][1]) for path in changed)
    return (*written, *(_removal(f"{site.root}/{path}") for path in sorted(start.keys() - end.keys())))


def removals(paths: Iterable[str]) -> tuple[Member, ...]:
    """Return the entries that remove files or folders of the base."""
    return tuple(_removal(path) for path in paths)


def read_tar(data: bytes) -> tuple[Member, ...]:
    """Return the entries of a tar that Kiln has staged for an image: files and folders only."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return tuple(
            Member(path=entry.name, mode=entry.mode, data=file.read() if (file := archive.extractfile(entry)) else None)
            for entry in archive
        )


def whole(members: Iterable[Member], site: Site) -> tuple[Member, ...]:
    """Return the entries in order, and the folders as the base has them, those above entries too.

    BuildKit makes a folder that is missing above an entry by itself, and with that one changes the mode of the base's.
    """
    found = {each.path: each if each.data is not None else _as_in_base(each, site) for each in members}
    above = {str(parent) for path in found for parent in PurePosixPath(path).parents} - {".", *found}
    found |= {path: Member(path=path, mode=_folder_mode(path, site), data=None) for path in above}
    return tuple(member for _, member in sorted(found.items()))


def render(members: Iterable[Member]) -> bytes:
    """Return entries as a tar that depends on nothing else."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            archive.addfile(_header(member), io.BytesIO(member.data or b""))
    return buffer.getvalue()


def _lay_out(top: Path, before: Mapping[str, bytes], site: Site, *, there: Iterable[str]) -> None:
    """Write what the engine reads: the files, RECORD, a METADATA that names the version, and bytecode to remove."""
    version = site.dist_info.removesuffix(".dist-info").partition("-")[2]
    compared = {**before, f"{site.dist_info}/RECORD": site.record}
    others = {
        **dict.fromkeys(site.bytecode, b""),
        f"{site.dist_info}/METADATA": f"Version: {version}\n".encode(),
    }
    for folder in there:
        (top / folder).mkdir(parents=True, exist_ok=True)
    for path, data in (compared | others).items():
        target = top / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if path in compared:
            target.chmod(site.mode(f"{site.root}/{path}"))


def _folders(touched: Iterable[str], site: Site) -> Iterator[str]:
    """Yield the folders above these files that the base has: the engine remembers which ones it had to make."""
    above = {str(parent) for path in touched for parent in PurePosixPath(path).parents}
    return (folder for folder in sorted(above) if f"{site.root}/{folder}" in site.modes)


def _held(top: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in top.rglob("*") if path.is_file())
    return {path.relative_to(top).as_posix(): (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) for path in files}


def _removal(path: str) -> Member:
    folder, _, name = path.rpartition("/")
    return Member(path=f"{folder}/{_WHITEOUT}{name}" if folder else f"{_WHITEOUT}{name}", mode=0o644, data=b"")


def _as_in_base(folder: Member, site: Site) -> Member:
    return replace(folder, mode=site.modes.get(folder.path, folder.mode))


def _folder_mode(path: str, site: Site) -> int:
    """Return the mode of a folder: the base's, or the engine's for one that the series makes."""
    made = path.startswith(f"{site.root}/") and path not in site.modes
    return _FOLDER_MODE if made else site.mode(path)


def _header(member: Member) -> tarfile.TarInfo:
    header = tarfile.TarInfo(member.path)
    header.type = tarfile.DIRTYPE if member.data is None else tarfile.REGTYPE
    header.mode, header.size, header.mtime = member.mode, len(member.data or b""), SOURCE_DATE_EPOCH
    return header
