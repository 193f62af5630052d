"""Applies a series a second time, with git, and compares the bytes: a disagreement is an error, not a choice."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, git
from kiln.patching.outcomes import digest, named

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kiln.patching.plan import Write
    from kiln.patching.series import Series

_HINT = "nothing was built; make the edition again from its files: ./inv lint names the line"


def compare(series: Series, before: Mapping[str, bytes], writes: Iterable[Write]) -> None:
    """Raise NotApplied where `git apply` of the series on `before` does not give what `writes` says."""
    ours: dict[str, bytes | None] = {**before, **{write.path: write.data for write in writes}}
    with tempfile.TemporaryDirectory(prefix="kiln-") as name:
        folder = Path(name).resolve()
        tree = folder / "tree"
        git.write(tree, before)
        editions = [folder / f"{n:04}-{patch.edition}" for n, patch in enumerate(series.patches)]
        for path, patch in zip(editions, series.patches, strict=True):
            path.write_bytes(patch.data)
        said = git.apply(tree, editions)
        if said.code:
            text = said.stderr.replace(f"{folder}/", "").strip()
            raise errors.NotApplied(f"the series applies, but git apply refuses it:\n{text}", hint=_HINT)
        found = (path for path in tree.rglob("*") if path.is_file())
        theirs = {path.relative_to(tree).as_posix(): path.read_bytes() for path in found}
    pairs = {path: (ours.get(path), theirs.get(path)) for path in sorted({*ours, *theirs})}
    wrong = {path: (named(digest(own)), named(digest(other))) for path, (own, other) in pairs.items() if own != other}
    if wrong:
        lines = (f"  {path}: ours {own}, git's {other}" for path, (own, other) in wrong.items())
        raise errors.NotApplied("\n".join(["git apply gives other bytes than Kiln:", *lines]), hint=_HINT)
