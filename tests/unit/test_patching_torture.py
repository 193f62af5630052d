"""The rows of the torture list that need a whole run: names, tools, the environment, and what surrounds the tree."""

from __future__ import annotations

import ast
import io
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from patching_support import (
    A1,
    FILES,
    INFO,
    after_three,
    contents,
    diff_of,
    series_of,
    snapshot,
    three,
    wheel,
)

from kiln import process
from kiln.patching import cli, diff, engine, errors, plan, roots, series, zipapp
from kiln.patching.outcomes import Outcome, digest
from kiln.patching.tree import Memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kiln.patching.series import Series

PLAIN = {"PATH": "", "LC_ALL": "C"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("torture") / "kiln-patch.pyz"
    zipapp.build(target)
    return target


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def placed(where: Path, wanted: Series | None = None) -> tuple[str, str]:
    wheel(where / "root")
    series.write_series(where / "series", wanted or three())
    return f"--root={where / 'root'}", f"--series={where / 'series'}"


def run(packed: Path, *args: str, env: Mapping[str, str] = PLAIN, cwd: Path | None = None) -> process.Result:
    return process.run((sys.executable, "-I", "-B", str(packed), *args), env=env, cwd=cwd)


def git(*args: str, cwd: Path) -> process.Result:
    env = {"PATH": os.environ["PATH"], "HOME": str(cwd), "GIT_CONFIG_NOSYSTEM": "1"}
    return process.run(("git", *args), cwd=cwd, env=env)


# what the tools call success


def test_t03_hashes_decide_although_a_reverse_check_would_pass_too() -> None:
    """The second block is as the patch leaves the first one: `patch -R --check` finds it and says "applied"."""
    block = b"def f():\n    x = %d\n    return x\n\n\n"
    before = {"vllm/t.py": block % 1 + block % 2}
    after = {"vllm/t.py": block % 2 + block % 2}
    wanted = series_of(("t", after), files=before)
    report = plan.plan(wanted, Memory(before)).report
    assert report.outcome is Outcome.APPLIED
    assert plan.plan(wanted, Memory(after)).report.outcome is Outcome.MERGED


def test_t05_fixed_upstream_in_another_way_is_a_conflict() -> None:
    files = {**FILES, "vllm/a.py": FILES["vllm/a.py"].replace(b"a5 = 5\n", b"a5 = five()\n")}
    found = plan.plan(series_of(("one", A1)), Memory(files))
    assert (found.report.outcome, found.writes) == (Outcome.CONFLICT, ())


@pytest.mark.usefixtures("no_fsync")
def test_t07_an_insertion_is_never_made_twice(tmp_path: Path) -> None:
    root = wheel(tmp_path)
    inserted = FILES["vllm/a.py"].replace(b"a5 = 5\n", b"a5 = 5\nnew = 1\n")
    wanted = series_of(("insert", {"vllm/a.py": inserted}))
    for expected in (Outcome.APPLIED, Outcome.ALREADY_APPLIED):
        assert engine.apply(wanted, root).outcome is expected
    for name in ("kiln-ledger.json", "kiln-undo"):
        (root.metadata / name).unlink()
    assert engine.apply(wanted, root).outcome is Outcome.MERGED
    assert (tmp_path / "vllm/a.py").read_bytes() == inserted


def test_t08_a_tree_that_a_git_repository_ignores_is_patched(tmp_path: Path, packed: Path) -> None:
    """`git apply` in there exits 0 and changes nothing."""
    assert git("init", "-q", cwd=tmp_path).code == 0
    (tmp_path / ".gitignore").write_text(".venv\n")
    root, wanted = placed(tmp_path / ".venv")
    site = tmp_path / ".venv/root"
    (tmp_path / "one.patch").write_bytes(three().patches[0].data)
    done = git("apply", "--exclude=none", str(tmp_path / "one.patch"), cwd=site)
    assert (done.code, contents(site)) == (0, FILES), "git got better; this row can go"
    assert run(packed, "apply", root, wanted, cwd=site).code == 0
    assert contents(site) == after_three()


def test_t14_every_file_is_told_even_where_the_exit_code_gets_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, wanted = placed(tmp_path)
    (tmp_path / "root/vllm/b.py").write_bytes(b"other\n")
    assert cli.main(("apply", root, wanted, "--json")) == 5
    value = json.loads(capsys.readouterr().out)
    told = {file["path"]: file["outcome"] for patch in value["report"]["patches"] for file in patch["files"]}
    assert told == {
        "vllm/a.py": "UNKNOWN",
        "vllm/old.py": "UNKNOWN",
        "vllm/b.py": "CONFLICT",
        "vllm/sub/new/d.py": "UNKNOWN",
    }
    assert (value["exit_code"], value["report"]["outcome"]) == (5, "CONFLICT")


def test_t16_a_patch_of_modes_only_is_refused() -> None:
    with pytest.raises(errors.BadDiff, match="modes"):
        diff.parse(b"diff --git a/x.sh b/x.sh\nold mode 100644\nnew mode 100755\n", "x")


@pytest.mark.parametrize("marker", [b"<<<<<<< ours\n", b">>>>>>> theirs\n"])
def test_t20_a_patch_that_brings_conflict_markers_is_refused(marker: bytes) -> None:
    after = FILES["vllm/a.py"].replace(b"a5 = 5\n", marker)
    with pytest.raises(errors.BadDiff, match="conflict marker"):
        diff.parse(diff_of(FILES, {"vllm/a.py": after}), "x")
    back = diff_of({"vllm/a.py": after}, {"vllm/a.py": FILES["vllm/a.py"]})
    assert diff.parse(back, "x")


@pytest.mark.parametrize(
    ("text", "outcome"),
    [(b"0\n" * 9, Outcome.CONFLICT), (b"0\n" + b"1\n2\n3\n" * 3, Outcome.AMBIGUOUS), (b"0\n1\n2\n3\n", Outcome.OFFSET)],
)
def test_t21_the_lines_to_change_stand_exactly_once_and_there(text: bytes, outcome: Outcome) -> None:
    before = {"vllm/t.txt": b"1\n2\n3\n"}
    wanted = series_of(("t", {"vllm/t.txt": b"1\ntwo\n3\n"}), files=before)
    found = plan.plan(wanted, Memory({"vllm/t.txt": text}))
    assert (found.report.outcome, found.writes) == (outcome, ())


def test_t22_a_marker_without_the_code_is_not_applied() -> None:
    marked = A1["vllm/a.py"].replace(b"a5 = 55\n", b"a5 = 55  # KILN-PATCH one\n")
    wanted = series_of(("one", {"vllm/a.py": marked}))
    only_marker = FILES["vllm/a.py"] + b"# KILN-PATCH one\n"
    assert not plan.plan(wanted, Memory({"vllm/a.py": only_marker})).report.outcome.done


# partial states


@pytest.mark.usefixtures("no_fsync")
def test_t31_patch_three_of_five_does_not_fit(tmp_path: Path) -> None:
    steps = [(f"p{n}", {f"vllm/n{n}.py": b"n = 2\n"}) for n in range(5)]
    files = {**FILES, **{f"vllm/n{n}.py": b"n = 1\n" for n in range(5)}}
    root = wheel(tmp_path, {**files, "vllm/n2.py": b"n = 3\n"})
    kept = b"# kept\n"
    wanted = series_of(
        *((name, {path: kept + data for path, data in after.items()}) for name, after in steps),
        files={path: kept + data if "/n" in path else data for path, data in files.items()},
    )
    before = snapshot(tmp_path)
    report = engine.apply(wanted, root)
    assert [patch.outcome for patch in report.patches].count(Outcome.CONFLICT) == 5
    for n in (0, 1, 3, 4):
        (tmp_path / f"vllm/n{n}.py").write_bytes(b"# kept\nn = 1\n")
    before = snapshot(tmp_path)
    report = engine.apply(wanted, root)
    assert [patch.outcome for patch in report.patches] == [
        Outcome.UNKNOWN,
        Outcome.UNKNOWN,
        Outcome.CONFLICT,
        Outcome.UNKNOWN,
        Outcome.UNKNOWN,
    ]
    assert snapshot(tmp_path) == before


@pytest.mark.usefixtures("no_fsync")
def test_t38_an_emptied_file_and_its_folder_stay(tmp_path: Path) -> None:
    files = {**FILES, "vllm/p/__init__.py": b"x = 1\n"}
    root = wheel(tmp_path, files)
    data = b"--- a/vllm/p/__init__.py\t1970-01-01\n+++ b/vllm/p/__init__.py\t1970-01-01\n@@ -1 +0,0 @@\n-x = 1\n"
    with pytest.raises(errors.BadDiff, match="context"):
        diff.parse(data, "x")
    gone = series_of(("gone", {"vllm/p/__init__.py": None}), files=files)
    assert engine.apply(gone, root).outcome is Outcome.APPLIED
    assert (tmp_path / "vllm/p").is_dir()
    assert not (tmp_path / "vllm/p/__init__.py").exists()


# paths and links


@pytest.mark.parametrize(("name", "code"), [("etc/hostname", 5), ("../etc/hostname", 2), ("/etc/hostname", 2)])
def test_t41_the_working_directory_means_nothing(tmp_path: Path, packed: Path, name: str, code: int) -> None:
    """With `/` as the working directory GNU patch takes all three for the same file."""
    here = Path("/etc/hostname")
    before = here.read_bytes() if here.exists() else b""
    root, wanted = placed(tmp_path)
    edition = (tmp_path / "series/one.patch").read_bytes().replace(b"vllm/a.py", name.encode())
    (tmp_path / "series/one.patch").write_bytes(edition)
    index = (tmp_path / "series/series.json").read_text()
    index = index.replace(three().patches[0].sha256, digest(edition) or "")
    (tmp_path / "series/series.json").write_text(index.replace('"vllm/a.py"', json.dumps(name), 1))
    untouched = snapshot(tmp_path / "root")
    assert run(packed, "apply", root, wanted, cwd=Path("/")).code == code
    assert (here.read_bytes() if here.exists() else b"") == before
    assert snapshot(tmp_path / "root") == untouched


def test_t42_no_file_can_be_named_on_the_command_line(tmp_path: Path) -> None:
    root, wanted = placed(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(("apply", root, wanted, "vllm/a.py"))
    assert caught.value.code == 2


@pytest.mark.parametrize("mode", [b"120000", b"160000", b"100755"])
def test_t43_a_patch_makes_no_links_and_no_executables(mode: bytes) -> None:
    link = b"diff --git a/vllm/l b/vllm/l\nnew file mode " + mode + b"\nindex 0000000..1111111\n"
    body = b"--- /dev/null\n+++ b/vllm/l\n@@ -0,0 +1 @@\n+/etc\n\\ No newline at end of file\n"
    with pytest.raises(errors.BadDiff, match="modes and links"):
        diff.parse(link + body, "x")


RUNNERS = {"subprocess", "pty", "multiprocessing", "asyncio", "concurrent", "ctypes", "socket", "urllib", "http"}
CALLS = {"system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "startfile", "eval", "exec"}


def test_t46_t47_t52_t84_no_other_program_can_be_started(packed: Path) -> None:
    """No `git apply --reject`, no `--unsafe-paths`, no GNU or busybox patch: what is not started decides nothing."""
    with zipfile.ZipFile(packed) as archive:
        sources = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    assert len(sources) > 20
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert not RUNNERS & {alias.name.partition(".")[0] for alias in node.names}, name
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in RUNNERS, name
            if isinstance(node, ast.Call):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                assert called not in CALLS, f"{name}: {called}"
                assert not called.startswith(("exec", "spawn")), f"{name}: {called}"


@pytest.mark.parametrize(
    "data",
    [
        b"diff --git a/vllm/a.py b/../../x.py\nsimilarity index 90%\nrename from vllm/a.py\nrename to ../../x.py\n",
        b"diff --git a/vllm/a.py b/vllm/b.py\nsimilarity index 100%\nrename from vllm/a.py\nrename to vllm/b.py\n",
        b"diff --git a/vllm/a.py b/vllm/b.py\nsimilarity index 100%\ncopy from vllm/a.py\ncopy to vllm/b.py\n",
        b"--- a/vllm/a.py\n+++ b/../../x.py\n@@ -1,2 +1,2 @@\n-a\n+b\n c\n",
        b"diff --git a/vllm/a.py x/vllm/a.py\n--- a/vllm/a.py\n+++ b/vllm/a.py\n@@ -1,2 +1,2 @@\n-a\n+b\n c\n",
    ],
)
def test_t50_renames_and_copies_are_refused_at_both_ends(data: bytes) -> None:
    with pytest.raises(errors.BadInput):
        diff.parse(data, "x")


def test_t53_an_edition_lies_in_the_series_directory_and_is_a_file(tmp_path: Path) -> None:
    placed(tmp_path)
    edition = tmp_path / "series/one.patch"
    edition.rename(tmp_path / "one.patch")
    edition.symlink_to(tmp_path / "one.patch")
    with pytest.raises(errors.BadSeries, match="regular file"):
        series.read_series(tmp_path / "series")
    index = tmp_path / "series/series.json"
    index.write_text(index.read_text().replace('"edition": "one.patch"', '"edition": "../one.patch"'))
    with pytest.raises(errors.BadSeries, match="not named"):
        series.read_series(tmp_path / "series")


def test_t54_only_local_files_with_their_sha256(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, wanted = placed(tmp_path)
    assert cli.main(("apply", root, "--series=https://example.invalid/series")) == 2
    assert "no such regular file" in capsys.readouterr().err
    (tmp_path / "series/one.patch").write_bytes(three().patches[0].data.replace(b"55", b"56"))
    assert cli.main(("apply", root, wanted)) == 5
    assert "PATCH_CHANGED" in capsys.readouterr().out


def test_t55_git_finds_the_same_files_in_an_edition(tmp_path: Path) -> None:
    files = {"vllm/two words.py": b"1\n2\n", "vllm/\u00e4.py": b"1\n2\n", "vllm/gone.py": b"1\n"}
    after = {"vllm/two words.py": b"1\n3\n", "vllm/\u00e4.py": b"1\n3\n", "vllm/gone.py": None, "vllm/new.py": b"1\n"}
    data = diff_of(files, after)
    (tmp_path / "x.patch").write_bytes(data)
    listed = git("apply", "--numstat", "-z", "x.patch", cwd=tmp_path)
    assert listed.code == 0
    theirs = {line.split("\t")[2] for line in listed.stdout.split("\0") if line}
    assert {file.path for file in diff.parse(data, "x")} == theirs == set(after)


# bytes and the file system


def test_t61_no_git_setting_changes_a_byte(tmp_path: Path, packed: Path) -> None:
    (tmp_path / ".gitconfig").write_text("[apply]\n\twhitespace = fix\n[core]\n\tautocrlf = true\n")
    after = {"vllm/a.py": FILES["vllm/a.py"].replace(b"a5 = 5\n", b"a5 = '''  \n \t'''\n")}
    root, wanted = placed(tmp_path, series_of(("spaces", after)))
    (tmp_path / "root/.gitattributes").write_text("*.py text eol=crlf\n")
    env = {**PLAIN, "HOME": str(tmp_path), "GIT_CONFIG_GLOBAL": str(tmp_path / ".gitconfig")}
    assert run(packed, "apply", root, wanted, env=env, cwd=tmp_path / "root").code == 0
    assert (tmp_path / "root/vllm/a.py").read_bytes() == after["vllm/a.py"]


@pytest.mark.usefixtures("no_fsync")
def test_t63_extended_attributes_of_the_file_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = wheel(tmp_path)
    try:
        os.setxattr(tmp_path / "vllm/a.py", "user.kiln", b"mine")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    engine.apply(three(), root)
    assert os.getxattr(tmp_path / "vllm/a.py", "user.kiln") == b"mine"
    engine.revert(root)
    assert os.getxattr(tmp_path / "vllm/a.py", "user.kiln") == b"mine"

    def none(*_: object, **__: object) -> list[str]:
        raise OSError(95, "no attributes here")

    monkeypatch.setattr(os, "listxattr", none)
    assert engine.apply(three(), root).outcome is Outcome.APPLIED


def test_t63_attributes_that_cannot_be_read_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> list[str]:
        raise OSError(5, "broken")

    root = wheel(tmp_path)
    before = snapshot(tmp_path)
    monkeypatch.setattr(os, "listxattr", broken)
    with pytest.raises(errors.CannotWrite, match="broken"):
        engine.apply(three(), root)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.parametrize("command", ["apply", "revert"])
def test_t66_files_of_another_owner_are_refused_and_named(tmp_path: Path, packed: Path, command: str) -> None:
    root, wanted = placed(tmp_path)
    assert command == "apply" or run(packed, "apply", root, wanted).code == 0
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o055)
    packed.parent.chmod(0o755)
    before = snapshot(tmp_path / "root")
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os._exit(cli.main((command, root, *((wanted,) if command == "apply" else ()))))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
    assert snapshot(tmp_path / "root") == before


@pytest.mark.usefixtures("no_fsync")
def test_t66_a_read_only_file_is_patched_and_stays_read_only(tmp_path: Path) -> None:
    """Our policy: who may write the folder may replace the file; its mode stays."""
    root = wheel(tmp_path)
    (tmp_path / "vllm/a.py").chmod(0o444)
    engine.apply(three(), root)
    assert (tmp_path / "vllm/a.py").stat().st_mode & 0o777 == 0o444
    engine.revert(root)
    assert (tmp_path / "vllm/a.py").stat().st_mode & 0o777 == 0o444


def test_t68_what_shadows_the_package_is_neither_imported_nor_patched(tmp_path: Path, packed: Path) -> None:
    _, wanted = placed(tmp_path)
    (tmp_path / "shadow/vllm").mkdir(parents=True)
    (tmp_path / "shadow/vllm/__init__.py").write_text("raise SystemExit(77)\n")
    (tmp_path / "shadow/vllm/a.py").write_bytes(FILES["vllm/a.py"])
    before = snapshot(tmp_path / "shadow")
    env = {**PLAIN, "PYTHONPATH": f"{tmp_path / 'shadow'}:{tmp_path / 'root'}"}
    argv = (sys.executable, "-S", "-B", str(packed), "apply", wanted)
    done = process.run(argv, env=env, cwd=tmp_path / "shadow")
    assert done.code == 2
    assert f"{tmp_path / 'shadow'} holds another vllm, which Python imports before that of" in done.stderr
    done = process.run((*argv, f"--root={tmp_path / 'root'}"), env=env, cwd=tmp_path / "shadow")
    assert (done.code, done.stderr) == (0, "")
    assert f"in {tmp_path / 'root'}: APPLIED" in done.stdout
    only_root = env | {"PYTHONPATH": f"{tmp_path / 'root'}:{tmp_path / 'shadow'}"}
    assert process.run(argv, env=only_root, cwd=tmp_path / "shadow").code == 0
    assert snapshot(tmp_path / "shadow") == before


@pytest.mark.parametrize("shadow", ["vllm.py", "vllm/__init__.py"])
def test_t68_a_package_earlier_on_the_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadow: str
) -> None:
    root = wheel(tmp_path / "root")
    (tmp_path / "other" / shadow).parent.mkdir(parents=True)
    (tmp_path / "other" / shadow).touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "none"), str(tmp_path / "other"), str(root.path)])
    with pytest.raises(errors.BadRoot, match="holds another vllm, which Python imports before"):
        roots.find("vllm")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "none"), str(root.path), str(tmp_path / "other")])
    assert roots.find("vllm") == root


@pytest.mark.parametrize("line", [b"GIT binary patch\nliteral 3\nKcmZ\n", b"Binary files a/x and b/x differ\n"])
def test_t69_binary_changes_are_refused(line: bytes) -> None:
    with pytest.raises(errors.BadDiff, match="binary"):
        diff.parse(b"diff --git a/x b/x\nindex 0000000..1111111\n" + line, "x")


# the environment

LEAKS = {
    "t80": {"GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/", "GIT_INDEX_FILE": "/nowhere", "GIT_PREFIX": "x/"},
    "t81": {
        "POSIXLY_CORRECT": "1",
        "PATCH_GET": "1",
        "VERSION_CONTROL": "numbered",
        "SIMPLE_BACKUP_SUFFIX": ".orig",
        "QUILT_PATCH_OPTS": "-F3",
    },
    "t82": {"LANGUAGE": "de", "LC_ALL": "de_DE.ISO-8859-1", "LANG": "de_DE.ISO-8859-1"},
    "t83": {"HOME": "/proc", "TMPDIR": "/nowhere"},
}


@pytest.mark.parametrize("row", LEAKS)
def test_t80_t81_t82_t83_the_environment_means_nothing(tmp_path: Path, packed: Path, row: str) -> None:
    root, wanted = placed(tmp_path)
    before = snapshot(tmp_path / "root", times=False)
    done = run(packed, "apply", root, wanted, env={**PLAIN, **LEAKS[row]})
    assert (done.code, done.stderr) == (0, "")
    assert contents(tmp_path / "root") == after_three()
    assert run(packed, "revert", root, env={**PLAIN, **LEAKS[row]}).code == 0
    assert snapshot(tmp_path / "root", times=False) == before


def test_t82_a_name_that_the_locale_cannot_hold_is_refused_not_mangled(tmp_path: Path, packed: Path) -> None:
    files = {**FILES, "vllm/\u00e4.py": b"x = 1\ny = 1\n"}
    wheel(tmp_path / "root", files)
    wanted = series_of(("umlaut", {"vllm/\u00e4.py": b"x = 1\ny = 2\n"}), files=files)
    series.write_series(tmp_path / "series", wanted)
    args = ("apply", f"--root={tmp_path / 'root'}", f"--series={tmp_path / 'series'}")
    env = {"PATH": "", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    before = snapshot(tmp_path / "root")
    done = process.run((sys.executable, "-S", "-B", str(packed), *args), env=env)
    assert done.code == 2
    assert "python3 -X utf8" in done.stderr
    assert snapshot(tmp_path / "root") == before
    done = process.run((sys.executable, "-S", "-B", "-X", "utf8", str(packed), *args), env=env)
    assert (done.code, done.stderr) == (0, "")


def test_t82_output_that_the_stream_cannot_hold_is_escaped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stderr", out)
    assert cli.main(("status", f"--root={tmp_path}/\u00e4")) == 2
    out.flush()
    assert b"\\xe4" in raw.getvalue()


def test_t83_a_tight_umask_no_home_and_no_git(tmp_path: Path, packed: Path) -> None:
    root, wanted = placed(tmp_path)
    line = f"umask 077; exec {sys.executable} -I -B {packed} apply {root} {wanted}"
    assert process.run(("/bin/sh", "-c", line), env={"PATH": ""}).code == 0
    for path, mode in {"vllm/sub/new/d.py": 0o644, "vllm/sub/new": 0o755, f"{INFO}/kiln-ledger.json": 0o644}.items():
        assert (tmp_path / "root" / path).stat().st_mode & 0o777 == mode


# series


def test_t96_patches_commute_exactly_when_they_share_no_file() -> None:
    assert three().needs() == {"one": (), "two": ("one",), "three": ()}
    one, two, last = three().patches
    swapped = series.Series("vllm", "0.31.0", (last, one, two))
    writes = [{w.path: w.data for w in plan.plan(made, Memory(FILES)).writes} for made in (three(), swapped)]
    assert writes[0] == writes[1]
    with pytest.raises(errors.BadSeries, match="the next expects"):
        series.Series("vllm", "0.31.0", (two, one, last))


@pytest.mark.usefixtures("no_fsync")
@pytest.mark.parametrize("path", ["vllm/b.py", INFO])
def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    root = wheel(tmp_path)
    engine.apply(three(), root)
    opened = os.open

    def refuse(name: os.PathLike[str], *args: int, **kwargs: int) -> int:
        if str(name).startswith(str(tmp_path / path)):
            raise PermissionError(13, "Permission denied", str(name))
        return opened(name, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    for act in (engine.verify, engine.status, engine.revert):
        with pytest.raises(errors.CannotWrite, match="Permission denied"):
            act(root)


def test_a_root_or_a_series_that_cannot_be_listed_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placed(tmp_path)
    opened = Path.open

    def refuse(self: Path, mode: str = "r") -> IO[Any]:
        if self.suffix == ".patch":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, mode)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(errors.BadSeries, match="Permission denied"):
        series.read_series(tmp_path / "series")

    def listed(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", listed)
        with pytest.raises(errors.BadRoot, match="Permission denied"):
            roots.find("vllm", root=tmp_path / "root")
