"""Fits one edition to files: its own release's by hash, another's hunk by hunk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.drift.records import FileVerdict, Verdict
from kiln.patching import diff, hunks
from kiln.patching.outcomes import ABSENT, Outcome, digest, named

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from kiln.catalog import records

State = dict[str, bytes | None]

_RANK = {verdict: rank for rank, verdict in enumerate(Verdict)}
_OF_OUTCOME = {
    Outcome.OFFSET: Verdict.OFFSET,
    Outcome.AMBIGUOUS: Verdict.AMBIGUOUS,
    Outcome.CONFLICT: Verdict.CONFLICT,
}
_CANDIDATES = 5
_TELLING_BYTES = 16


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    return max(verdicts, key=_RANK.__getitem__, default=Verdict.CLEAN)


def recorded(data: bytes, edition: records.Edition, before: State) -> tuple[tuple[FileVerdict, ...], State]:
    """Apply an edition where it is made for; return a verdict for each file, and the files after it.

    CLEAN means: the file before and the file after have the recorded hashes.
    """
    diffs = {file.path: file for file in diff.parse(data, "the edition")}
    rows, after = [], {}
    for path, hashes in edition.files.items():
        fitted = hunks.fit(diffs[path], before[path]) if path in diffs else None
        after[path] = None if isinstance(fitted, hunks.Misfit) else fitted
        rows.append(_hashed(path, hashes, before[path], fitted))
    return tuple(rows), after


def _hashed(
    path: str, hashes: records.FileHashes, before: bytes | None, fitted: bytes | hunks.Misfit | None
) -> FileVerdict:
    if isinstance(fitted, hunks.Misfit):
        return _misfit(path, fitted)
    for name, wanted, found in (("before", hashes.pre, digest(before)), ("after", hashes.post, digest(fitted))):
        if wanted != found:
            hint = f"not the file {name} the patch that patch.yaml records"
            return FileVerdict(
                path=path, verdict=Verdict.CONFLICT, expected=named(wanted), found=named(found), hint=hint
            )
    return FileVerdict(path=path, verdict=Verdict.CLEAN, expected=named(hashes.post), found=named(hashes.post))


def carried(data: bytes, pre: State, theirs: State, names: Collection[str]) -> tuple[FileVerdict, ...]:
    """Return what an edition for the files `pre` would meet on the files `theirs`, hunk by hunk, nothing forgiven."""
    diffs = {file.path: file for file in diff.parse(data, "the edition")}
    return tuple(
        _gone(path, names)
        if theirs[path] is None and pre[path] is not None
        else _other(diffs[path], pre[path], theirs[path])
        for path in sorted(pre)
    )


def _gone(path: str, names: Collection[str]) -> FileVerdict:
    same = tuple(sorted(name for name in names if name.rpartition("/")[2] == path.rpartition("/")[2]))
    return FileVerdict(
        path=path,
        verdict=Verdict.MOVED if same else Verdict.CONFLICT,
        expected="the file",
        found=ABSENT,
        hint="files of this name elsewhere" if same else "the file is gone",
        candidates=same[:_CANDIDATES],
    )


def _other(file: diff.FileDiff, pre: bytes | None, theirs: bytes | None) -> FileVerdict:
    path = file.path
    if theirs == pre:
        return FileVerdict(path=path, verdict=Verdict.CLEAN, expected=named(digest(pre)), found=named(digest(theirs)))
    fitted = hunks.fit(file, theirs)
    if isinstance(fitted, hunks.Misfit):
        return _misfit(path, fitted)
    hint = "every hunk fits at its line, and the file changed elsewhere"
    return FileVerdict(
        path=path, verdict=Verdict.OFFSET, expected=named(digest(pre)), found=named(digest(theirs)), hint=hint
    )


def _misfit(path: str, misfit: hunks.Misfit) -> FileVerdict:
    return FileVerdict(
        path=path,
        verdict=_OF_OUTCOME[misfit.outcome],
        hunk=misfit.hunk,
        expected=misfit.expected,
        found=misfit.found,
        hint=misfit.hint,
    )


def old_lines_are_back(rows: Iterable[FileVerdict]) -> bool:
    """Say whether every hunk of an edition finds what it replaces: then nobody has made its change."""
    return all(row.verdict in {Verdict.CLEAN, Verdict.OFFSET} for row in rows)


def already(pre: State, post: State, theirs: State) -> tuple[int, int]:
    """Return how many of the lines that an edition adds are in a release's files, and how many it adds.

    Lines that the edition's own release has somewhere in the file, and those of a word or two, tell nothing.
    """
    found = total = 0
    for path, after in post.items():
        added = _telling(after) - _telling(pre[path])
        total += len(added)
        found += len(added & _telling(theirs[path]))
    return found, total


def _telling(data: bytes | None) -> set[bytes]:
    return {text for line in (data or b"").splitlines() if len(text := line.strip()) >= _TELLING_BYTES}
