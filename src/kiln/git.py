"""The one door to git: blind to the machine's settings, to hooks, and to repositories around."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from git import Git

_TIMEOUT_S = 60
_POLITE_S = 5
_PROTOCOLS = "https:ssh:file"
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
    code, out, problem = execute(tree, "apply", "-p1", "--whitespace=nowarn", *map(str, editions))
    return process.Result(code=code, stdout=out.decode("utf-8", "replace"), stderr=problem)


def diff(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bytes:
    """Return the canonical diff between two sets of files: full index, a/ and b/, three lines of context."""
    with tempfile.TemporaryDirectory(prefix="kiln-") as name:
        tree = Path(name).resolve() / "tree"
        out = tree.with_name("out.patch")
        write(tree, before)
        ask(tree, "init", "--quiet", "--template=", "--object-format=sha1")
        ask(tree, "add", "--force", "--all", ".")
        for path in before.keys() - after.keys():
            (tree / path).unlink()
        write(tree, after)
        if created := sorted(after.keys() - before.keys()):
            ask(tree, "add", "--force", "--intent-to-add", "--", *created)
        ask(tree, *_DIFF, f"--output={out}")
        return out.read_bytes()


def execute(
    folder: Path, *words: str, stdin: Path | None = None, seconds: int = _TIMEOUT_S, protocols: str = _PROTOCOLS
) -> tuple[int, bytes, str]:
    """Return exit code, stdout and stderr of a git command in a folder; raises Missing where there is no git.

    protocols: what git may fetch by, "" for nothing at all.
    """
    if not shutil.which("git"):  # importing GitPython would fail, too, with an error of its own
        raise errors.Missing("git: no such program on this machine", hint="install git: apt-get install git")
    from git import Git

    # GitPython hands the environment on: what points git at another repository or setting has to go
    foreign = [word for name in os.environ if name.startswith("GIT_") for word in ("-u", name)]
    scrubbed = _scrubbed(folder) | {"GIT_ALLOW_PROTOCOL": protocols}
    given = [f"{name}={value}" for name, value in scrubbed.items()]
    settings = [word for setting in _SETTINGS for word in ("-c", setting)]
    with contextlib.ExitStack() as stack:
        made = Git(str(folder)).execute(
            ["env", *foreign, *given, "git", *settings, *words],
            istream=stack.enter_context(stdin.open("rb")) if stdin else None,
            as_process=True,
            start_new_session=True,  # git starts programs of its own, and all of them have to end with it
        )
        code, out, problem = _ended(made, seconds)
    late = f"no answer within {seconds} s\n" if code == -signal.SIGKILL else ""
    return code, out, late + problem.decode("utf-8", "replace")


def ask(folder: Path, *words: str, stdin: Path | None = None, seconds: int = _TIMEOUT_S) -> bytes:
    """Return what git says in a folder; raises Missing where there is no git, CommandFailed where it refuses."""
    code, out, problem = execute(folder, *words, stdin=stdin, seconds=seconds)
    if code:
        raise process.failed(("git", *words), code, problem)
    return out


def write(tree: Path, files: Mapping[str, bytes]) -> None:
    """Write files under `tree`, with their folders."""
    tree.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)


def _ended(child: Git.AutoInterrupt, seconds: float) -> tuple[int, bytes, bytes]:
    """Return how a program ended, once it and all that it started are gone: out of time, too, or interrupted."""
    late = threading.Timer(seconds, _end, (child, signal.SIGKILL))
    late.daemon = True
    late.start()
    try:
        out, problem = child.communicate()
        return int(child.returncode), bytes(out), bytes(problem)
    except BaseException:
        _end(child, signal.SIGTERM)  # git takes its lock files away
        late.cancel()
        late = threading.Timer(_POLITE_S, _end, (child, signal.SIGKILL))
        late.start()
        child.communicate()  # until everything that writes there is gone
        raise
    finally:
        late.cancel()


def _end(child: Git.AutoInterrupt, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _scrubbed(tree: Path) -> dict[str, str]:
    return {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CEILING_DIRECTORIES": str(tree.resolve().parent),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_ALLOW_PROTOCOL": _PROTOCOLS,
        "LC_ALL": "C",
    }
