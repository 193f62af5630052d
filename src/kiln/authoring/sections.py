"""Splits somebody's diff, mail headers and all, into files of the installed package and what is left out, with why."""

from __future__ import annotations

import email.header
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln.authoring.places import NOWHERE, located, may_be_ours, names
from kiln.patching import diff
from kiln.patching import errors as patching_errors
from kiln.patching.paths import LARGEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.patching.diff import FileDiff

_HUNK = re.compile(rb"@@ -\d{1,9}(?:,(\d{1,9}))? \+\d{1,9}(?:,(\d{1,9}))? @@")
_EXTENDED = (
    *(b"index ", b"old mode ", b"new mode ", b"new file mode ", b"deleted file mode "),
    *(b"similarity index ", b"dissimilarity index ", b"rename from ", b"rename to ", b"copy from ", b"copy to "),
    *(b"Binary files ", b"GIT binary patch"),
)
_REFUSED = (
    (rb"\A\s*<", "an HTML or XML page, not a diff; of a pull request, save the address that ends in .diff"),
    (rb"\0", "not text; is it compressed, or UTF-16?"),
    (rb"^(@@@+ |diff --(cc|combined) )", "a combined diff of a merge; make one against a single parent"),
    (rb"^(diff --git |@@ -)[^\n]*\r$", "the file itself has CRLF line ends; save it as it is"),
    (rb"[^\n]\Z", "cut off: its last line does not end"),
)
_AFTER_HUNKS = (b"diff ", b"--- ", b"-- \n", b"--\n", b"@@ ")
_TITLE = 120


@dataclass(frozen=True, kw_only=True)
class Split:
    """`files` belong to the package, in order; `left_out` are (path, why); `lost` of these may belong to it too."""

    subject: str
    files: tuple[FileDiff, ...]
    left_out: tuple[tuple[str, str], ...]
    lost: tuple[str, ...]


def split(data: bytes, name: str) -> Split:
    """Return what a diff holds; raises BadInput that says why it is none, or names the line that is wrong."""
    _refuse(data, name)
    found: list[FileDiff] = []
    left_out: list[tuple[str, str]] = []
    lost: list[str] = []
    sections = tuple(_Scanner(data, name).sections())
    if not sections:
        raise errors.BadInput(f"{name}: holds no unified diff{_cause(data, name)}", hint="make it with git diff")
    for section in sections:
        path, why = section.place(name)
        why = why or section.no_text
        if why:
            left_out.append((path, why))
            lost += [path] * (section.changes and may_be_ours(path))
            continue
        if section.mode:
            left_out.append((path, f"only its mode {section.mode}; its text is taken"))
        found.append(section.parsed(path, name))
    return Split(subject=_subject(data), files=tuple(found), left_out=tuple(left_out), lost=tuple(lost))


@dataclass(frozen=True, kw_only=True)
class _Section:
    """One file as it stands in the diff: its header lines by their first words, its names, and its hunks."""

    header: dict[bytes, bytes]
    old: str
    new: str
    body: bytes

    def place(self, name: str) -> tuple[str, str]:
        """Return the path, and why it is no file of the package, or ""."""
        try:
            return located(self.old, self.new)
        except patching_errors.BadPath as error:
            raise errors.BadInput(f"{name}: {error.message}", hint=error.hint) from error

    @property
    def no_text(self) -> str:
        """Say why no edition can hold it, or ""."""
        for words, what in ((b"rename from ", "renamed from"), (b"copy from ", "copied from")):
            if words in self.header:
                return f"{what} {self.header[words].decode('utf-8', 'replace')}"
        if b"Binary files " in self.header or b"GIT binary patch" in self.header:
            return "binary"
        if self._modes & {"120000", "160000"}:
            return "a symlink" if "120000" in self._modes else "a submodule"
        return "" if self.changes else "mode only"

    @property
    def changes(self) -> bool:
        """Say whether it does anything to a file but its mode."""
        return bool(self.body) or bool(self.header.keys() - {b"index ", b"old mode ", b"new mode "})

    @property
    def mode(self) -> str:
        """The mode that it asks for beside its text, where it is not the plain one."""
        asked = self.header.get(b"new mode ", self.header.get(b"new file mode ", b"")).decode("ascii", "replace")
        return asked if asked != "100644" else ""

    @property
    def _modes(self) -> set[str]:
        words = b" ".join(value for key, value in self.header.items() if b"mode " in key or key == b"index ")
        return set(words.decode("ascii", "replace").split())

    def parsed(self, path: str, name: str) -> FileDiff:
        """Return the strictly parsed diff of the file under its own path."""
        plain = not self.header and self.body.startswith(b"@@ -0,0 ")
        created = b"new file mode " in self.header or self.old == NOWHERE or plain
        deleted = b"deleted file mode " in self.header or self.new == NOWHERE
        kind = "new file mode 100644\n" if created else "deleted file mode 100644\n" if deleted else ""
        sides = f"--- {NOWHERE if created else f'a/{path}'}\n+++ {NOWHERE if deleted else f'b/{path}'}\n"
        head = f"diff --git a/{path} b/{path}\n{kind}" + (sides if self.body else f"index {'0' * 7}..{'0' * 7}\n")
        try:
            return diff.parse(head.encode() + self.body, name)[0]
        except patching_errors.PatchingError as error:
            raise errors.BadInput(error.message, hint="get the diff again, whole and unedited") from error


class _Scanner:
    """Walks the lines of a diff; hunks are counted, so that what stands in them is never taken for a header."""

    def __init__(self, data: bytes, name: str) -> None:
        self._lines = io.BytesIO(data).readlines()
        self._name = name
        self._at = 0

    def sections(self) -> Iterator[_Section]:
        while self._at < len(self._lines):
            line = self._line()
            if line.startswith(b"diff --git "):
                yield self._section(line)
            elif self._is_plain():
                yield self._section(b"")
            elif _HUNK.match(line):
                raise self._wrong("a hunk without the name of its file")
            else:
                self._at += 1

    def _line(self, ahead: int = 0) -> bytes:
        where = self._at + ahead
        return self._lines[where] if where < len(self._lines) else b""

    def _is_plain(self) -> bool:
        return self._line().startswith(b"--- ") and self._line(1).startswith(b"+++ ")

    def _section(self, opening: bytes) -> _Section:
        header: dict[bytes, bytes] = {}
        if opening:
            self._at += 1
            while found := next((words for words in _EXTENDED if self._line().startswith(words)), b""):
                header[found] = self._line()[len(found) :].strip()
                self._at += 1
                if found == b"GIT binary patch":
                    self._skip_binary()
        old = new = b""
        if self._is_plain():
            old, new = self._line()[4:], self._line(1)[4:]
            self._at += 2
        body = b"".join(self._hunks())
        return _Section(header=header, body=body, **dict(zip(("old", "new"), names(opening, old, new), strict=True)))

    def _skip_binary(self) -> None:
        while self._at < len(self._lines) and not self._line().startswith((b"diff --git ", b"-- \n", b"From ")):
            self._at += 1

    def _hunks(self) -> Iterator[bytes]:
        some = False
        while match := _HUNK.match(self._line()):
            some = True
            yield self._line()
            self._at += 1
            left = [1 if count is None else int(count) for count in match.groups()]
            while any(left):
                yield self._counted(left)
            if self._line().startswith(b"\\ "):
                yield self._line()
                self._at += 1
        if some and self._line()[:1] in {b" ", b"+", b"-"} and not self._line().startswith(_AFTER_HUNKS):
            raise self._wrong("a hunk is longer than its header says")

    def _counted(self, left: list[int]) -> bytes:
        """Return the next line of a hunk of which `left` lines (old, new) are still to come."""
        line = self._line()
        kind = line[:1]
        if kind == b"\\":
            self._at += 1
            return line
        takes = {b" ": (1, 1), b"-": (1, 0), b"+": (0, 1)}.get(kind)
        if not line:
            raise self._wrong("the diff ends within a hunk; is it cut off?")
        if takes is None:
            lost = "a blank line in a hunk; has a context line lost its leading space?"
            raise self._wrong(lost if not line.strip() else "a hunk is shorter than its header says")
        for side in (0, 1):
            left[side] -= takes[side]
        if min(left) < 0:
            raise self._wrong("the counts of a hunk's header are not those of its lines")
        self._at += 1
        return line

    def _wrong(self, problem: str) -> errors.BadInput:
        shown = f": {self._line()[:80].rstrip()!a}" if self._line() else ""
        return errors.BadInput(
            f"{self._name}: line {self._at + 1}: {problem}{shown}", hint="get the diff again, whole and unedited"
        )


def _refuse(data: bytes, name: str) -> None:
    if len(data) > LARGEST:
        raise errors.BadInput(f"{name}: larger than {LARGEST} bytes; a patch is a small change")
    if not data.strip():
        raise errors.BadInput(f"{name}: empty")
    for form, cause in _REFUSED:
        if re.search(form, data, re.MULTILINE):
            raise errors.BadInput(f"{name}: {cause}")


def _cause(data: bytes, name: str) -> str:
    """Say what it is instead, where the strict parser knows."""
    try:
        diff.parse(data, name)
    except patching_errors.PatchingError as error:
        return f": {error.message.removeprefix(f'{name}: ')}"
    return ""


def _subject(data: bytes) -> str:
    """Return the first mail subject, without its [PATCH n/m]; "" where there is none."""
    head = data.partition(b"\ndiff --git ")[0].decode("utf-8", "replace")
    if not (match := re.search(r"^Subject: (.*(?:\n[ \t].*)*)", head, re.MULTILINE)):
        return ""
    parts = email.header.decode_header(re.sub(r"\n[ \t]+", " ", match[1]))
    text = "".join(part if isinstance(part, str) else _decoded(part, charset) for part, charset in parts)
    plain = "".join(c if c.isprintable() else " " for c in re.sub(r"^(\s*\[[^\]]*\])+", "", text))
    return " ".join(plain.split())[:_TITLE]


def _decoded(part: bytes, charset: str | None) -> str:
    try:
        return part.decode(charset or "utf-8", "replace")
    except LookupError:
        return part.decode("utf-8", "replace")
