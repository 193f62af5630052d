"""The layer of a thin build, laid over a small installed wheel by hand, against the patch engine run on that wheel."""

from __future__ import annotations

import hashlib
import io
import os
import runpy
import shutil
import stat
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from patching_support import INFO, WIDE_FILES, snapshot, wide, wide_wheel

from kiln import errors
from kiln.image.thin import layer as thin_layer
from kiln.image.thin.layer import Member, Site
from kiln.lock import reading
from kiln.patching import bytecode, engine, roots
from kiln.patching.tree import Directory

ROOT = "usr/lib/python3/site-packages"


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here needs to outlive a power cut, and a busy disk would make these tests slow."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A root file system with an installed wheel, odd modes and bytecode in it."""
    where = tmp_path / "base" / ROOT
    where.mkdir(parents=True)
    wide_wheel(where)
    (where / "vllm").chmod(0o750)
    return tmp_path / "base"


def site(base: Path) -> Site:
    """Say what a lock and a read of the base's layer say of it."""
    where = base / ROOT
    compiled = [path for name in WIDE_FILES for path in bytecode.files(Directory(where), name)]
    return Site(
        root=ROOT,
        dist_info=INFO,
        record=(where / INFO / "RECORD").read_bytes(),
        bytecode=tuple(path for path in compiled if "__init__" not in path),
        modes={
            path.relative_to(base).as_posix(): stat.S_IMODE(path.stat().st_mode)
            for path in base.rglob("*")
            if path.name != "METADATA" and path.suffix != ".pyc"
        },
    )


def without(found: Site, path: str) -> Site:
    return replace(found, modes={each: mode for each, mode in found.modes.items() if each != path})


def before(base: Path) -> dict[str, bytes]:
    files = {change.path for patch in wide().patches for change in patch.files}
    return {path: (base / ROOT / path).read_bytes() for path in files if (base / ROOT / path).exists()}


def layer(base: Path) -> bytes:
    found = site(base)
    return thin_layer.render(thin_layer.whole(thin_layer.patched(wide(), before(base), found), found))


def laid_over(base: Path, layer: bytes) -> None:
    """Unpack a layer as an engine does: the mode of every entry holds, .wh.NAME removes NAME."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        for entry in archive:
            target = base / entry.name
            if target.name.startswith(".wh."):
                target.with_name(target.name.removeprefix(".wh.")).unlink()
            elif entry.isdir():
                target.mkdir(exist_ok=True)
                target.chmod(entry.mode)
            else:
                found = archive.extractfile(entry)
                assert found
                target.write_bytes(found.read())
                target.chmod(entry.mode)


def test_the_layer_leaves_what_the_engine_leaves(base: Path, tmp_path: Path) -> None:
    patched = tmp_path / "patched"
    shutil.copytree(base, patched)
    engine.apply(wide(), roots.find("vllm", root=patched / ROOT))
    laid_over(base, layer(base))
    assert snapshot(base, times=False) == snapshot(patched, times=False)
    assert engine.verify(roots.find("vllm", root=base / ROOT), wide()).outcome.done
    # the undo of the layer knows the modes and the folders of the base
    engine.revert(roots.find("vllm", root=base / ROOT))
    engine.revert(roots.find("vllm", root=patched / ROOT))
    assert snapshot(base, times=False) == snapshot(patched, times=False)


def test_the_layer_holds_nothing_that_the_series_does_not_change(base: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(layer(base))) as archive:
        entries = {entry.name: entry for entry in archive}
    files = {name.removeprefix(f"{ROOT}/") for name, entry in entries.items() if entry.isfile()}
    assert files == {
        *(f"{INFO}/{name}" for name in ("RECORD", "kiln-ledger.json", "kiln-undo")),
        *("vllm/a.py", "vllm/b.py", "vllm/sub/c.py", "vllm/data.txt", "vllm/sub/new/d.py", "vllm/x/y/z.py"),
        *("vllm/.wh.old.py", "vllm/.wh.tool.sh"),
        "vllm/__pycache__/.wh.a.cpython-312.pyc",
        "vllm/__pycache__/.wh.b.cpython-311.opt-1.pyc",
    }
    assert list(entries) == sorted(entries)
    assert {(e.uid, e.gid, e.uname, e.gname, e.mtime) for e in entries.values()} == {(0, 0, "", "", 1735689600)}
    assert (entries[f"{ROOT}/vllm"].mode, entries[f"{ROOT}/vllm/x/y"].mode) == (0o750, 0o755)


def test_the_layer_is_the_same_whatever_the_machine_says(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = layer(base)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "7")
    mask = os.umask(0o077)
    try:
        second = layer(base)
    finally:
        os.umask(mask)
    assert hashlib.sha256(second).hexdigest() == hashlib.sha256(first).hexdigest()
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_file_that_is_not_as_the_edition_needs_it_is_named(base: Path) -> None:
    files = before(base) | {"vllm/a.py": b"other\n"}
    with pytest.raises(errors.NotApplied) as caught:
        thin_layer.patched(wide(), files, site(base))
    assert "vllm/a.py" in caught.value.message


def test_a_file_whose_mode_is_not_known_is_refused(base: Path) -> None:
    with pytest.raises(errors.BadInput) as caught:
        thin_layer.patched(wide(), before(base), without(site(base), f"{ROOT}/vllm/b.py"))
    assert f"/{ROOT}/vllm/b.py" in caught.value.message


def test_a_folder_above_whose_mode_is_not_known_is_refused(base: Path) -> None:
    found = site(base)
    members = thin_layer.patched(wide(), before(base), found)
    with pytest.raises(errors.BadInput) as caught:
        thin_layer.whole(members, without(found, "usr/lib"))
    assert "/usr/lib: " in caught.value.message


def test_a_staged_tar_goes_into_the_layer_as_it_is() -> None:
    members = (
        Member(path="opt", mode=0o755, data=None),
        Member(path="opt/kiln", mode=0o711, data=None),
        Member(path="opt/kiln/pins.json", mode=0o640, data=b"{}\n"),
    )
    assert thin_layer.read_tar(thin_layer.render(members)) == members


def test_a_folder_that_the_base_has_keeps_its_mode(base: Path) -> None:
    (base / "opt").mkdir(mode=0o711)
    members = (
        Member(path="opt", mode=0o755, data=None),
        Member(path="opt/kiln", mode=0o755, data=None),
        Member(path="opt/kiln/pins.json", mode=0o644, data=b"{}\n"),
    )
    assert [member.mode for member in thin_layer.whole(members, site(base))] == [0o711, 0o755, 0o644]


def test_a_removal_names_what_goes() -> None:
    removals = thin_layer.removals(("root/.cache", "old"))
    assert removals == (
        Member(path="root/.wh..cache", mode=0o644, data=b""),
        Member(path=".wh.old", mode=0o644, data=b""),
    )
    assert [member.removes for member in removals] == ["root/.cache", "old"]


def test_the_caches_that_the_lock_looks_for_are_those_that_a_build_removes(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(__file__).parents[2] / "images/install"
    monkeypatch.syspath_prepend(folder)
    for name in ("facts", "settle"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    finish = runpy.run_path(str(folder / "finish.py"))
    settings = {name: f"/own/{name}" for name in finish["CACHE_SETTINGS"]}
    homes = [path.replace("~/", "root/") for path in finish["CACHES"] if path.startswith("~/")]
    assert reading.cache_folders(settings) == tuple(sorted([*homes, *(path[1:] for path in settings.values())]))
