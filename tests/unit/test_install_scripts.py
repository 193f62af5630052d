"""The scripts that run inside an image: on a folder of packages, with nothing but the standard library."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uv

from kiln import process

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "images/install"
EPOCH = 1735689600
COMPARE = """
import protect, sys
before = protect.state()
exec(sys.argv[1])
try:
    protect.compare(before, protect.state(), "evil 1.0")
except protect.Refused as error:
    print(error)
"""


def put(site: Path, name: str, version: str, files: dict[str, str]) -> None:
    """Install a distribution as pip does, its files listed in RECORD."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    held = files | {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    for path, text in held.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    (site / info / "RECORD").write_text("".join(f"{path},,\n" for path in (*held, f"{info}/RECORD")))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return the packages of a CUDA image."""
    site = tmp_path / "site"
    put(site, "torch", "2.13.0+cu130", {"torch/__init__.py": "torch", "torch/lib/libtorch.so": "ELF"})
    put(site, "triton", "3.7.1", {"triton/__init__.py": "triton"})
    put(site, "nvidia-nccl-cu13", "2.30.7", {"nvidia/nccl/lib/libnccl.so.2": "ELF nccl"})
    return site


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Callable[..., process.Result]:
    """Return a function that runs code with the scripts and the site, and nothing else, on sys.path."""

    def run(code: str, *args: str, **settings: str) -> process.Result:
        env = {"PYTHONPATH": f"{SCRIPTS}:{site}", "HOME": str(tmp_path / "home"), "PATH": os.environ["PATH"]}
        return process.run((sys.executable, "-S", "-B", "-c", code, *args), env=env | settings)

    return run


def facts(run: Callable[..., process.Result], **settings: str) -> dict[str, Any]:
    said = run("import facts, json; print(json.dumps(facts.facts()))", **settings)
    assert said.code == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    return found


# protected packages


def test_nothing_that_changed_is_nothing_to_say(run: Callable[..., process.Result]) -> None:
    assert run(COMPARE, "pass") == process.Result(code=0, stdout="", stderr="")


@pytest.mark.parametrize(
    "case",
    [
        ("torch", "changed", "torch/__init__.py", "{path}.write_text('other')"),
        ("torch", "removed", "torch/lib/libtorch.so", "{path}.unlink()"),
        # listed by nobody, and imported all the same
        ("torch", "added", "torch/evil.py", "{path}.write_text('')"),
        ("torch", "changed", "torch/lib/libtorch.so", "{path}.unlink(); {path}.symlink_to('/etc/hostname')"),
        ("triton", "changed", "triton/__init__.py", "{path}.write_text('tritoN')"),
        ("RCCL or NCCL", "changed", "nvidia/nccl/lib/libnccl.so.2", "{path}.write_text('ELF ncc!')"),
        (
            "RCCL or NCCL",
            "added",
            "_rocm_sdk_devel/lib/librccl.so",
            "{path}.parent.mkdir(parents=True); {path}.touch()",
        ),
    ],
)
def test_each_change_names_package_and_file(
    run: Callable[..., process.Result], site: Path, case: tuple[str, str, str, str]
) -> None:
    package, how, path, code = case
    changing = f"from pathlib import Path; {code.format(path=f'Path({str(site / path)!r})')}"
    said = run(COMPARE, changing)
    assert said.stderr == ""
    assert said.stdout == f"{package} is protected, and evil 1.0 has {how} {site / path}\n"


@pytest.mark.parametrize(
    ("gone", "name"), [("torch", "torch"), ("triton", "triton"), ("nvidia", "RCCL or NCCL")], ids=str
)
def test_what_cannot_be_found_cannot_be_proven(
    run: Callable[..., process.Result], site: Path, gone: str, name: str
) -> None:
    for path in site.glob(f"{gone}*"):
        shutil.rmtree(path)
    said = run("import protect; protect.state()")
    assert said.code == 1
    assert said.stderr.splitlines()[-1].endswith(f"{name}: not found, so nothing can prove that it stays as it is")


def test_triton_is_found_under_the_names_of_its_builds(run: Callable[..., process.Result], site: Path) -> None:
    for path in site.glob("triton*"):
        shutil.rmtree(path)
    put(site, "pytorch-triton-rocm", "3.6.0", {"triton/__init__.py": "triton"})
    said = run("import protect; print(sorted(protect.state()))")
    assert said.stdout == "['RCCL or NCCL', 'pytorch-triton-rocm', 'torch']\n"


# installs


def wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Write a wheel and return its sha256."""
    info = f"{name}-{version}.dist-info"
    held = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [f"{path},{_hashed(text.encode())},{len(text)}" for path, text in held.items()]
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in (held | {f"{info}/RECORD": "\n".join([*rows, f"{info}/RECORD,,", ""])}).items():
            archive.writestr(member, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hashed(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


INSTALL = """
import install, json, sys
package, folder, target = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
install.install(package, sys.argv[4], [folder], target=target)
"""


@pytest.mark.parametrize("pinned", [True, False], ids=["by the pinned hash", "built here"])
def test_a_wheel_is_installed_without_a_trace_of_how(
    run: Callable[..., process.Result], tmp_path: Path, *, pinned: bool
) -> None:
    sha256 = wheel(tmp_path / "wheels", "tiny", "1.0", {"tiny.py": "x = 1\n"})
    package = {"name": "tiny", "version": "1.0", "sha256": sha256 if pinned else ""}
    said = run(INSTALL, json.dumps(package), str(tmp_path / "wheels"), str(tmp_path / "out"), uv.find_uv_bin())
    assert (said.code, said.stderr) == (0, "")
    info = tmp_path / "out/tiny-1.0.dist-info"
    assert (tmp_path / "out/tiny.py").read_text() == "x = 1\n"
    assert sorted(path.name for path in info.iterdir()) == ["METADATA", "RECORD", "WHEEL"]


def test_a_wheel_of_another_hash_is_refused(run: Callable[..., process.Result], tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "tiny", "1.0", {"tiny.py": "x = 1\n"})
    package = json.dumps({"name": "tiny", "version": "1.0", "sha256": "0" * 64})
    said = run(INSTALL, package, str(tmp_path / "wheels"), str(tmp_path / "out"), uv.find_uv_bin())
    assert said.code == 1
    assert "Refused: tiny 1.0 cannot be installed" in said.stderr.splitlines()[-1]
    assert not (tmp_path / "out/tiny.py").exists()


def test_two_built_wheels_are_one_too_many(run: Callable[..., process.Result], tmp_path: Path) -> None:
    wheel(tmp_path / "wheels", "tiny", "1.0", {})
    wheel(tmp_path / "wheels", "tiny", "1.1", {})
    package = json.dumps({"name": "tiny", "version": "1.0", "sha256": ""})
    said = run(INSTALL, package, str(tmp_path / "wheels"), str(tmp_path / "out"), uv.find_uv_bin())
    assert said.stderr.splitlines()[-1].endswith("tiny: 2 wheels were built, and one was expected")


@pytest.mark.parametrize(
    ("there", "problem"),
    [
        ({"tiny": "1.0"}, ""),
        ({"tiny": "1.0+rocm7.2"}, ""),
        ({"tiny": "0.9"}, "tiny 1.0 was asked for, and 0.9 is installed"),
        ({}, "tiny 1.0 was asked for, and none is installed"),
        ({"tiny": "1.0", "Tiny": "0.9"}, "tiny is installed 2 times: 0.9, 1.0"),
    ],
    ids=str,
)
def test_the_version_asked_for_is_there_once(
    run: Callable[..., process.Result], site: Path, there: dict[str, str], problem: str
) -> None:
    for name, version in there.items():
        put(site, name, version, {})
    said = run('import install; install.check({"name": "tiny", "version": "1.0"})')
    assert said.stderr.splitlines()[-1:] == ([f"protect.Refused: {problem}"] if problem else [])


def test_what_another_aiter_compiled_is_forgotten(
    run: Callable[..., process.Result], site: Path, tmp_path: Path
) -> None:
    put(site, "amd-aiter", "0.1.99", {"aiter/__init__.py": "", "aiter/jit/own.so": "ELF"})
    stale = ("site/aiter/jit/other.so", "site/aiter/jit/build/x/y.o", "home/.aiter/jit/z.so", "jit/w.so")
    for name in stale:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("of another AITER")
    said = run("import install; install.forget_aiter()", AITER_JIT_DIR=str(tmp_path / "jit"))
    assert (said.code, said.stderr) == (0, "")
    assert sorted(str(path.relative_to(site)) for path in (site / "aiter").rglob("*")) == [
        "aiter/__init__.py",
        "aiter/jit",
        "aiter/jit/own.so",
    ]
    assert not (tmp_path / "home/.aiter").exists()
    assert not (tmp_path / "jit").exists()


# a build from source

BUILD = """
import build, facts, install, protect, sys
from pathlib import Path
facts.INSTALLS = Path(sys.argv[1]) / "installs.json"
try:
    build.main("none", "none", sys.argv[2], sys.argv[3])
except protect.Refused as error:
    sys.exit(install.refused(error))
"""


@pytest.mark.parametrize(
    "case",
    [
        ("import os; open({out!r} + '/tiny-1.0-' + os.environ['GPU_ARCHS'] + '.whl', 'w')", ""),
        ("raise SystemExit(3)", "tiny 1.0 cannot be built: setup.py ends with 3, and says why above"),
        ("pass", "tiny 1.0 was to be built, and nothing was"),
        ("open({out!r} + '/tiny-1.1-py3.whl', 'w')", "tiny 1.0 was to be built, and tiny-1.1-py3.whl was"),
        ("open({out!r} + '/tiny-1.0.1-py3.whl', 'w')", "tiny 1.0 was to be built, and tiny-1.0.1-py3.whl was"),
        (
            "open({out!r} + '/tiny-1.0-py3.whl', 'w'); open({site!r} + '/triton/__init__.py', 'w')",
            "triton is protected, and the build of tiny has changed {site}/triton/__init__.py",
        ),
    ],
    ids=["built", "fails", "nothing", "another version", "a longer version", "replaces triton"],
)
def test_a_source_makes_the_one_wheel_asked_for_and_changes_nothing(
    run: Callable[..., process.Result], site: Path, tmp_path: Path, case: tuple[str, str]
) -> None:
    setup, problem = case
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    (source / "setup.py").write_text(setup.format(out=str(out), site=str(site)))
    asked = {"source": {"name": "tiny", "version": "1.0", "env": {"GPU_ARCHS": "gfx950"}, "requires": []}}
    (tmp_path / "installs.json").write_text(json.dumps(asked))
    said = run(BUILD, str(tmp_path), str(source), str(out))
    if problem:
        assert (said.code, said.stdout) == (6, f"install: {problem.format(site=site)}\n")
    else:
        assert (said.code, said.stdout, said.stderr) == (0, "", "")
        assert [path.name for path in out.iterdir()] == ["tiny-1.0-gfx950.whl"]


# facts


def test_the_facts_of_a_cuda_image(run: Callable[..., process.Result]) -> None:
    found = facts(run, CUDA_VERSION="13.0.3", TORCH_CUDA_ARCH_LIST="9.0 10.0")
    assert found["distributions"] == {"nvidia-nccl-cu13": "2.30.7", "torch": "2.13.0+cu130", "triton": "3.7.1"}
    assert (found["cuda"], found["rocm"], found["rocm_layout"]) == ("13.0.3", "", "")
    assert found["gpu_arches"] == ["10.0", "9.0"]
    assert found["installed_twice"] == []
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["libc"].startswith("glibc ")


def test_the_facts_of_rocm_from_wheels(run: Callable[..., process.Result], site: Path) -> None:
    put(site, "rocm", "10.0.0", {"_rocm_sdk_libraries_gfx94X_dcgpu/lib/rocblas/library/Kernels_gfx942.hsaco": ""})
    found = facts(run, PYTORCH_ROCM_ARCH="")
    assert (found["rocm"], found["rocm_layout"], found["gpu_arches"]) == ("10.0.0", "wheels", ["gfx942"])
    assert facts(run, PYTORCH_ROCM_ARCH="gfx942;gfx950")["gpu_arches"] == ["gfx942", "gfx950"]


def test_what_was_installed_says_what_it_needs(run: Callable[..., process.Result], site: Path, tmp_path: Path) -> None:
    put(site, "tiny", "1.0", {})
    metadata = site / "tiny-1.0.dist-info/METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: numpy>=2.0\nRequires-Dist: flydsl==0.2.0\n")
    put(site, "flydsl", "0.2.0", {})
    packages = [{"name": "flydsl"}, {"name": "Tiny"}]
    (tmp_path / "installs.json").write_text(json.dumps({"packages": packages}))
    code = "import facts, json; facts.INSTALLS = facts.Path(sys.argv[1]); print(json.dumps(facts.facts()['requires']))"
    said = run(f"import sys; {code}", str(tmp_path / "installs.json"))
    assert json.loads(said.stdout) == {"flydsl": [], "tiny": ["flydsl==0.2.0", "numpy>=2.0"]}
    assert facts(run)["requires"] == {}


def test_a_distribution_that_is_there_twice_is_a_fact(run: Callable[..., process.Result], site: Path) -> None:
    put(site, "Torch", "2.12.0", {})
    assert facts(run)["installed_twice"] == ["torch"]


# the end of an image


def test_everything_that_changed_has_one_time_and_nothing_else(
    run: Callable[..., process.Result], tmp_path: Path
) -> None:
    top = tmp_path / "top"
    (top / "old").mkdir(parents=True)
    (top / "old/file").write_text("old")
    before = (top / "old/file").stat().st_mtime_ns
    code = """
import settle, sys, time
from pathlib import Path
time.sleep(0.02)
top, since = Path(sys.argv[1]), settle.mark()
(top / "new").mkdir()
(top / "new/file").write_text("new")
(top / "link").symlink_to("nowhere")
settle.settle(since, str(top))
"""
    said = run(code, str(top), SOURCE_DATE_EPOCH=str(EPOCH))
    assert (said.code, said.stderr) == (0, "")
    times = {path.relative_to(top).as_posix(): path.lstat().st_mtime for path in top.rglob("*")}
    old = {name: times.pop(name) for name in ("old", "old/file")}
    assert times == {"new": EPOCH, "new/file": EPOCH, "link": EPOCH}
    assert EPOCH not in old.values()
    assert (top / "old/file").stat().st_mtime_ns == before
    assert top.stat().st_mtime == EPOCH


def test_caches_are_found_in_the_home_and_where_settings_say(
    run: Callable[..., process.Result], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    for name in (".triton/cache", ".cache/vllm/torch_compile_cache", ".cache/flashinfer", ".cache/huggingface"):
        (home / name).mkdir(parents=True)
    (tmp_path / "inductor").mkdir()
    (home / ".triton/dump").symlink_to(tmp_path)
    code = "import finish; print('\\n'.join(str(path) for path in finish.caches()))"
    said = run(code, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "inductor"), VLLM_CACHE_ROOT="")
    found = [Path(line) for line in said.stdout.splitlines() if line.startswith(str(tmp_path))]
    assert found == [home / ".cache/flashinfer", home / ".cache/vllm", home / ".triton/cache", tmp_path / "inductor"]


def test_the_two_dockerfiles_differ_in_their_first_line_only() -> None:
    rocm, cuda = ((ROOT / f"images/{kind}/Dockerfile").read_text().splitlines() for kind in ("rocm", "cuda"))
    assert rocm[0].startswith("# A target on ROCm: ")
    assert cuda == [rocm[0].replace("ROCm", "CUDA"), *rocm[1:]]
