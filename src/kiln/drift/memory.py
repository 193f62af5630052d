"""Remembers how an edition's change merged into a release, by the content of everything that went in."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import files

if TYPE_CHECKING:
    from kiln.drift.fit import State
    from kiln.drift.judge import Images, Subject


_MERGES = ("port", "git.py", "drift/memory.py", "patching/outcomes.py")


@dataclass(frozen=True, kw_only=True)
class Merge:
    """What drift needs of a merge: its files `before` and `after`, where these lie now; none where it is not clean."""

    merged: bool
    clean: bool
    before: State
    after: State


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Merges that were done before, a file each in `folder`; what cannot be read there is done again."""

    folder: Path

    def attempt(self, images: Images, theirs: State, subject: Subject, *, thorough: bool) -> Merge:
        """Return how the change of an edition merges into the files `theirs` of a subject.

        thorough: moved files are followed, which takes all Python files of both releases.
        """
        inputs = [images.pre, images.post, theirs]
        sums = [[(path, data and hashlib.sha256(data).hexdigest()) for path, data in sorted(s.items())] for s in inputs]
        about = [code(_MERGES), sums, [images.identity, subject.column.identity] if thorough else []]
        kept = self.folder / f"merge-{hashlib.sha256(json.dumps(about).encode()).hexdigest()}.json"
        try:
            return _read(files.read_summed(kept))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            merge = _done(images, theirs, subject, thorough=thorough)
            files.write_summed(kept, _text(merge))
            return merge


def _done(images: Images, theirs: State, subject: Subject, *, thorough: bool) -> Merge:
    from kiln.port import attempt

    between = attempt.Between(
        edition=images.release, release=subject.column.name, before=images.find if thorough else None
    )
    find = subject.find if thorough else dict
    made = attempt.attempt(images.pre, images.post, theirs, find, between=between)
    after = dict(made.files) if made.clean and not made.merged else {}
    before = {path: theirs[path] if path in theirs else find().get(path) for path in after}
    return Merge(merged=made.merged, clean=made.clean, before=before, after=after)


@functools.cache
def code(names: tuple[str, ...]) -> str:
    """Return one hash of parts of this package, files or folders: what older code did is not believed."""
    home = Path(__file__).parents[1]
    total = hashlib.sha256()
    for name in names:
        for path in sorted((home / name).glob("*.py")) or [home / name]:
            total.update(path.read_bytes())
    return total.hexdigest()


def _text(merge: Merge) -> str:
    return json.dumps(
        {"merged": merge.merged, "clean": merge.clean, "before": _encoded(merge.before), "after": _encoded(merge.after)}
    )


def _encoded(state: State) -> dict[str, str | None]:
    return {path: None if data is None else base64.b64encode(data).decode() for path, data in state.items()}


def _read(text: str) -> Merge:
    given = json.loads(text)
    before, after = (
        {path: None if text is None else base64.b64decode(text, validate=True) for path, text in given[side].items()}
        for side in ("before", "after")
    )
    return Merge(merged=bool(given["merged"]), clean=bool(given["clean"]), before=before, after=after)
