"""Fetches Debian packages, signatures checked, through a private apt state with the machine's own apt settings."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kiln import errors, files, process

Progress = Callable[[str], None]

_CODENAMES = frozenset({"bullseye", "bookworm", "trixie", "forky", "duke", "sid"})
_RELEASES = _CODENAMES | {"oldoldstable", "oldstable", "stable", "testing", "unstable"}
_UNSTABLE = frozenset({"sid", "unstable", "testing"})
_PARTS_NAME = re.compile(r"[A-Za-z0-9._-]+\.(list|sources)")
_SUMS = "SHA256SUMS"
_REQUEST = "REQUEST"
_PROGRESS_EVERY_S = 0.5
_HINT = (
    "add the Debian archive to apt's sources (sources.list(5), in sources.list.d/debian.sources): "
    "`Types: deb`, `URIs: <your Debian mirror>`, `Suites: {suite}`, `Components: main`, "
    "`Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg`"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One enabled `deb` entry of the machine; `signed_by` is a keyring's path, a key block, or empty."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deb:
    name: str
    version: str
    path: Path
    sha256: str


def parse_deb822(text: str) -> tuple[Source, ...]:
    """Read the stanzas of a `*.sources` file; disabled and source-only ones are left out."""
    kept = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(source for stanza in re.split(r"\n\s*\n", kept) for source in _stanza_sources(stanza))


def _stanza_sources(stanza: str) -> Iterator[Source]:
    fields: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in " \t" and name:
            fields[name] += "\n" + line
        elif ":" in line:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "0", "off", "without", "disable"}
    if not enabled or "deb" not in fields.get("types", "").split():
        return
    for uri in fields.get("uris", "").split():
        yield Source(
            uri=uri,
            suites=tuple(fields.get("suites", "").split()),
            components=tuple(fields.get("components", "").split()),
            signed_by=fields.get("signed-by", ""),
        )


def parse_one_line(text: str) -> tuple[Source, ...]:
    """Read the `deb [options] uri suite component...` lines of a `*.list` file."""
    found = []
    for line in text.splitlines():
        match = re.fullmatch(r"deb\s+(?:\[([^]]*)]\s*)?(\S+)\s+(\S+)\s*(.*)", line.partition("#")[0].strip())
        if match:
            options, uri, suite, components = match.groups()
            signed = re.search(r"(?:^|\s)signed-by=(\S+)", options or "", re.IGNORECASE)
            found.append(
                Source(
                    uri=uri,
                    suites=(suite,),
                    components=tuple(components.split()),
                    signed_by=signed[1] if signed else "",
                ),
            )
    return tuple(found)


def machine_sources() -> tuple[Source, ...]:
    """Return every enabled entry of this machine's apt sources, in apt's own order."""
    settings = _apt_paths()
    listed = [Path(settings["LIST"])]
    parts = Path(settings["PARTS"])
    if parts.is_dir():
        listed += sorted(path for path in parts.iterdir() if _PARTS_NAME.fullmatch(path.name))
    return tuple(
        source
        for path in listed
        if path.is_file()
        for source in (parse_deb822 if path.suffix == ".sources" else parse_one_line)(path.read_text())
    )


def sources_for(suite: str, sources: Sequence[Source]) -> tuple[Source, ...]:
    """Choose where `suite` comes from: the archive's mirror, and the updates and security suites that apply to it."""
    archives = [source for source in sources if _likeness(source, sources)]
    if not archives:
        raise errors.Missing(
            f"apt's sources have no entry for the Debian archive, from which {suite} packages come",
            hint=_HINT.format(suite=suite),
        )
    archive = max(archives, key=lambda source: (suite in source.suites, _likeness(source, sources)))
    extras = () if suite in _UNSTABLE else (f"{suite}-updates", f"{suite}-security")
    chosen = [Source(uri=archive.uri, suites=(suite,), components=("main",), signed_by=archive.signed_by)]
    for extra in extras:
        chosen += [
            Source(uri=source.uri, suites=(extra,), components=("main",), signed_by=source.signed_by)
            for source in sources
            if extra in source.suites and "main" in source.components
        ]
    return tuple(dict.fromkeys(chosen))


def _likeness(source: Source, sources: Sequence[Source]) -> int:
    """Say how much an entry looks like the Debian archive; other archives use the same suite names, too."""
    if "main" not in source.components or source.uri.startswith("cdrom:"):
        return 0
    bases = _RELEASES.intersection(source.suites)
    if not bases:
        return 0
    here = {suite for other in sources if other.uri == source.uri for suite in other.suites}
    has_updates = any(f"{base}-updates" in here for base in bases)
    has_key = not source.signed_by or "debian-archive" in source.signed_by
    return 2 * has_updates + has_key


def fetch(
    packages: Sequence[str],
    *,
    suite: str,
    dest: Path,
    dependencies: bool = False,
    progress: Progress | None = None,
) -> tuple[Deb, ...]:
    """Download `packages` of `suite` into `dest`, with all they depend on if asked; a whole `dest` needs no network.

    A `dest` made for another request, or with a file that differs from its SHA256SUMS, is fetched again.
    """
    request = _request(packages, suite=suite, dependencies=dependencies)
    with files.locked(dest):
        debs = fetched(packages, suite=suite, dest=dest, dependencies=dependencies)
        if debs and all(deb.path.is_file() and _sha256(deb.path) == deb.sha256 for deb in debs):
            return debs
        with tempfile.TemporaryDirectory(dir=dest.parent, prefix=f".{dest.name}.") as scratch:
            fresh = Path(scratch) / "debs"
            fresh.mkdir()
            _download(packages, suite=suite, into=fresh, dependencies=dependencies, progress=progress)
            fetched_debs = sorted(fresh.glob("*.deb"))
            (fresh / _REQUEST).write_text(request)
            (fresh / _SUMS).write_text("".join(f"{_sha256(path)}  {path.name}\n" for path in fetched_debs))
            shutil.rmtree(dest, ignore_errors=True)
            fresh.chmod(0o755)
            fresh.rename(dest)
        return fetched(packages, suite=suite, dest=dest, dependencies=dependencies)


def fetched(packages: Sequence[str], *, suite: str, dest: Path, dependencies: bool = False) -> tuple[Deb, ...]:
    """Return what SHA256SUMS in `dest` says was fetched for this very request, or nothing; reads no package."""
    try:
        same = (dest / _REQUEST).read_text() == _request(packages, suite=suite, dependencies=dependencies)
        sums = (dest / _SUMS).read_text()
    except FileNotFoundError:
        return ()
    if not same:
        return ()
    return tuple(_deb(dest / name, sha256) for sha256, name in (line.split("  ") for line in sums.splitlines()))


def unpack(debs: Sequence[Deb], target: Path, *, workers: int = 1) -> None:
    """Unpack `debs` into `target`, with one worker in order; directories replace symlinks, so merge /usr after."""
    target.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(process.ask, ("dpkg-deb", "--extract", str(deb.path), str(target))) for deb in debs]
        for job in jobs:
            job.result()


def private_config(root: Path, *, acquire: Sequence[str], paths: dict[str, str]) -> str:
    """Return the apt.conf of a private state under `root`: the machine's Acquire settings and keys, no more."""
    return "\n".join(
        (
            *acquire,
            f'Dir::Etc "{root}/etc";',
            f'Dir::Etc::sourcelist "{root}/etc/kiln.sources";',
            'Dir::Etc::sourceparts "/dev/null";',
            'Dir::Etc::main "/dev/null";',
            'Dir::Etc::parts "/dev/null";',
            'Dir::Etc::preferences "/dev/null";',
            'Dir::Etc::preferencesparts "/dev/null";',
            f'Dir::Etc::trusted "{paths["TRUSTED"]}";',
            f'Dir::Etc::trustedparts "{paths["TRUSTEDPARTS"]}";',
            f'Dir::Etc::netrc "{paths["NETRC"]}";',
            f'Dir::Etc::netrcparts "{paths["NETRCPARTS"]}";',
            f'Dir::State "{root}/state";',
            f'Dir::State::status "{root}/status";',
            f'Dir::Cache "{root}/cache";',
            'Acquire::Languages "none";',
            'Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";',
            'Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";',
            'APT::Sandbox::User "";',
            'APT::Install-Recommends "false";',
            'APT::Update::Error-Mode "any";',
            'APT::Get::Assume-Yes "true";',
            'Debug::NoLocking "true";',
            "",
        ),
    )


def private_sources(sources: Sequence[Source]) -> str:
    """Return `sources` as deb822 stanzas; a mirror's copy of sid may be past its date, its signature is checked."""
    return "\n".join(_stanza(source) for source in sources)


def _stanza(source: Source) -> str:
    fields = {
        "Types": "deb",
        "URIs": source.uri,
        "Suites": " ".join(source.suites),
        "Components": " ".join(source.components),
        "Check-Valid-Until": "no" if _UNSTABLE.intersection(source.suites) else "",
        "Signed-By": source.signed_by,
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items() if value)


def _download(
    packages: Sequence[str], *, suite: str, into: Path, dependencies: bool, progress: Progress | None
) -> None:
    chosen = sources_for(suite, machine_sources())
    root = into.parent / "apt"
    for folder in ("etc", "state/lists/partial", "cache/archives/partial"):
        (root / folder).mkdir(parents=True)
    (root / "status").touch()
    (root / "etc/kiln.sources").write_text(private_sources(chosen))
    dump = process.ask(("apt-config", "dump")).splitlines()
    acquire = [line for line in dump if line.startswith("Acquire::")]
    config = root / "apt.conf"
    config.write_text(private_config(root, acquire=acquire, paths=_apt_paths()))
    env = {**os.environ, "APT_CONFIG": str(config), "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    line = _shortened(progress or (lambda _: None))
    line(f"Get:0 index of {suite}")
    process.show(("apt-get", "--quiet", "update"), env=env, line=line)
    if dependencies:
        argv = ("apt-get", "--quiet", "install", "--download-only", *packages)
        process.show(argv, env=env, line=line)
        for path in (root / "cache/archives").glob("*.deb"):
            path.rename(into / path.name)
    else:
        process.show(("apt-get", "--quiet", "download", *packages), env=env, cwd=into, line=line)


def _shortened(progress: Progress) -> Progress:
    """Return a `progress` that sees, twice a second at most, what apt is getting."""
    last = 0.0

    def line(text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if text.startswith("Get:") and now - last >= _PROGRESS_EVERY_S:
            last = now
            progress(re.sub(r"^Get:\d+ (?:\S+://\S+ )?", "", text))

    return line


def _apt_paths() -> dict[str, str]:
    """Ask apt where its files are on this machine."""
    argv = (
        *("apt-config", "shell"),
        *("LIST", "Dir::Etc::sourcelist/f"),
        *("PARTS", "Dir::Etc::sourceparts/d"),
        *("TRUSTED", "Dir::Etc::trusted/f"),
        *("TRUSTEDPARTS", "Dir::Etc::trustedparts/d"),
        *("NETRC", "Dir::Etc::netrc/f"),
        *("NETRCPARTS", "Dir::Etc::netrcparts/d"),
    )
    return dict(assignment.split("=", 1) for assignment in shlex.split(process.ask(argv)))


def _request(packages: Sequence[str], *, suite: str, dependencies: bool) -> str:
    scope = "with dependencies" if dependencies else "alone"
    return "\n".join((suite, scope, *packages, ""))


def _deb(path: Path, sha256: str) -> Deb:
    name, version, _ = path.name.split("_")
    return Deb(name=name, version=urllib.parse.unquote(version), path=path, sha256=sha256)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
