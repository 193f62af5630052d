"""Reads single files at a ref of a git repository: a local one as it is, another by a clone without file contents."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors, files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import git

UPSTREAM = "https://github.com/vllm-project/vllm"
_REF = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._/+-]{0,200}")
_URL = re.compile(r"(https|ssh|file)://[^\s]+|[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:[^\s]+")
_LARGEST = 64_000_000
_TIMEOUT_S = 600


@dataclass(frozen=True, kw_only=True)
class GitFiles:
    """A commit of a repository; `ref` is what was asked for."""

    repo: git.Repo
    ref: str
    commit: str

    def stamps(self) -> dict[str, str]:
        """Return the blob id of every file of the package."""
        rows = self.repo.git.ls_tree("-r", "-z", "--full-tree", self.commit, "--", "vllm").split("\0")
        entries = [row.partition("\t") for row in rows if row]
        return {path: about.split()[2] for about, _, path in entries if about.split()[1] == "blob"}

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of each path that is there, fetching what the clone lacks at once."""
        there = self.stamps()
        blobs = {path: there[path] for path in paths if path in there}
        return dict(zip(blobs, _contents(self.repo, list(blobs.values())), strict=True))


def at(repository: str, ref: str, *, state: Path) -> GitFiles:
    """Return the files at a ref; raises BadInput for what git does not know, Missing where it cannot be fetched."""
    import git

    if not _REF.fullmatch(ref):
        raise errors.BadInput(f"{ref!r}: not a branch, tag or commit")
    repo = opened(repository, state=state)
    wanted = ref
    if _is_remote(repository):
        fetch(repo, ref, options=("--depth=1",))
        wanted = "FETCH_HEAD"
    try:
        commit = repo.git.rev_parse("--verify", "--end-of-options", f"{wanted}^{{commit}}")
    except git.GitCommandError as error:
        raise errors.BadInput(f"{repository}: has no {ref}", hint=f"git -C {repository} branch --all") from error
    return GitFiles(repo=repo, ref=ref, commit=commit)


def between(
    repository: str, older: str, newer: str, paths: Sequence[str], *, state: Path
) -> Iterator[tuple[GitFiles, str, str]]:
    """Yield the commits after tag `older` up to tag `newer` that touch paths, oldest first, with date and subject."""
    import git

    repo = opened(repository, state=state)
    if _is_remote(repository):
        fetch(repo, f"+refs/tags/{newer}:refs/tags/{newer}", options=(f"--shallow-exclude={older}",))
    span = [newer] if _is_remote(repository) else [f"{older}..{newer}"]
    try:
        log = repo.git.log("--reverse", "--topo-order", "--format=%H%x00%cs%x00%s", *span, "--", *paths)
    except git.GitCommandError as error:
        raise errors.BadInput(f"{repository}: does not have the tags {older} and {newer}") from error
    for line in log.splitlines():
        commit, date, subject = line.split("\0", 2)
        yield GitFiles(repo=repo, ref=commit, commit=commit), date, subject


def opened(repository: str, *, state: Path) -> git.Repo:
    """Return a local repository, or Kiln's own bare one for a remote, which holds nothing yet."""
    import git

    if not _is_remote(repository):
        try:
            repo = git.Repo(repository)
        except (git.InvalidGitRepositoryError, git.NoSuchPathError) as error:
            raise errors.BadInput(f"{repository}: neither the URL nor the folder of a git repository") from error
        _isolate(repo)
        return repo
    home = state / "git" / hashlib.sha256(repository.encode()).hexdigest()[:16]
    with files.locked(home):
        repo = git.Repo.init(home, bare=True, mkdir=True)
        _isolate(repo)
        if "origin" not in [remote.name for remote in repo.remotes]:
            repo.git.remote("add", "--", "origin", repository)
    return repo


def fetch(repo: git.Repo, *refs: str, options: Sequence[str] = ()) -> None:
    """Fetch commits and trees of refs, no file contents; raises Missing when the remote does not give them."""
    import git

    try:
        # without a negotiation, as git itself fetches contents: else it takes them for commits that are not complete
        repo.git(c="fetch.negotiationAlgorithm=noop").fetch(
            "--quiet",
            "--no-tags",
            "--filter=blob:none",
            *options,
            "origin",
            *refs,
            kill_after_timeout=_TIMEOUT_S,
        )
    except git.GitCommandError as error:
        reason = str(error.stderr).strip().removeprefix("stderr: ").strip("'\n ")
        raise errors.Missing(f"{', '.join(refs)}: cannot be fetched: {reason}") from error


def _is_remote(repository: str) -> bool:
    return bool(_URL.fullmatch(repository))


def _contents(repo: git.Repo, blobs: Sequence[str]) -> Iterator[bytes]:
    if blobs and repo.bare and "origin" in [remote.name for remote in repo.remotes]:
        # all at once, as git does itself for a checkout: left alone, it would ask for them one by one
        fetch(repo, *dict.fromkeys(blobs), options=("--no-write-fetch-head",))
    for blob in blobs:
        found = repo.odb.stream(bytes.fromhex(blob))
        if found.size > _LARGEST:
            raise errors.BadInput(f"{blob}: {found.size} bytes is more than Kiln reads")
        yield found.read()


def _isolate(repo: git.Repo) -> None:
    """Let git read no settings but the repository's own, ask nobody, run no hook, and speak no odd protocol."""
    repo.git.update_environment(
        GIT_CONFIG_GLOBAL=os.devnull,
        GIT_CONFIG_NOSYSTEM="1",
        GIT_TERMINAL_PROMPT="0",
        GIT_ALLOW_PROTOCOL="https:ssh:file",
        LC_ALL="C",
    )
