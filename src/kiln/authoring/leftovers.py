"""Finds in a worktree what no edition can hold: files that an editor, a system or a merge left, and other places."""

from __future__ import annotations

import io
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from kiln.patching import errors, paths

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# git's markers, longer ones (conflict-marker-size), and those of an indented or shortened copy
_MARKER = re.compile(rb"[ \t]*(<{7,}|>{7,}|\|{7,})|={7}\s*$")
_ENDINGS = (*paths.DROPPINGS, ".bak", ".swp", ".swo")
_NAMES = re.compile(r"#.*#|4913|Thumbs\.db")  # emacs; vim, which tries whether it may write; a file manager


def problems(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what keeps files from being an edition, each with its place; what was there before may stay."""
    yield from dict.fromkeys(filter(None, (_name(path, known=path in before) for path in sorted({*before, *after}))))
    for path, data in after.items():
        known = frozenset(io.BytesIO(before.get(path, b"")))
        for number, line in enumerate(io.BytesIO(data), 1):
            if _MARKER.match(line) and line not in known:
                yield f"{path}:{number}: a conflict marker: {line.strip().decode('utf-8', 'replace')[:80]}"


def _name(path: str, *, known: bool) -> str:
    """Return what is wrong with a changed file by its path, "" for nothing."""
    try:
        paths.target(path)
    except errors.BadPath as error:
        return error.message
    parts = PurePosixPath(path).parts
    if parts[0] != "vllm" or len(parts) == 1:
        return f"{path}: outside of vllm/; an edition changes files of the installed package only"
    hidden = next((n for n, part in enumerate(parts, 1) if part.startswith(".")), 0)
    if hidden and not known:
        return f"{'/'.join(parts[:hidden])}: a hidden file or folder, which is no part of the package; remove it"
    if not known and (path.endswith(_ENDINGS) or _NAMES.fullmatch(parts[-1])):
        return f"{path}: left by an editor or a merge; remove it"
    return ""
