"""Git's three-way merge of one file, blind to the machine's settings, and the conflicts that it leaves."""

from __future__ import annotations

import functools
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kiln import git
from kiln.patching.outcomes import shown
from kiln.port import lines

BY_HAND = "the release changed these lines, too; make the change by hand"
_FAILED = 128  # below it, the exit code counts conflicts


@dataclass(frozen=True, kw_only=True)
class Labels:
    """What the sides of a conflict are called."""

    edition: str = "the edition's release"
    release: str = "this release"

    @property
    def sides(self) -> tuple[str, str, str]:
        return self.release, f"{self.edition}, before the patch", f"{self.edition}, with the patch"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The text, with markers where `conflicts` is not 0; `problem` says why git would not merge at all."""

    data: bytes
    conflicts: int = 0
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class Clash:
    """The lines of one conflict; it is near `line` of the release's file, counted from 1."""

    line: int
    theirs: tuple[bytes, ...]
    base: tuple[bytes, ...]
    post: tuple[bytes, ...]


@functools.lru_cache(maxsize=256)  # neighbouring releases often hold the same file
def three_way(pre: bytes, post: bytes, theirs: bytes, labels: Labels) -> Merged:
    """Return `theirs` with what `post` changes in `pre`; raises Missing where there is no git."""
    with tempfile.TemporaryDirectory(prefix="kiln-") as name:
        for file, data in (("theirs", theirs), ("pre", pre), ("post", post)):
            Path(name, file).write_bytes(data)
        titles = [word for side in labels.sides for word in ("-L", side)]
        words = ("merge-file", "--stdout", "--diff3", *titles, "theirs", "pre", "post")
        code, merged, problem = git.execute(Path(name), *words)
    if not 0 <= code < _FAILED or (code and b"<<<<<<<" not in merged):
        return Merged(data=theirs, conflicts=1, problem=problem or f"git merge-file: exit code {code}")
    return Merged(data=merged, conflicts=code)


def clashes(merged: Merged, labels: Labels) -> tuple[Clash, ...]:
    """Return the conflicts of a merged text, in order."""
    release, before, after = (f"{mark * 7} {side}".encode() for mark, side in zip("<|>", labels.sides, strict=True))
    found: list[Clash] = []
    side, line = "", 0  # line: of the merged text without what is not the release's in conflicts
    kept: dict[str, list[bytes]] = {}
    for text in io.BytesIO(merged.data):
        bare = text.rstrip(b"\r\n")
        if not side and bare == release:
            side, kept = "theirs", {"theirs": [], "base": [], "post": []}
        elif side == "theirs" and bare == before:
            side = "base"
        elif side == "base" and bare == b"=======":
            side = "post"
        elif side == "post" and bare == after:
            found.append(Clash(line=line + 1, **{name: tuple(texts) for name, texts in kept.items()}))
            side, line = "", line + len(kept["theirs"])
        elif side:
            kept[side].append(text)
        else:
            line += 1
    return tuple(found)


def located(pre: bytes, theirs: bytes, clash: Clash) -> tuple[tuple[int, int], int]:
    """Return the lines of a conflict in the file before the patch, and the first one in the release's file."""
    at = _nearest(lines.split(theirs), clash.theirs, clash.line - 1)
    near = at
    for region in lines.regions(pre, theirs):
        if region.into < at:
            near = max(region.last, at - region.into - len(region.added) + region.last)
    first = _nearest(lines.split(pre), clash.base, near)
    return (first, first + len(clash.base)), at


def _nearest(text: lines.Lines, part: lines.Lines, near: int) -> int:
    """Return where a part of a text stands, of several places the nearest one."""
    places = [n for n in range(len(text) - len(part) + 1) if text[n : n + len(part)] == part]
    return min(places, key=lambda n: abs(n - near), default=near)


def difference(clash: Clash, at: tuple[int, int]) -> tuple[str, str, str]:
    """Return the first line that the release changed, as expected and as found, and what to do.

    `at` is the number of the first line on either side.
    """
    pairs = list(zip(clash.base, clash.theirs, strict=False))
    n = next((n for n, (base, theirs) in enumerate(pairs) if base != theirs), len(pairs))
    base = clash.base[n] if n < len(clash.base) else b""
    theirs = clash.theirs[n] if n < len(clash.theirs) else b""
    expected = f"line {at[0] + n}: {shown(base)}" if base else "nothing new at this place"
    found = f"line {at[1] + n}: {shown(theirs) if theirs else 'the lines are gone'}"
    if base and theirs and base.rstrip(b"\r\n") == theirs.rstrip(b"\r\n"):
        return expected, found, "EOL_MISMATCH: the texts are equal, their line ends are not"
    return expected, found, BY_HAND
