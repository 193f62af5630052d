"""Reads single files and commits of a git repository: a local one as it is, a remote by a clone without contents."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, files, git

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

UPSTREAM = "https://github.com/vllm-project/vllm"
_REF = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/+-]{0,200}")
_URL = re.compile(r"(https|ssh|file)://[^\s-]\S*|[A-Za-z0-9_.][A-Za-z0-9_.-]*@[A-Za-z0-9.-]+:\S+")
_LARGEST = 64_000_000
_FETCH = ("fetch", "--quiet", "--no-tags", "--filter=blob:none")
_SECONDS = 1800
_PROTOCOLS = "https:ssh:file"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """Where git is run: `url` is "" for a local repository, else what Kiln's bare clone at `folder` fetches from."""

    folder: Path
    url: str

    @property
    def name(self) -> str:
        return self.url or str(self.folder)

    def execute(self, *words: str) -> tuple[int, bytes, str]:
        """Run git there; a local repository may be somebody else's: its git fetches nothing and runs nothing."""
        safe = [word for at in (self.folder, self.folder / ".git") for word in ("-c", f"safe.directory={at}")]
        words = (*safe, "-c", "core.fsmonitor=false", *words)
        return git.execute(self.folder, *words, seconds=_SECONDS, protocols=_PROTOCOLS if self.url else "")

    def ask(self, *words: str) -> bytes:
        """Return what git says; raises CommandFailed."""
        code, out, problem = self.execute(*words)
        if code:
            raise errors.CommandFailed(f"{self.name}: git {words[0]}: {_last(problem)}")
        return out

    def fetch(self, *refs: str, options: Sequence[str] = ()) -> None:
        """Fetch commits and folders of refs, no file contents; raises Missing when the remote does not give them."""
        code, _, problem = self.execute(*_FETCH, *options, "origin", *refs)
        if code:
            raise errors.Missing(f"{self.url}: {', '.join(refs)}: cannot be fetched: {_last(problem)}")

    def fetch_contents(self, blobs: Iterable[str]) -> None:
        """Fetch file contents by id, at once: left alone, git would ask for them one by one."""
        # without a negotiation, as git itself does it: else it takes these for commits that are not complete
        quiet = ("-c", "fetch.negotiationAlgorithm=noop", *_FETCH, "--no-write-fetch-head")
        code, _, problem = self.execute(*quiet, "origin", *blobs)
        if code:
            raise errors.Missing(f"{self.url}: the contents of files cannot be fetched: {_last(problem)}")

    def commit(self, ref: str) -> str:
        """Return the id of a commit; raises BadInput where there is no such ref."""
        code, out, _ = self.execute("rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
        if code:
            raise errors.BadInput(f"{self.name}: has no {ref}", hint=f"git -C {self.name} fetch --tags")
        return out.decode().strip()

    def tags(self, *names: str) -> None:
        """Make sure of tags, fetching them where there is a remote; raises BadInput or Missing."""
        if self.url:
            self.fetch(*(f"+refs/tags/{name}:refs/tags/{name}" for name in names))
        for name in names:
            self.commit(f"refs/tags/{name}")


@dataclass(frozen=True, kw_only=True)
class Commit:
    id: str
    date: str
    subject: str


@dataclass(frozen=True, kw_only=True)
class GitFiles:
    """The files of a commit."""

    repository: Repository
    commit: str

    def stamps(self) -> dict[str, str]:
        """Return the blob id of every file of the package."""
        rows = self.repository.ask("ls-tree", "-r", "-z", "--full-tree", self.commit, "--", "vllm").split(b"\0")
        parts = (row.partition(b"\t") for row in rows if row)
        return {path.decode("utf-8", "replace"): head.split()[2].decode() for head, _, path in parts}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of each path that is there, fetching at once what is needed."""
        there = self.stamps()
        blobs = {path: there[path] for path in paths if path in there}
        if self.repository.url and blobs:
            self.repository.fetch_contents(dict.fromkeys(blobs.values()))
        return {path: self._content(blob) for path, blob in blobs.items()}

    def _content(self, blob: str) -> bytes:
        size = int(self.repository.ask("cat-file", "-s", blob))
        if size > _LARGEST:
            raise errors.BadInput(f"{blob}: {size} bytes is more than Kiln reads")
        return self.repository.ask("cat-file", "blob", blob)


def opened(where: str, *, state: Path, shallow: bool = False) -> Repository:
    """Return a local repository, or Kiln's own for a URL, one with histories and one without; raises BadInput."""
    if not _URL.fullmatch(where):
        found = Repository(folder=Path(where).resolve(), url="")
        if not found.folder.is_dir() or found.execute("rev-parse", "--git-dir")[0]:
            raise errors.BadInput(f"{where}: neither the URL nor the folder of a git repository")
        return found
    name = hashlib.sha256(where.encode()).hexdigest()[:16]
    home = state / "git" / f"{name}{'-shallow' if shallow else ''}"
    made = Repository(folder=home, url=where)
    with files.locked(home):
        if not (home / "HEAD").is_file():
            home.mkdir(parents=True, exist_ok=True)
            made.ask("init", "--quiet", "--bare", "--template=")
        for name, value in (("url", where), ("promisor", "true"), ("partialclonefilter", "blob:none")):
            made.ask("config", f"remote.origin.{name}", value)
    return made


def at(where: str, ref: str, *, state: Path) -> GitFiles:
    """Return the files at a ref; raises BadInput for what git does not know, Missing where it cannot be fetched."""
    if not _REF.fullmatch(ref):
        raise errors.BadInput(f"{ref!r}: not a branch, tag or commit")
    repository = opened(where, state=state, shallow=True)
    if repository.url:
        own = f"refs/kiln/{hashlib.sha256(ref.encode()).hexdigest()[:16]}"  # another run may fetch another ref now
        repository.fetch(f"+{ref}:{own}", options=("--depth=1",))
        ref = own
    return GitFiles(repository=repository, commit=repository.commit(ref))


def between(
    where: str, older: str, newer: str, paths: Sequence[str], *, state: Path
) -> Iterator[tuple[GitFiles, Commit]]:
    """Yield the commits after tag `older` up to tag `newer` that touch paths, oldest first."""
    repository = opened(where, state=state)
    repository.tags(older, newer)
    words = ("log", "--reverse", "--topo-order", "-z", "--format=%H%x01%cs%x01%s", "--no-show-signature")
    log = repository.ask(*words, f"refs/tags/{older}..refs/tags/{newer}", "--", *paths)
    for entry in filter(None, log.decode("utf-8", "replace").split("\0")):
        commit, date, subject = entry.split("\x01", 2)
        yield GitFiles(repository=repository, commit=commit), Commit(id=commit, date=date, subject=subject)


def _last(problem: str) -> str:
    """Return the last line of what git complains about, without its own word for it."""
    lines = [line for line in problem.strip().splitlines() if line.strip()]
    return lines[-1].removeprefix("fatal: ") if lines else "no reason given"
