"""A small fake wheel, and diffs made by difflib; the other test_patching modules build on these."""

from __future__ import annotations

import base64
import difflib
import hashlib
import io
import stat
from typing import TYPE_CHECKING

from kiln.patching import authoring, roots, tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from kiln.patching.series import Series

RELEASE = "0.31.0"
INFO = "vllm-0.31.0.dist-info"
FILES = {
    "vllm/__init__.py": b"",
    "vllm/a.py": b"".join(b"a%d = %d\n" % (n, n) for n in range(30)),
    "vllm/b.py": b"".join(b"b%d = %d\n" % (n, n) for n in range(30)),
    "vllm/old.py": b"gone = 1\n",
    "vllm/sub/c.py": b"def f():\n    return 1\n\n\ndef g():\n    return 2\n",
}
A1 = {"vllm/a.py": FILES["vllm/a.py"].replace(b"a5 = 5\n", b"a5 = 55\n")}
A2 = {"vllm/a.py": A1["vllm/a.py"].replace(b"a20 = 20\n", b"a20 = 'twenty'\n"), "vllm/old.py": None}
B1 = {"vllm/b.py": FILES["vllm/b.py"].replace(b"b9 = 9\n", b"b9 = 99\n"), "vllm/sub/new/d.py": b"d = 1\n"}
TOOL = b"#!/bin/sh\necho tool\n"
WIDE_FILES = {**FILES, "vllm/tool.sh": TOOL, "vllm/data.txt": b"1\n2\n3\n4\n5"}


def diff_of(before: Mapping[str, bytes], after: Mapping[str, bytes | None]) -> bytes:
    """Return the git-style diff that makes `after` of `before`; None deletes."""
    return b"".join(_file_diff(path, before.get(path), data) for path, data in sorted(after.items()))


def _file_diff(path: str, old: bytes | None, new: bytes | None) -> bytes:
    name = path.encode()
    head = b"diff --git a/%s b/%s\n" % (name, name)
    if old is None:
        head += b"new file mode 100644\n"
    if new is None:
        head += b"deleted file mode 100644\n"
    lines = difflib.diff_bytes(
        difflib.unified_diff,
        io.BytesIO(old or b"").readlines(),
        io.BytesIO(new or b"").readlines(),
        b"/dev/null" if old is None else b"a/" + name,
        b"/dev/null" if new is None else b"b/" + name,
    )
    ended = (line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n" for line in lines)
    return head + b"".join(ended)


def series_of(*steps: tuple[str, Mapping[str, bytes | None]], files: Mapping[str, bytes] = FILES) -> Series:
    """Return the series whose patches leave these contents, one after the other."""
    state = dict(files)
    editions = []
    for patch_id, after in steps:
        editions.append((patch_id, diff_of(state, after)))
        for path, data in after.items():
            state.pop(path, None)
            if data is not None:
                state[path] = data
    return authoring.series("vllm", RELEASE, editions, tree.Memory(files))


def three() -> Series:
    return series_of(("one", A1), ("two", A2), ("three", B1))


def wide() -> Series:
    """Return five patches over nine files: changed once and twice, made in new folders, deleted with a mode."""
    a3 = {"vllm/a.py": (A2["vllm/a.py"] or b"").replace(b"a28 = 28\n", b"a28 = 28  # last\n")}
    four = {"vllm/sub/c.py": FILES["vllm/sub/c.py"].replace(b"return 2", b"return 3"), "vllm/x/y/z.py": b"z = 1\n"}
    five = {**a3, "vllm/tool.sh": None, "vllm/data.txt": b"1\n2\n3\n4\n5\n6\n"}
    return series_of(("one", A1), ("two", A2), ("three", B1), ("four", four), ("five", five), files=WIDE_FILES)


def wide_wheel(where: Path) -> roots.Root:
    """Install what `wide` is for, with odd modes and with bytecode."""
    root = wheel(where, WIDE_FILES)
    for path, mode in {"vllm/tool.sh": 0o755, "vllm/b.py": 0o640, f"{INFO}/RECORD": 0o600}.items():
        (where / path).chmod(mode)
    compiled(where)
    return root


def compiled(where: Path) -> None:
    """Put bytecode there, as a run of the package would."""
    (where / "vllm/__pycache__").mkdir(exist_ok=True)
    for name in ("a.cpython-312.pyc", "b.cpython-311.opt-1.pyc", "__init__.cpython-312.pyc"):
        (where / "vllm/__pycache__" / name).write_bytes(b"old")


def after_three() -> dict[str, bytes]:
    merged: dict[str, bytes | None] = {**FILES, **A1, **A2, **B1}
    return {path: data for path, data in merged.items() if data is not None}


def wheel(where: Path, files: Mapping[str, bytes] = FILES, version: str = RELEASE) -> roots.Root:
    """Install a fake vllm into `where`, RECORD and all."""
    info = f"vllm-{version}.dist-info"
    every = {**files, f"{info}/METADATA": f"Metadata-Version: 2.4\nName: vllm\nVersion: {version}\n\nText\n".encode()}
    for path, data in every.items():
        (where / path).parent.mkdir(parents=True, exist_ok=True)
        (where / path).write_bytes(data)
    lines = [record_line(path, data) for path, data in sorted(every.items())]
    record = [*lines, "vllm/__pycache__/a.cpython-312.pyc,,", '"vllm/odd,name.txt",,', f"{info}/RECORD,,"]
    (where / info / "RECORD").write_text("\n".join(record) + "\n")
    return roots.find("vllm", root=where)


def record_line(path: str, data: bytes) -> str:
    sha256 = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"{path},sha256={sha256},{len(data)}"


def snapshot(where: Path, *, times: bool = True) -> dict[str, tuple[int, int, bytes]]:
    """Return mode, mtime and bytes of everything below `where`."""
    found = {}
    for path in sorted([where, *where.rglob("*")]):
        info = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found[str(path.relative_to(where))] = (info.st_mode, info.st_mtime_ns if times else 0, data)
    return found


def contents(where: Path) -> dict[str, bytes]:
    """Return the files of the package, without its metadata."""
    files = (path for path in where.rglob("*") if path.is_file())
    found = {str(path.relative_to(where)): path.read_bytes() for path in files}
    return {path: data for path, data in found.items() if ".dist-info/" not in path}


def test_the_fake_wheel_is_found_and_the_series_is_cumulative(tmp_path: Path) -> None:
    assert wheel(tmp_path).dist_info == INFO
    first, second, _ = three().patches
    assert first.files[0].post == second.files[0].pre
    assert contents(tmp_path) == FILES
