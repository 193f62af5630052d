"""Reads one edition: unidiff parses it, and everything that it lets pass and we do not is refused here."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unidiff.errors import UnidiffParseError
from unidiff.patch import PatchSet

from kiln.patching import errors, paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from unidiff.patch import Hunk as RawHunk
    from unidiff.patch import PatchedFile

MOST_LINES = 100_000

# One letter a header line; the letters of a whole edition must spell _GRAMMAR.
_HEADERS = (
    ("G", re.compile(r"diff --git a/[^\t]{1,4000}")),
    ("I", re.compile(r"index [0-9a-f]{7,64}\.\.[0-9a-f]{7,64}( 100(644|755))?")),
    ("N", re.compile(r"new file mode 100644")),
    ("D", re.compile(r"deleted file mode 100(644|755)")),
    ("H", re.compile(r"@@ -\d{1,9}(,\d{1,9})? \+\d{1,9}(,\d{1,9})? @@( .*)?", re.DOTALL)),
    ("E", re.compile(r"\\ No newline at end of file")),
    ("S", re.compile(r"--- .*", re.DOTALL)),
    ("T", re.compile(r"\+\+\+ .*", re.DOTALL)),
)
_GRAMMAR = re.compile(r"(?:(?:G[ND]?I?)?ST(?:HE?)+|G[ND]I)+")
_CAUSES = (
    (r"[^\n]*\r$", "the patch file itself has CRLF line ends"),
    (r"$", "a blank line; has a context line lost its leading space?"),
    (r"(rename|copy|similarity|dissimilarity) ", "renames and copies are not accepted"),
    (r"(old|new|deleted file|new file) mode |index .* 1\d{5}$", "file modes and links are not accepted"),
    (r"GIT binary patch|Binary files? ", "binary changes are not accepted"),
    (r"\s*<", "this is HTML or XML, not a patch"),
    (r"\*\*\* |\*{15}", "a context diff; only the unified format is accepted"),
    (r"\d+(,\d+)?[acd]\d*", "an ed script or normal diff; only the unified format is accepted"),
    (r"@@", "a malformed hunk header"),
    (r"diff --git ", "a malformed file header; both names start with a/ and b/ and are unquoted"),
)


@dataclass(frozen=True)
class Hunk:
    """`source` becomes `target` at 0-based line `index` of the file as it was; lines keep their line ends."""

    number: int
    index: int
    source: tuple[bytes, ...]
    target: tuple[bytes, ...]


@dataclass(frozen=True)
class FileDiff:
    path: str
    created: bool
    deleted: bool
    hunks: tuple[Hunk, ...]

    def back(self) -> FileDiff:
        """Return the diff that takes this one back."""
        hunks: list[Hunk] = []
        shift = 0
        for hunk in self.hunks:
            hunks.append(Hunk(hunk.number, hunk.index + shift, hunk.target, hunk.source))
            shift += len(hunk.target) - len(hunk.source)
        return FileDiff(self.path, created=self.deleted, deleted=self.created, hunks=tuple(hunks))


def parse(data: bytes, name: str) -> tuple[FileDiff, ...]:
    """Return the files of an edition in its order; `name` opens the message of the BadDiff it may raise."""
    lines = _lines(data, name)
    try:
        parsed = PatchSet(lines)
    except UnidiffParseError as error:
        raise errors.BadDiff(f"{name}: {str(error).strip()[:200]}") from error
    headers = _headers(parsed, lines, name)
    sections = _sections(headers, name)
    files = tuple(_file(section, found, name) for section, found in zip(sections, parsed, strict=True))
    seen: set[str] = set()
    for file in files:
        if file.path in seen:
            raise errors.BadDiff(f"{name}: names the same file twice: {file.path}")
        seen.add(file.path)
    paths.refuse_collisions(file.path for file in files)
    return files


def _lines(data: bytes, name: str) -> list[str]:
    """Return the lines as latin-1, which maps every byte to itself; refuse what opens like no diff line."""
    if len(data) > paths.LARGEST:
        raise errors.BadDiff(f"{name}: {len(data)} bytes; the limit is {paths.LARGEST}")
    if not data.strip():
        raise errors.BadDiff(f"{name}: empty")
    count = data.count(b"\n")
    if count > MOST_LINES:
        raise errors.BadDiff(f"{name}: {count} lines; the limit is {MOST_LINES}")
    lines = [line.decode("latin-1") for line in io.BytesIO(data)]
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n")
        if text[:1] not in {" ", "+", "-"} and not _letter(text):
            cause = next((cause for form, cause in _CAUSES if re.match(form, text)), "not a line of a unified diff")
            raise errors.BadDiff(f"{name}: line {number}: {cause}: {text[:80]!a}", hint=_EXPORT)
    if not data.endswith(b"\n"):
        raise errors.BadDiff(f"{name}: cut off: its last line does not end", hint=_EXPORT)
    return lines


def _headers(parsed: PatchSet, lines: Sequence[str], name: str) -> list[tuple[str, int, str]]:
    """Return (letter, line number, text) of every line that is no hunk line."""
    body = {line.diff_line_no for file in parsed for hunk in file for line in hunk}
    headers = []
    for number, line in enumerate(lines, 1):
        if number not in body:
            letter = _letter(line[:-1])
            if not letter:
                problem = "a hunk is longer than its header says, or this is no diff line"
                raise errors.BadDiff(f"{name}: line {number}: {problem}: {line[:80]!a}")
            headers.append((letter, number, line[:-1]))
    return headers


def _letter(text: str) -> str:
    return next((letter for letter, form in _HEADERS if form.fullmatch(text)), "")


def _sections(headers: Sequence[tuple[str, int, str]], name: str) -> list[dict[str, str]]:
    """Return the text of the header lines by letter, one dict a file."""
    match = _GRAMMAR.match("".join(letter for letter, _, _ in headers))
    end = match.end() if match else 0
    if end < len(headers):
        _, number, text = headers[end]
        raise errors.BadDiff(f"{name}: line {number}: out of place: {text[:80]!a}", hint=_EXPORT)
    sections: list[dict[str, str]] = []
    before = "H"
    for letter, _, text in headers:
        if letter == "G" or (letter == "S" and before in "HE"):
            sections.append({})
        sections[-1].setdefault(letter, text)
        before = letter
    return sections


def _file(section: dict[str, str], found: PatchedFile, name: str) -> FileDiff:
    path, created, deleted = _names(section, name)
    where = f"{name}: {path}"
    hunks: list[Hunk] = []
    shift = 0
    for number, raw in enumerate(found, 1):
        hunk = _hunk(number, raw, where)
        end = hunks[-1].index + len(hunks[-1].source) if hunks else 0
        start = raw.target_start - (1 if raw.target_length else 0)
        if hunk.index < end or start != hunk.index + shift:
            raise errors.BadDiff(f"{where}: hunk {number}: its line numbers do not follow from the hunks before")
        if hunks and not _ends_with_newline(hunks[-1]):
            raise errors.BadDiff(f"{where}: hunk {number} follows the end of the file")
        shift += len(hunk.target) - len(hunk.source)
        hunks.append(hunk)
    _check_kind(hunks, where, created=created, deleted=deleted)
    if not (created or deleted) and any(not any(line.is_context for line in hunk) for hunk in found):
        raise errors.BadDiff(f"{where}: a hunk without context would fit anywhere", hint=_EXPORT)
    return FileDiff(path=path, created=created, deleted=deleted, hunks=tuple(hunks))


def _check_kind(hunks: Sequence[Hunk], where: str, *, created: bool, deleted: bool) -> None:
    if created and any(hunk.source for hunk in hunks):
        raise errors.BadDiff(f"{where}: creates the file, yet expects lines in it")
    if deleted and any(hunk.target for hunk in hunks):
        raise errors.BadDiff(f"{where}: deletes the file, yet leaves lines in it")
    if (created or deleted) and (len(hunks) > 1 or any(hunk.index for hunk in hunks)):
        raise errors.BadDiff(f"{where}: a created or deleted file has one hunk, at its start")


def _names(section: dict[str, str], name: str) -> tuple[str, bool, bool]:
    """Return the path, whether the file is created, and whether it is deleted."""
    git = section.get("G", "")
    old, new = _git_names(git, name) if git else ("", "")
    created, deleted = "N" in section, "D" in section
    if "S" in section:
        old, new = (section[side][4:].partition("\t")[0] for side in "ST")
        if git and (created, deleted) != (old == _NOWHERE, new == _NOWHERE):
            raise errors.BadDiff(f"{name}: {git!r}: its mode line and its names disagree")
        created, deleted = old == _NOWHERE, new == _NOWHERE
    stated = {_stripped(old, "a/", name), _stripped(new, "b/", name)} - {_NOWHERE}
    if git:
        stated.add(_git_names(git, name)[0][2:])
    if len(stated) != 1:
        raise errors.BadDiff(f"{name}: the names of one file differ: {old!a}, {new!a}, {git!a}")
    return paths.target(_decoded(stated.pop(), name)), created, deleted


def _git_names(line: str, name: str) -> tuple[str, str]:
    """Split "diff --git a/X b/X"; X may hold spaces, so only two equal halves are unambiguous."""
    rest = line[len("diff --git ") :]
    middle = len(rest) // 2
    old, new = rest[:middle], rest[middle + 1 :]
    if rest[middle] != " " or old[2:] != new[2:] or not new.startswith("b/"):
        raise errors.BadDiff(f"{name}: {line[:200]!a}: names two files; renames are not accepted")
    return old, new


def _stripped(side: str, prefix: str, name: str) -> str:
    if side == _NOWHERE:
        return side
    if not side.startswith(prefix):
        raise errors.BadDiff(
            f"{name}: {side[:200]!a}: a name here starts with {prefix} and is not quoted",
            hint="export with: git -c core.quotePath=false diff --src-prefix=a/ --dst-prefix=b/",
        )
    return side[len(prefix) :]


def _decoded(path: str, name: str) -> str:
    try:
        return path.encode("latin-1").decode()
    except UnicodeDecodeError as error:
        raise errors.BadPath(f"{name}: {path[:200]!a}: not UTF-8") from error


def _hunk(number: int, raw: RawHunk, where: str) -> Hunk:
    source: list[bytes] = []
    target: list[bytes] = []
    for kind, line in _unmarked(raw, f"{where}: hunk {number}"):
        if kind != "+":
            source.append(line)
        if kind != "-":
            target.append(line)
        if kind == "+" and line.startswith(_MARKERS):
            raise errors.BadDiff(f"{where}: hunk {number}: adds a conflict marker: {line[:80]!r}")
    if source == target:
        raise errors.BadDiff(f"{where}: hunk {number}: changes nothing")
    if any(not line.endswith(b"\n") for line in source[:-1] + target[:-1]):
        raise errors.BadDiff(f"{where}: hunk {number}: more lines follow the end of the file")
    index = raw.source_start - (1 if raw.source_length else 0)
    if index < 0 or (raw.target_length and not raw.target_start):
        raise errors.BadDiff(f"{where}: hunk {number}: there is no line 0")
    return Hunk(number=number, index=index, source=tuple(source), target=tuple(target))


def _unmarked(raw: RawHunk, where: str) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, line), each end-of-file marker taken into the line before it."""
    held: tuple[str, bytes] | None = None
    for line in raw:
        if line.line_type == "\\":
            if held is None or not held[1].endswith(b"\n"):
                raise errors.BadDiff(f"{where}: a stray end-of-file marker")
            held = (held[0], held[1][:-1])
            continue
        if held is not None:
            yield held
        held = (line.line_type, line.value.encode("latin-1"))
    if held is not None:
        yield held


def _ends_with_newline(hunk: Hunk) -> bool:
    return all(side[-1].endswith(b"\n") for side in (hunk.source, hunk.target) if side)


_NOWHERE = "/dev/null"
_MARKERS = (b"<<<<<<< ", b">>>>>>> ")
_EXPORT = "export it again with: git diff --no-renames --no-ext-diff, at least 3 lines of context"
