"""Runs the probes that read nothing but source text on sources that no catalog release stands for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, files, git, process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.catalog import Catalog, records
    from kiln.drift.judge import Subject

    Probe = Callable[[records.Patch, Subject], bool | None]

_TIMEOUT_S = 60
# a probe may run what it has cut out of a new release: never beside a token, which any child could read
_TOKENS = ("GH_TOKEN", "GITHUB_TOKEN")
_GREEN, _RED = 0, 1


@contextlib.contextmanager
def prober(catalog: Catalog) -> Iterator[Probe]:
    """Yield a function that says whether a patch's probe is green on a subject as it is.

    None where it has none that source text is enough for, or it did not run. Raises what reading the subject raises.
    """
    with contextlib.ExitStack() as stack:
        trees: dict[str, Path] = {}

        def tree(subject: Subject) -> Path:
            name = subject.column.name
            if name not in trees:
                held = {path: data for path, data in subject.find().items() if _contained(path)}
                trees[name] = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kiln-drift-")))
                git.write(trees[name], held)
            return trees[name]

        def probe(patch: records.Patch, subject: Subject) -> bool | None:
            if not patch.probe or patch.probe.needs != "source":
                return None
            script = catalog.root / "patches" / patch.id / "probe.py"
            if not script.is_file():
                return None
            about = f"{hashlib.sha256(script.read_bytes()).hexdigest()} {subject.column.identity}"
            kept = catalog.state / "drift" / f"probe-{hashlib.sha256(about.encode()).hexdigest()}"
            with contextlib.suppress(OSError, ValueError):
                return {"green": True, "red": False}[files.read_summed(kept)]
            if any(name in os.environ for name in _TOKENS):
                return None
            green = _green(script, tree(subject))
            if green is not None:
                files.write_summed(kept, "green" if green else "red")
            return green

        yield probe


def _green(probe: Path, tree: Path) -> bool | None:
    if not any(tree.iterdir()):
        return None
    env = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TMPDIR") if name in os.environ}
    try:
        done = process.run((sys.executable, "-I", "-B", str(probe), str(tree)), env=env, timeout_s=_TIMEOUT_S)
    except errors.CommandFailed:
        return None
    if done.code == _GREEN and "green: " in done.stdout:
        return True
    return False if done.code == _RED and "red: " in done.stdout else None


def _contained(path: str) -> bool:
    return not path.startswith("/") and ".." not in path.split("/") and "\\" not in path
