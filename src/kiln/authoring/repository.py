"""Git as authoring uses it, through GitPython: one bare store, worktrees of it, blind to the machine's settings."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, git

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

_WHO = "Kiln <kiln@localhost> 946684800 +0000"  # always the same, so that the same history has the same commit ids
_SETTINGS = {
    "user.name": "Kiln",
    "user.email": "kiln@localhost",
    "core.autocrlf": "false",
    "core.safecrlf": "false",
    "core.hooksPath": os.devnull,
    "commit.gpgSign": "false",
    "gc.auto": "0",
}


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit of a history that is written at once; None takes a file away."""

    message: str
    files: Mapping[str, bytes | None]


def store(folder: Path) -> Path:
    """Return the bare repository at `folder`, made where it is missing, its settings set again."""
    if not (folder / "HEAD").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        git.ask(folder, "init", "--quiet", "--bare", "--template=", "--object-format=sha1", "--initial-branch=none")
    for name, value in _SETTINGS.items():
        git.ask(folder, "config", name, value)
    return folder


def find(folder: Path, ref: str) -> str:
    """Return the commit that a ref names, "" where there is no such ref."""
    try:
        return git.ask(folder, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}").decode().strip()
    except errors.CommandFailed:
        return ""


def commit(folder: Path, start: str, commits: Sequence[Commit]) -> tuple[str, ...]:
    """Write commits one on the other, the first on the commit `start` ("": on nothing), and return their ids."""
    with tempfile.TemporaryDirectory(prefix="kiln-git-") as name:
        stream, marks = Path(name, "stream"), Path(name, "marks")
        with stream.open("wb") as out:
            for part in _stream(start, commits):
                out.write(part)
        git.ask(folder, "fast-import", "--quiet", "--force", "--done", f"--export-marks={marks}", stdin=stream)
        found = dict(line.split() for line in marks.read_text(encoding="ascii").splitlines())
    return tuple(found[f":{n}"] for n in range(1, len(commits) + 1))


def blobs(folder: Path, ref: str) -> dict[str, str]:
    """Return the blob id of each file of a commit."""
    rows = git.ask(folder, "ls-tree", "-r", "-z", "--full-tree", ref).split(b"\0")
    parts = (row.partition(b"\t") for row in rows if row)
    return {path.decode(): head.split()[2].decode() for head, _, path in parts}


def contents(folder: Path, ids: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of blobs by id."""
    return {blob: git.ask(folder, "cat-file", "blob", blob) for blob in set(ids)}


def _stream(start: str, commits: Sequence[Commit]) -> Iterator[bytes]:
    """Yield the history in the form that `git fast-import` reads; no ref of the repository is touched."""
    # fast-import wants a branch; this one is new and is taken away at the end
    branch = "refs/kiln/import"
    for n, made in enumerate(commits, 1):
        message = made.message.encode()
        yield f"commit {branch}\nmark :{n}\nauthor {_WHO}\ncommitter {_WHO}\ndata {len(message)}\n".encode() + message
        parent = f":{n - 1}" if n > 1 else start
        yield f"\nfrom {parent}\n".encode() if parent else b"\n"
        for path, data in made.files.items():
            name = _quoted(path)
            if data is None:
                yield f"D {name}\n".encode()
            else:
                yield f"M 100644 inline {name}\ndata {len(data)}\n".encode() + data + b"\n"
    yield f"reset {branch}\nfrom {'0' * 40}\n\ndone\n".encode()


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
