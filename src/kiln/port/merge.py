"""Git's three-way merge of one file, blind to the machine's settings, and the conflicts that it leaves."""

from __future__ import annotations

import functools
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kiln import git

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
