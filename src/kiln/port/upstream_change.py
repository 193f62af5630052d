"""What upstream did to the lines that a port stumbles over: from both releases' files, and from git if given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln.patching.outcomes import shown
from kiln.port import lines
from kiln.upstream import git_ref
from kiln.upstream.git_ref import Commit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kiln.port.lines import Region
    from kiln.port.records import Problem
    from kiln.upstream.git_ref import Repository

_CONTEXT = 3
_MOST_LINES = 60
_MOST_COMMITS = 20
_LOG = (
    *("log", "-z", "--format=%x01%H%x02%cs%x02%s%x02", "--patch", "--unified=0", "--full-index", "--no-renames"),
    *("--no-color", "--no-ext-diff", "--no-textconv", "--no-show-signature", "--no-notes"),
)


@dataclass(frozen=True, kw_only=True)
class Change:
    """`diff` is what of the file's way from one release to the other meets a problem; `commits` made it, newest first.

    exact: these commits changed those lines; else they changed the file.
    """

    diff: str = ""
    commits: tuple[Commit, ...] = ()
    exact: bool = False


@dataclass(frozen=True, kw_only=True)
class History:
    """The part of a git repository between two tags."""

    repository: Repository
    old: str
    new: str

    def commits(self, path: str, removed: frozenset[bytes], added: frozenset[bytes]) -> tuple[tuple[Commit, ...], bool]:
        """Return the commits that took one of these lines out of a file or put one in, else all that changed it."""
        every, exact = [], []
        for commit, gone, new in self._log(path):
            every.append(commit)
            if gone & removed or new & added:
                exact.append(commit)
        return tuple((exact or every)[:_MOST_COMMITS]), bool(exact)

    def _log(self, path: str) -> Iterator[tuple[Commit, frozenset[bytes], frozenset[bytes]]]:
        """Yield each commit that changed a file, newest first, with the lines it took out and put in."""
        out = self.repository.ask(*_LOG, f"{self.old}..{self.new}", "--", f":(literal,top){path}")
        for entry in out.split(b"\x01")[1:]:
            commit, date, subject, patch = entry.split(b"\x02", 3)
            rows = [row for row in patch.replace(b"\0", b"\n").split(b"\n") if not row.startswith((b"--- ", b"+++ "))]
            gone, new = (frozenset(row[1:].strip() for row in rows if row.startswith(sign)) for sign in (b"-", b"+"))
            known = Commit(id=commit.decode("ascii"), date=date.decode("ascii"), subject=shown(subject + b"\n"))
            yield known, gone - {b""}, new - {b""}


def history(where: str, old: str, new: str, *, state: Path) -> History:
    """Return what git knows between the tags of two releases, of a local repository or of a URL.

    Raises BadInput where it is no repository or lacks a tag, Missing where it cannot be fetched.
    """
    repository = git_ref.opened(where, state=state)
    tags = (f"v{old}", f"v{new}")
    repository.tags(*tags)
    return History(repository=repository, old=f"refs/tags/{tags[0]}", new=f"refs/tags/{tags[1]}")


def explain(problem: Problem, pre: bytes | None, theirs: bytes | None, past: History | None = None) -> Change:
    """Return what upstream changed at a problem's lines; of a file that is gone or new, only the commits."""
    if pre is None or theirs is None:
        commits = past.commits(problem.path, frozenset(), frozenset())[0] if past else ()
        return Change(commits=commits)
    met = _met(lines.regions(pre, theirs), problem.lines)
    if not past:
        return Change(diff=_diff(lines.split(pre), met))
    removed, added = (
        frozenset(line.strip() for region in met for line in getattr(region, side)) - {b""}
        for side in ("removed", "added")
    )
    commits, exact = past.commits(problem.path, removed, added)
    return Change(diff=_diff(lines.split(pre), met), commits=commits, exact=exact)


def _met(regions: Sequence[Region], span: tuple[int, int] | None) -> list[Region]:
    """Return the changes of the hunks that a span of lines lies in; where it is in none, of the nearest one."""
    if not regions or span is None:
        return []
    hunks = {region.hunk for region in regions if _distance(region, span) <= _CONTEXT}
    hunks = hunks or {min(regions, key=lambda region: _distance(region, span)).hunk}
    return [region for region in regions if region.hunk in hunks]


def _distance(region: Region, span: tuple[int, int]) -> int:
    return max(0, region.first - span[1], span[0] - region.last)


def _diff(old: lines.Lines, regions: Sequence[Region]) -> str:
    """Return unified hunks, each cut where it gets long."""
    parts: list[str] = []
    for hunk in dict.fromkeys(region.hunk for region in regions):
        own = [region for region in regions if region.hunk == hunk]
        at = max(0, own[0].first - _CONTEXT)
        end = min(len(old), own[-1].last + _CONTEXT)
        head = f"@@ line {at + 1} of the edition's file, line {own[0].into - own[0].first + at + 1} of the release's @@"
        rows = []
        for region in own:
            rows += [f" {shown(line)}" for line in old[at : region.first]]
            rows += [f"-{shown(line)}" for line in region.removed]
            rows += [f"+{shown(line)}" for line in region.added]
            at = region.last
        rows += [f" {shown(line)}" for line in old[at:end]]
        more = [f"... {len(rows) - _MOST_LINES} more lines"] if len(rows) > _MOST_LINES else []
        parts += [head, *rows[:_MOST_LINES], *more]
    return "\n".join(parts)
