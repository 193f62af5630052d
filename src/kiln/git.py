"""The git verbs that Kiln runs on bytes of its own, blind to the machine's settings and to repositories around."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_TIMEOUT_S = 60
_SETTINGS = (
    "core.autocrlf=false",
    "core.safecrlf=false",
    "core.quotePath=true",
    f"core.attributesFile={os.devnull}",
    f"core.hooksPath={os.devnull}",
    "apply.whitespace=nowarn",
)
_DIFF = (
    "diff",
    "--full-index",
    "--src-prefix=a/",
    "--dst-prefix=b/",
    "--unified=3",
    "--inter-hunk-context=0",
    "--diff-algorithm=myers",
    "--indent-heuristic",
    "--no-renames",
    "--no-color",
    "--no-ext-diff",
    "--no-textconv",
)


def apply(tree: Path, editions: Sequence[Path]) -> process.Result:
    """Apply unified diffs, one after the other, to the files under `tree`, which is in no repository."""
    return _git(tree, "apply", "-p1", "--whitespace=nowarn", *map(str, editions))


def diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bytes:
    """Return the canonical diff between two sets of files: full index, a/ and b/, three lines of context."""
    with tempfile.TemporaryDirectory(prefix="kiln-") as name:
        tree = Path(name).resolve() / "tree"
        out = tree.with_name("out.patch")
        write(tree, before)
        _ask(tree, "init", "--quiet", "--template=", "--object-format=sha1")
        _ask(tree, "add", "--force", "--all", ".")
        for path in before.keys() - after.keys():
            (tree / path).unlink()
        write(tree, after)
        if created := sorted(after.keys() - before.keys()):
            _ask(tree, "add", "--force", "--intent-to-add", "--", *created)
        _ask(tree, *_DIFF, f"--output={out}")
        return out.read_bytes()


def write(tree: Path, files: Mapping[str, bytes]) -> None:
    """Write files under `tree`, with their folders."""
    tree.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)


def _ask(tree: Path, *words: str) -> None:
    if (done := _git(tree, *words)).code:
        raise process.failed(("git", *words), done.code, done.stderr)


def _git(tree: Path, *words: str) -> process.Result:
    argv = ("git", *(word for setting in _SETTINGS for word in ("-c", setting)), *words)
    try:
        return process.run(argv, env=_environment(tree), cwd=tree, timeout_s=_TIMEOUT_S)
    except errors.Missing as error:
        raise errors.Missing(error.message, hint="install git: apt-get install git") from error


def _environment(tree: Path) -> dict[str, str]:
    """Return an environment in which no configuration file is read and no repository above `tree` is found."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return kept | {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent),
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
