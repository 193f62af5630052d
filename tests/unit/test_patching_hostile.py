"""Hostile input: every reader answers in bounded time and memory, and with nothing but PatchingError."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from patching_support import FILES, diff_of, snapshot, three, wheel

from kiln import process
from kiln.patching import diff, engine, errors, hunks, journal, ledger, series, undo
from kiln.patching.outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

MB = 1_000_000
MOST_SECONDS, MOST_KILOBYTES = 2.0, 200_000
HEAD = b"--- a/vllm/a.py\n+++ b/vllm/a.py\n"
GIT = b"diff --git a/vllm/a.py b/vllm/a.py\n"
# measures itself; its limits end it when it runs away
CHILD = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
sys.path[:0] = sys.argv[2:]
from kiln.patching import errors, series
try:
    made = series.read_series(__import__("pathlib").Path(sys.argv[1]))
    for patch in made.patches:
        patch.diffs()
except errors.BadInput as error:
    print(error.message[:300])
used = resource.getrusage(resource.RUSAGE_SELF)
# not ru_maxrss: that begins with what the process that started this one had
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(used.ru_utime + used.ru_stime, peak.split()[1])
"""
PATHS = (str(Path(diff.__file__).parents[2]), str(Path(sys.modules["unidiff"].__path__[0]).parent))


def index(data: bytes) -> bytes:
    """Return a series.json for one edition."""
    change = {"path": "vllm/a.py", "pre": "0" * 64, "post": "1" * 64}
    row = {"id": "x", "edition": "x.patch", "sha256": "2" * 64, "files": [change]}
    value = {"schema": 1, "distribution": "vllm", "release": "0.31.0", "patches": [row]}
    return data or json.dumps(value).encode()


HOSTILE: dict[str, tuple[bytes, Callable[[], bytes], str]] = {
    "garbage": (b"", lambda: os.urandom(MB) * 50, "limit"),
    "plus lines": (b"", lambda: HEAD + b"+\n" * 25 * MB, "limit"),
    "short plus lines": (b"", lambda: HEAD + b"+\n" * 3 * MB, "lines; the limit"),
    "millions of hunks": (b"", lambda: HEAD + b"@@ -1 +1 @@\n-a\n+b\n" * 3 * MB, "limit"),
    "all hunks there may be": (b"", lambda: HEAD + b"@@ -1 +1 @@\n-a\n+b\n" * 33_000, "line numbers"),
    "all files there may be": (b"", lambda: b"--- a/x\n+++ b/x\n@@ -1,2 +1 @@\n-a\n b\n" * 19_000, "twice"),
    "one hunk of all lines": (b"", lambda: HEAD + b"@@ -1 +1,99990 @@\n a\n" + b"+b\n" * 99_989, ""),
    "one long line": (b"", lambda: HEAD + b"@@ -1,2 +1 @@\n a\n-" + b"x" * 7 * MB + b"\n", ""),
    "one long header": (b"", lambda: b"--- a/" + b"x" * 7 * MB + b"\n+++ b/x\n@@ -1,2 +1 @@\n-a\n b\n", "x"),
    "a long git header": (b"", lambda: (GIT[:-1] + b" b/" * 650 + b"\n") * 4_000, "out of place"),
    "names that go deep": (b"", lambda: HEAD.replace(b"vllm", b"v/" * 500 + b"v") + b"@@ -1,2 +1 @@\n-a\n b\n", "long"),
    "gigantic numbers": (b"", lambda: HEAD + b"@@ -999999999,999999999 +1 @@\n-a\n", "x.patch"),
    "longer numbers": (b"", lambda: HEAD + b"@@ -" + b"9" * MB + b" +1 @@\n-a\n", "hunk header"),
    "a short hunk that says it is long": (b"", lambda: HEAD + b"@@ -1,999999999 +1 @@\n-a\n", "shorter"),
    "NUL bytes": (b"", lambda: bytes(7 * MB), "not a line"),
    "deep JSON": (b"[" * MB, lambda: b"", "not JSON"),
    "wide JSON": (b"[" + b"[]," * 650_000 + b"[]]", lambda: b"", "list where dict"),
    "large JSON": (b"[" + b"[]," * 2 * MB + b"[]]", lambda: b"", "limit"),
    "a long number": (b"9" * MB, lambda: b"", "number"),
    "a key twice": (b'{"a": 1, "a": 1}', lambda: b"", "twice"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_t51_hostile_input_takes_little_time_and_memory(tmp_path: Path, name: str) -> None:
    head, body, cause = HOSTILE[name]
    (tmp_path / "x.patch").write_bytes(body())
    (tmp_path / "series.json").write_bytes(index(head))
    done = process.run((sys.executable, "-I", "-S", "-B", "-c", CHILD, str(tmp_path), *PATHS))
    (tmp_path / "x.patch").unlink()
    assert (done.code, done.stderr) == (0, "")
    *told, used = done.stdout.splitlines()
    seconds, kilobytes = used.split()
    assert cause in "".join(told)
    assert bool(cause) == bool(told)
    assert float(seconds) < MOST_SECONDS
    assert int(kilobytes) < MOST_KILOBYTES


def test_t51_a_hunk_that_nearly_fits_everywhere_is_refused_in_linear_time() -> None:
    before = b"x\n" * 60_000
    data = b"--- a/x.txt\n+++ b/x.txt\n@@ -1,30001 +1,30001 @@\n" + b" x\n" * 30_000 + b"-y\n+z\n"
    (file,) = diff.parse(data, "x")
    misfit = hunks.fit(file, before)
    assert isinstance(misfit, hunks.Misfit)
    assert misfit.outcome is Outcome.CONFLICT
    many = diff.parse(
        data.replace(b"-y\n+z\n", b"-x\n+z\n").replace(b"-1,", b"-40000,").replace(b"+1,", b"+40000,"), "x"
    )
    misfit = hunks.fit(many[0], before)
    assert isinstance(misfit, hunks.Misfit)
    assert (misfit.outcome, misfit.found) == (Outcome.AMBIGUOUS, "lines 1, 2, 3, 4, 5")


LINES = [*diff_of(FILES, {"vllm/a.py": b"x = 1\n", "vllm/old.py": None, "vllm/n.py": b"n\n"}).splitlines(keepends=True)]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["0" * 64, "x/y"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(LINES) | st.binary(max_size=12), max_size=12) | st.just(LINES), st.data())
def test_t51_the_parser_raises_nothing_else(lines: list[bytes], data: st.DataObject) -> None:
    text = b"".join(lines)
    with contextlib.suppress(errors.BadInput):
        diff.parse(changed(text, data), "x")


def changed(text: bytes, data: st.DataObject) -> bytes:
    """Return `text` with a few bytes replaced, put in or taken out."""
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 4)))
        text = text[:start] + data.draw(st.binary(max_size=4)) + text[end:]
    return text


def documents() -> dict[str, dict[str, Any]]:
    step = {"path": "vllm/a.py", "pre": None, "post": "0" * 64}
    held = {"schema": 1, "steps": [step], "made": ["x"], "gone": ["y"], "times": {"x": 1}, "epoch": 5}
    kept = {"sha256": "0" * 64, "ends": True, "lines": [{"at": 1, "line": "x"}]}
    undone = {"schema": 1, "editions": [1], "record": kept, "modes": {"x.py": 420}, "made": ["x"]}
    return {"journal": held, "ledger": json.loads(ledger.render(ledger.of(three()))), "undo": undone}


def put(value: Any, path: list[int], new: Any) -> Any:
    """Return `value` with one part at any depth replaced."""
    if not path or not isinstance(value, dict | list) or not value:
        return new
    if isinstance(value, list):
        at = path[0] % len(value)
        return [put(each, path[1:], new) if n == at else each for n, each in enumerate(value)]
    name = sorted(value)[path[0] % len(value)]
    return {**value, name: put(value[name], path[1:], new)}


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["journal", "ledger", "undo", "series"]),
    st.data(),
)
def test_t51_readers_of_json_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    path, new = data.draw(st.lists(st.integers(0, 9), max_size=5)), data.draw(_JSON)
    folder = tmp_path_factory.getbasetemp() / "readers"
    folder.mkdir(exist_ok=True)
    series.write_series(folder / "series", three())
    value = documents().get(kind) or json.loads((folder / "series/series.json").read_bytes())
    text = changed(json.dumps(put(value, path, new), separators=(",", ":"), sort_keys=True).encode() + b"\n", data)
    with contextlib.suppress(errors.PatchingError):
        if kind == "journal":
            (folder / journal.NAME).write_bytes(text)
            journal.read(folder)
        elif kind == "ledger":
            ledger.parse(text, "x")
        elif kind == "undo":
            undo.series(ledger.of(three()), undo.parse(text + b"x"))
        else:
            (folder / "series/series.json").write_bytes(text)
            series.read_series(folder / "series")
    (folder / "series/series.json").write_bytes(b"")


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from([ledger.NAME, undo.NAME, journal.NAME, "RECORD"]), data=st.data())
def test_a_tree_with_any_metadata_is_answered_and_not_changed(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Ledger, undo and RECORD are damaged; a revert either takes everything back exactly or writes nothing."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        root = wheel(tmp_path_factory.mktemp("tree"))
        before = snapshot(root.path, times=False)
        engine.apply(three(), root)
        where = root.metadata / name
        where.write_bytes(changed(where.read_bytes() if where.exists() else b"{}", data))
        after = snapshot(root.path, times=False)
        with contextlib.suppress(errors.PatchingError):
            engine.verify(root)
        found = None
        with contextlib.suppress(errors.PatchingError):
            found = engine.revert(root)
        left = snapshot(root.path, times=False)
        left.pop(f"{root.dist_info}/kiln.lock", None)
        assert left == (before if found and found.outcome is Outcome.REVERTED else after)
