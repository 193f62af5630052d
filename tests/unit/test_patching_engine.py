from __future__ import annotations

import json
import os
import py_compile
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from patching_support import (
    A1,
    B1,
    FILES,
    INFO,
    after_three,
    contents,
    record_line,
    series_of,
    snapshot,
    three,
    wheel,
)

from kiln.patching import engine, errors, lock, plan, roots
from kiln.patching.outcomes import Outcome
from kiln.patching.tree import Memory


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs to outlive a power cut, and a busy disk would make these tests slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def test_t08_apply_writes_all_files_the_ledger_and_nothing_else(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    assert engine.apply(three(), root).outcome is Outcome.APPLIED
    assert contents(tmp_path) == after_three()
    names = sorted(path.name for path in (tmp_path / INFO).iterdir())
    assert names == ["METADATA", "RECORD", "kiln-ledger.json", "kiln-undo"]
    assert engine.verify(root, three()).outcome is Outcome.ALREADY_APPLIED
    assert engine.verify(root).outcome is Outcome.ALREADY_APPLIED


def test_the_ledger_in_the_tree_equals_the_one_planned_from_pristine_files(tmp_path: Path) -> None:
    engine.apply(three(), wheel(tmp_path, version="0.31.0+cpu"))
    held = (tmp_path / "vllm-0.31.0+cpu.dist-info/kiln-ledger.json").read_bytes()
    assert held == plan.plan(three(), Memory(FILES)).ledger
    assert held.endswith(b"}\n")
    assert str(tmp_path).encode() not in held


def test_t02_a_second_apply_changes_no_byte_and_no_time(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    before = snapshot(tmp_path)
    report = engine.apply(three(), root)
    assert report.outcome is Outcome.ALREADY_APPLIED
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("path", ["vllm/a.py", "vllm/b.py", "vllm/old.py", "vllm/sub/new/d.py"])
def test_t30_t31_one_file_that_does_not_fit_leaves_every_file_alone(tmp_path: Path, path: str) -> None:
    root = wheel(tmp_path, {**FILES, path: b"another = 1\n"})
    before = snapshot(tmp_path)
    report = engine.apply(three(), root)
    assert report.outcome is Outcome.CONFLICT
    assert [file.path for patch in report.patches for file in patch.files if file.outcome is Outcome.CONFLICT] == [path]
    assert snapshot(tmp_path) == before


def test_record_stays_true_and_otherwise_as_it_was(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    before = (tmp_path / INFO / "RECORD").read_text().splitlines()
    engine.apply(three(), root)
    after = (tmp_path / INFO / "RECORD").read_text().splitlines()
    merged = after_three()
    changed = {"vllm/a.py", "vllm/b.py"}
    expected = [
        record_line(name, merged[name]) if (name := line.partition(",")[0]) in changed else line
        for line in before
        if not line.startswith("vllm/old.py")
    ]
    added = {f"{INFO}/{name}": (tmp_path / INFO / name).read_bytes() for name in ("kiln-ledger.json", "kiln-undo")}
    added["vllm/sub/new/d.py"] = merged["vllm/sub/new/d.py"]
    assert after == [*expected, *(record_line(path, data) for path, data in sorted(added.items()))]


def test_record_with_crlf_keeps_crlf(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    record = tmp_path / INFO / "RECORD"
    record.write_bytes(record.read_bytes().replace(b"\n", b"\r\n").removesuffix(b"\r\n"))
    engine.apply(three(), root)
    lines = record.read_bytes().split(b"\n")
    assert lines.pop() == b""
    assert all(line.endswith(b"\r") for line in lines)
    assert engine.verify(root).outcome is Outcome.ALREADY_APPLIED


def test_t44_a_symlinked_directory_is_refused_with_its_real_path(tmp_path: Path) -> None:
    root = wheel(tmp_path / "root")
    (tmp_path / "root/vllm").rename(tmp_path / "elsewhere")
    (tmp_path / "root/vllm").symlink_to(tmp_path / "elsewhere")
    before = snapshot(tmp_path / "elsewhere")
    with pytest.raises(errors.BadPath, match="elsewhere"):
        engine.apply(three(), root)
    assert snapshot(tmp_path / "elsewhere") == before


def test_t45_a_symlinked_file_is_refused(tmp_path: Path) -> None:
    root = wheel(tmp_path / "root")
    (tmp_path / "root/vllm/b.py").rename(tmp_path / "store.py")
    (tmp_path / "root/vllm/b.py").symlink_to(tmp_path / "store.py")
    with pytest.raises(errors.BadPath, match=r"store\.py"):
        engine.apply(three(), root)
    assert (tmp_path / "store.py").read_bytes() == FILES["vllm/b.py"]
    assert not (tmp_path / "root" / INFO / lock.NAME).exists()


@pytest.mark.parametrize("twin", ["vllm/A.py", "VLLM/x.py"])
def test_t70_a_twin_by_letter_case_is_refused(tmp_path: Path, twin: str) -> None:
    root = wheel(tmp_path, {**FILES, twin: b""})
    with pytest.raises(errors.BadPath, match="letter case"):
        engine.apply(three(), root)


@pytest.mark.parametrize("mode", [0o644, 0o755, 0o444, 0o600])
def test_t63_the_mode_is_kept(tmp_path: Path, mode: int) -> None:
    root = wheel(tmp_path)
    (tmp_path / "vllm/a.py").chmod(mode)
    engine.apply(three(), root)
    assert (tmp_path / "vllm/a.py").stat().st_mode & 0o777 == mode
    assert (tmp_path / "vllm/sub/new/d.py").stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "vllm/sub/new").stat().st_mode & 0o777 == 0o755


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_t63_the_owner_is_kept(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    os.chown(tmp_path / "vllm/a.py", 1234, 1235)
    engine.apply(three(), root)
    info = (tmp_path / "vllm/a.py").stat()
    assert (info.st_uid, info.st_gid) == (1234, 1235)


def test_t63_times_of_folders_are_kept_and_of_changed_files_are_now(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    for path in (tmp_path, *tmp_path.rglob("*")):
        os.utime(path, (1000, 1000))
    start = time.time() - 2
    engine.apply(three(), root)
    old = {path for path, (_, mtime_ns, _) in snapshot(tmp_path).items() if mtime_ns == 1000 * 10**9}
    new = {path for path, (_, mtime_ns, _) in snapshot(tmp_path).items() if mtime_ns > start * 10**9}
    assert new == {"vllm/a.py", "vllm/b.py", "vllm/sub/new", "vllm/sub/new/d.py"} | {
        f"{INFO}/RECORD",
        f"{INFO}/kiln-ledger.json",
        f"{INFO}/kiln-undo",
    }
    assert old | new == snapshot(tmp_path).keys()


def test_source_date_epoch_makes_two_trees_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    trees = []
    for name in ("x", "y"):
        root = wheel(tmp_path / name)
        for path in (tmp_path / name).rglob("*"):
            os.utime(path, (1000, 1000))
        engine.apply(three(), root)
        engine.copy_ledger(root, tmp_path / name / "opt/kiln/ledger.json")
        trees.append(snapshot(tmp_path / name))
    assert trees[0] == trees[1]
    times = {path: row[1] // 10**9 for path, row in trees[0].items()}
    assert times["vllm/a.py"] == times["vllm"] == times[INFO] == times["opt/kiln"] == 1700000000
    assert times["vllm/__init__.py"] == 1000


def test_a_copy_of_the_ledger_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    with pytest.raises(errors.CannotWrite, match=r"ledger\.json: "):
        engine.copy_ledger(root, tmp_path / "vllm/a.py/ledger.json")


def test_verify_says_that_the_ledger_cannot_be_read(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    (root.metadata / "kiln-ledger.json").write_bytes(b"{}")
    report = engine.verify(root, three())
    assert report.outcome is Outcome.UNKNOWN
    assert [file.path for file in report.files] == ["kiln-ledger.json"]


def test_source_date_epoch_must_be_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(errors.BadInput, match="SOURCE_DATE_EPOCH"):
        engine.apply(three(), wheel(tmp_path))


def test_t64_stale_bytecode_is_removed(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    for mode in (py_compile.PycInvalidationMode.TIMESTAMP, py_compile.PycInvalidationMode.UNCHECKED_HASH):
        level = 0 if mode is py_compile.PycInvalidationMode.TIMESTAMP else 2
        py_compile.compile(str(tmp_path / "vllm/a.py"), invalidation_mode=mode, optimize=level)
    (tmp_path / "vllm/old.pyc").write_bytes(b"beside")
    keep = tmp_path / "vllm/__pycache__/a.b.cpython-312.pyc"
    keep.write_bytes(b"of another module")
    assert len(list(keep.parent.iterdir())) == 3
    engine.apply(three(), root)
    assert list(keep.parent.iterdir()) == [keep]
    assert not (tmp_path / "vllm/old.pyc").exists()


def test_t64_verify_finds_bytecode_that_lies(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    path = tmp_path / "vllm/b.py"
    wanted = series_of(("one", {"vllm/b.py": FILES["vllm/b.py"].replace(b"b9 = 9\n", b"b9 = 8\n")}))
    engine.apply(wanted, root)
    py_compile.compile(str(path))
    assert engine.verify(root, wanted).outcome is Outcome.ALREADY_APPLIED
    info, patched = path.stat(), path.read_bytes()
    path.write_bytes(FILES["vllm/b.py"])
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    py_compile.compile(str(path))
    path.write_bytes(patched)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    report = engine.verify(root, wanted)
    assert report.outcome is Outcome.STALE_RESIDUE
    assert report.files[0].found == "holds other code than its source"
    assert engine.apply(wanted, root) == report  # what Python would run is not the patch
    os.utime(path, (5, 5))
    assert engine.verify(root, wanted).files[0].found == "made from another version of its source"


def test_verify_finds_an_untrue_record(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    record = tmp_path / INFO / "RECORD"
    record.write_text(record.read_text().replace(record_line("vllm/b.py", after_three()["vllm/b.py"]), "vllm/b.py,,"))
    report = engine.verify(root, three())
    assert (report.outcome, report.files[0].path) == (Outcome.TARGET_MODIFIED, f"{INFO}/RECORD")
    assert report.files[0].found == "vllm/b.py,,"


def test_verify_reads_and_never_writes(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    before = snapshot(tmp_path)
    assert engine.verify(root, three()).outcome is Outcome.UNKNOWN
    assert engine.verify(root).outcome is Outcome.UNKNOWN
    assert engine.status(root, three()).patches[0].hint == "not applied; the files are ready for it"
    assert snapshot(tmp_path) == before
    engine.apply(three(), root)
    (tmp_path / "vllm/a.py").write_bytes(A1["vllm/a.py"])
    before = snapshot(tmp_path)
    assert engine.verify(root, three()).outcome is Outcome.TARGET_MODIFIED
    assert engine.verify(root).outcome is Outcome.TARGET_MODIFIED
    assert snapshot(tmp_path) == before


def test_t65_a_hardlinked_cache_is_not_written_through(tmp_path: Path) -> None:
    root = wheel(tmp_path / "root")
    cache = tmp_path / "cache.py"
    cache.hardlink_to(tmp_path / "root/vllm/a.py")
    engine.apply(three(), root)
    assert cache.read_bytes() == FILES["vllm/a.py"]
    assert cache.stat().st_nlink == 1


def test_t34_two_runs_do_not_meet(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    with lock.held(root.metadata, wait_s=0), pytest.raises(errors.Locked, match=r"kiln\.lock"):
        engine.apply(three(), root, wait_s=0)
    assert contents(tmp_path) == FILES
    assert engine.apply(three(), root, wait_s=0).outcome is Outcome.APPLIED


def test_t34_the_lock_file_of_a_killed_run_is_no_lock(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    (root.metadata / lock.NAME).touch()
    assert engine.apply(three(), root, wait_s=0).outcome is Outcome.APPLIED
    assert not (root.metadata / lock.NAME).exists()


def test_t37_a_file_where_ours_would_lie_is_not_overwritten(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    (tmp_path / "vllm/a.py.kiln-old").write_bytes(b"mine")
    before = snapshot(tmp_path)
    with pytest.raises(errors.CannotWrite, match="in the way"):
        engine.apply(three(), root)
    assert snapshot(tmp_path) == before


def test_t90_a_patch_is_taken_out_of_the_series(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    before = snapshot(tmp_path)
    shorter = series_of(("one", A1))
    assert engine.apply(shorter, root).outcome is Outcome.STALE_RESIDUE
    assert engine.verify(root, shorter).outcome is Outcome.STALE_RESIDUE
    assert snapshot(tmp_path) == before


def test_an_empty_series_is_recorded(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    assert engine.apply(series_of(), root).outcome is Outcome.APPLIED
    assert json.loads((root.metadata / "kiln-ledger.json").read_text())["patches"] == []
    assert contents(tmp_path) == FILES
    assert engine.verify(root, series_of()).outcome is Outcome.ALREADY_APPLIED
    assert engine.apply(three(), root).outcome is Outcome.UNKNOWN


def test_t62_odd_bytes_arrive_as_they_are(tmp_path: Path) -> None:
    lines = [b"\xef\xbb\xbf# bom\n", b"\x0c\n", b"x = '\xff'\r\n", b"\t# " + b"long" * 5000 + b"\n", b"end"]
    files = {**FILES, "vllm/odd.txt": b"".join(lines)}
    after = b"".join([*lines[:4], b"\x0b\x85\xe2\x80\xa8 # \r mid\n", b"END"])
    wanted = series_of(("odd", {"vllm/odd.txt": after}), files=files)
    engine.apply(wanted, wheel(tmp_path, files))
    assert (tmp_path / "vllm/odd.txt").read_bytes() == after


def test_t67_the_root_is_found_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(tmp_path / "x", version="0.31.0+rocm723")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "x"), str(tmp_path / "x/../x"), str(tmp_path / "none")])
    found = roots.find("VLLM", release="0.31.0")
    assert (found.path, found.version) == ((tmp_path / "x").resolve(), "0.31.0+rocm723")
    wheel(tmp_path / "y", version="0.30.0")
    sys.path.append(str(tmp_path / "y"))
    with pytest.raises(errors.BadRoot, match=r"x/vllm-0\.31\.0\+rocm723.*y/vllm-0\.30\.0"):
        roots.find("vllm")
    with pytest.raises(errors.BadRoot, match=r"0\.30\.0, the series is for 0\.31\.0"):
        roots.find("vllm", root=tmp_path / "y", release="0.31.0")
    with pytest.raises(errors.BadRoot, match="no vllm-"):
        roots.find("vllm", root=tmp_path)
    (tmp_path / "y/vllm-0.30.0.dist-info/RECORD").unlink()
    with pytest.raises(errors.BadRoot, match="RECORD"):
        roots.find("vllm", root=tmp_path / "y")


def test_copies_where_links_are_not_possible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    assert engine.apply(series_of(("three", B1)), wheel(tmp_path)).outcome is Outcome.APPLIED
    assert contents(tmp_path) == {**FILES, **B1}


def test_a_file_that_is_no_file_is_refused(tmp_path: Path) -> None:
    root = wheel(tmp_path, {path: data for path, data in FILES.items() if path != "vllm/b.py"})
    (tmp_path / "vllm/b.py").mkdir()
    with pytest.raises(errors.BadPath, match="not a regular file"):
        engine.apply(three(), root)


def test_t82_a_name_that_this_python_cannot_say_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**FILES, "vllm/\u00e4.py": b"x = 1\n"}
    root = wheel(tmp_path, files)
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "iso8859-1")
    with pytest.raises(errors.BadPath, match="iso8859-1"):
        engine.apply(series_of(("umlaut", {"vllm/\u00e4.py": b"y = 1\nx = 1\n"}), files=files), root)


@pytest.mark.parametrize("data", ["Name: vllm\n\n", "Name: vllm\n\nVersion: 0.31.0\n"])
def test_t67_metadata_without_a_version(tmp_path: Path, data: str) -> None:
    root = wheel(tmp_path)
    (root.metadata / "METADATA").write_text(data)
    with pytest.raises(errors.BadRoot, match="no Version"):
        roots.find("vllm", root=tmp_path)


def test_t67_metadata_behind_a_link(tmp_path: Path) -> None:
    root = wheel(tmp_path / "root")
    root.metadata.rename(tmp_path / INFO)
    root.metadata.symlink_to(tmp_path / INFO)
    with pytest.raises(errors.BadRoot, match="not a directory of its own"):
        roots.find("vllm", root=tmp_path / "root")


def test_record_quotes_a_name_with_a_comma(tmp_path: Path) -> None:
    files = {**FILES, 'vllm/a,"b".txt': b"1\n2\n"}
    root = wheel(tmp_path, {path: data for path, data in files.items() if "," not in path})
    (tmp_path / 'vllm/a,"b".txt').write_bytes(b"1\n2\n")
    engine.apply(series_of(("comma", {'vllm/a,"b".txt': b"1\n3\n"}), files=files), root)
    assert '"vllm/a,""b"".txt",sha256=' in (root.metadata / "RECORD").read_text()
    assert engine.verify(root).outcome is Outcome.ALREADY_APPLIED


def test_t63_somebody_who_is_not_root_sets_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "not root")

    root = wheel(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "fchown", refuse)
    assert engine.apply(three(), root).outcome is Outcome.APPLIED


def test_t63_attributes_of_the_system_are_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = wheel(tmp_path)
    monkeypatch.setattr(os, "listxattr", lambda *_, **__: ["security.selinux", "trusted.overlay.origin"])
    assert engine.apply(three(), root).outcome is Outcome.APPLIED


def test_t34_a_run_waits_until_the_other_one_ends(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    ready, done = threading.Event(), threading.Event()

    def other() -> None:
        with lock.held(root.metadata, wait_s=0):
            ready.set()
            done.wait(0.1)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    assert engine.apply(three(), root, wait_s=20).outcome is Outcome.APPLIED
    thread.join()


def test_t64_bytecode_that_is_named_by_hash_or_damaged(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    wanted = series_of(("one", {"vllm/b.py": FILES["vllm/b.py"].replace(b"b9 = 9\n", b"b9 = 8\n")}))
    engine.apply(wanted, root)
    for mode in (py_compile.PycInvalidationMode.CHECKED_HASH, py_compile.PycInvalidationMode.UNCHECKED_HASH):
        compiled = Path(str(py_compile.compile(str(tmp_path / "vllm/b.py"), invalidation_mode=mode)))
        assert engine.verify(root, wanted).outcome is Outcome.ALREADY_APPLIED
    good = compiled.read_bytes()
    for bad in (good[:16], good[:30], good[:16] + b"\xff"):
        compiled.write_bytes(bad)
        assert engine.verify(root, wanted).files[0].found == "holds other code than its source"


def test_source_date_epoch_too_far_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = wheel(tmp_path)
    for text in ("9" * 5000, str(2**34 + 1)):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
        with pytest.raises(errors.BadInput, match="too far away"):
            engine.apply(three(), root)


def test_t66_what_is_so_already_needs_no_writable_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At container start the image is often mounted read-only: no lock, no file, nothing but reading."""
    patched, plain = wheel(tmp_path / "patched"), wheel(tmp_path / "plain")
    engine.apply(three(), patched)
    opened = os.open

    def read_only(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(30, "Read-only file system", path)
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", read_only)
    assert engine.apply(three(), patched).outcome is Outcome.ALREADY_APPLIED
    assert engine.verify(patched).outcome is Outcome.ALREADY_APPLIED
    assert engine.revert(plain).outcome is Outcome.REVERTED
    for run in (partial(engine.revert, patched), partial(engine.apply, three(), plain)):
        with pytest.raises(errors.CannotWrite, match="Read-only"):
            run()


@pytest.mark.parametrize("suffix", [".orig", ".rej", "~", ".kiln-new", ".kiln-old"])
def test_t37_verify_finds_what_a_tool_left_beside_a_file(tmp_path: Path, suffix: str) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    (tmp_path / f"vllm/__init__.py{suffix}").touch()
    assert engine.verify(root).outcome is Outcome.ALREADY_APPLIED
    (tmp_path / f"vllm/a.py{suffix}").touch()
    report = engine.verify(root)
    assert [(file.path, file.outcome) for file in report.files] == [(f"vllm/a.py{suffix}", Outcome.STALE_RESIDUE)]
