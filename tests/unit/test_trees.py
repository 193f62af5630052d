from __future__ import annotations

import base64
import hashlib
import io
import json
import sys
import tarfile
from typing import TYPE_CHECKING, Any

import pytest
from docker.errors import APIError, ImageNotFound, NotFound

from kiln import catalog, errors, plan, process, trees
from kiln.patching.outcomes import Outcome
from kiln.trees import answer, containers, places
from kiln.upstream import wheel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATH = "vllm/toy.py"
BEFORE = b"# one\n# two\n# three\nWORD = 'before'\n# five\n# six\n# seven\n"
AFTER = BEFORE.replace(b"before", b"after")
TARGET = {"variant": "mxfp8", "arch": "gfx942"}


def install(site: Path, version: str = "0.31.0", data: bytes = BEFORE) -> Path:
    """Put a vllm of one file into a site-packages."""
    info = f"vllm-{version}.dist-info"
    files = {PATH: data, f"{info}/METADATA": f"Metadata-Version: 2.4\nName: vllm\nVersion: {version}\n\n".encode()}
    rows = []
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        rows.append(f"{path},sha256={digest},{len(content)}\n")
    (site / info / "RECORD").write_text("".join([*rows, f"{info}/RECORD,,\n"]))
    return site


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    install(tmp_path / "venv/lib/python3.12/site-packages", "0.31.0+rocm")
    return tmp_path / "venv"


@pytest.fixture
def run(toy_catalog: Path) -> Callable[..., trees.Answer]:
    """Return run(verb, where, wanted) on the toy's catalog."""

    def run(verb: trees.Verb, where: dict[str, str], wanted: dict[str, str] | None = None) -> trees.Answer:
        return trees.run(verb, trees.Where(**where), trees.Wanted(**(wanted or {})), catalog.load(toy_catalog))

    return run


# where the tree is


@pytest.mark.parametrize(
    "inside",
    ["", "lib/python3.12/site-packages", "lib64/python3.11/site-packages", "usr/local/lib/python3.12/dist-packages"],
)
def test_the_site_packages_is_found_in_a_venv_or_given(tmp_path: Path, inside: str) -> None:
    site = install(tmp_path / inside)
    assert places.site(tmp_path, "vllm") == site.resolve()


def test_a_linked_lib64_is_the_same_site(venv: Path) -> None:
    (venv / "lib64").symlink_to("lib")
    assert places.site(venv, "vllm") == venv / "lib/python3.12/site-packages"


def test_two_sites_are_named(venv: Path) -> None:
    install(venv / "lib/python3.11/site-packages")
    with pytest.raises(errors.BadInput) as caught:
        places.site(venv, "vllm")
    assert caught.value.message.splitlines() == [
        f"--root {venv}: vllm is installed in it twice:",
        f"  {venv}/lib/python3.11/site-packages",
        f"  {venv}/lib/python3.12/site-packages",
    ]


def test_a_folder_without_vllm_or_no_folder(tmp_path: Path) -> None:
    with pytest.raises(errors.BadInput, match=r"no vllm-\*\.dist-info in it, nor in a lib/python3"):
        places.site(tmp_path, "vllm")
    with pytest.raises(errors.BadInput, match="no such folder"):
        places.site(tmp_path / "none", "vllm")


# what was asked


@pytest.mark.parametrize(
    ("verb", "where", "message"),
    [
        ("apply", {}, "which tree? --root DIR (a venv or its site-packages), --container NAME"),
        ("verify", {}, "which tree? --root DIR (a venv or its site-packages), --container NAME or --image REF"),
        ("status", {"root": "a", "image": "b"}, "--root and --image: name one tree"),
        ("apply", {"image": "b"}, "--image: apply would not change an image, only a container made of it"),
        ("revert", {"image": "b"}, "--image: revert would not change an image, only a container made of it"),
        ("apply", {"root": "a"}, "which series? --variant and --arch, or --series DIR"),
    ],
)
def test_a_question_that_cannot_be_answered(
    run: Callable[..., trees.Answer], verb: str, where: dict[str, str], message: str
) -> None:
    with pytest.raises(errors.BadInput) as caught:
        run(verb, where)
    assert caught.value.message == message


def test_two_series_are_refused(run: Callable[..., trees.Answer]) -> None:
    with pytest.raises(errors.BadInput, match="--series names a series"):
        run("verify", {"root": "a"}, {"series": "b", "release": "0.31.0"})


# a folder


def test_apply_twice_verify_and_revert_in_a_venv(run: Callable[..., trees.Answer], venv: Path) -> None:
    where, file = {"root": str(venv)}, venv / "lib/python3.12/site-packages" / PATH
    assert run("status", where).report.outcome is Outcome.UNKNOWN
    first = run("apply", where, TARGET)
    assert (first.report.outcome, first.exit_code) == (Outcome.APPLIED, 0)
    assert (first.version, first.release) == ("0.31.0+rocm", "0.31.0")
    assert (first.tree, first.root) == (str(file.parents[1]), str(file.parents[1]))
    assert file.read_bytes() == AFTER
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in venv.rglob("*") if path.is_file()}
    assert run("apply", where, TARGET).report.outcome is Outcome.ALREADY_APPLIED
    assert run("verify", where, TARGET).exit_code == 0
    assert run("verify", where).exit_code == 0
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in venv.rglob("*") if path.is_file()}
    reverted = run("revert", where)
    assert (reverted.report.outcome.value, reverted.exit_code) == ("REVERTED", 0)
    assert file.read_bytes() == BEFORE


def test_the_text_is_the_engines_json(run: Callable[..., trees.Answer], venv: Path) -> None:
    made = run("apply", {"root": str(venv)}, TARGET)
    data = json.loads(made.text)
    assert (data["command"], data["exit_code"], data["version"]) == ("apply", 0, "0.31.0+rocm")
    assert data["report"] == made.report.to_json()


def test_a_tampered_file_is_named(run: Callable[..., trees.Answer], venv: Path) -> None:
    run("apply", {"root": str(venv)}, TARGET)
    (venv / "lib/python3.12/site-packages" / PATH).write_bytes(AFTER + b"#\n")
    found = run("verify", {"root": str(venv)})
    assert (found.report.outcome, found.exit_code) == (Outcome.TARGET_MODIFIED, 5)


def test_a_release_that_the_catalog_does_not_have_is_refused(run: Callable[..., trees.Answer], tmp_path: Path) -> None:
    install(tmp_path, "0.30.1")
    with pytest.raises(errors.BadInput, match=r"unknown release '0\.30\.1'"):
        run("apply", {"root": str(tmp_path)}, TARGET)


def test_a_release_that_the_tree_does_not_hold_is_refused(run: Callable[..., trees.Answer], venv: Path) -> None:
    with pytest.raises(errors.BadInput, match=r"holds vllm 0\.31\.0\+rocm, the series is for 0\.33\.0"):
        run("apply", {"root": str(venv)}, TARGET | {"release": "0.33.0"})


def test_a_packed_series_is_applied(
    run: Callable[..., trees.Answer], toy_catalog: Path, venv: Path, tmp_path: Path
) -> None:
    made = packed(toy_catalog, tmp_path / "out")
    assert (made.folder, made.release, made.patches) == (str(tmp_path / "out"), "0.31.0", ("toy",))
    assert made.sha256 == hashlib.sha256((tmp_path / "out/kiln-patch.pyz").read_bytes()).hexdigest()
    assert packed(toy_catalog, tmp_path / "out") == made
    found = run("apply", {"root": str(venv)}, {"series": str(tmp_path / "out/series")})
    assert found.report.outcome is Outcome.APPLIED


def packed(root: Path, out: Path | str) -> Any:
    loaded = catalog.load(root)
    made = plan.make(loaded, variant="mxfp8", arch="gfx942")
    pin = made.wheel
    wheel.keep(pin, PATH, BEFORE, cache=loaded.state / "wheels")
    return trees.pack(made, loaded, str(out))


def test_a_pack_never_lands_among_other_files(toy_catalog: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(errors.BadInput, match=r"holds mine\.txt"):
        packed(toy_catalog, out)
    with pytest.raises(errors.BadInput, match="not a folder"):
        packed(toy_catalog, out / "mine.txt")
    (out / "mine.txt").unlink()
    (out / "series").mkdir()
    (out / "series/other.py").touch()
    with pytest.raises(errors.BadInput, match=r"not a series directory, it holds other\.py"):
        packed(toy_catalog, out)
    with pytest.raises(errors.BadInput, match="--out is missing"):
        packed(toy_catalog, "")


def test_a_series_folder_that_is_none(run: Callable[..., trees.Answer], venv: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.BadInput, match=r"none/series\.json: no such regular file"):
        run("verify", {"root": str(venv)}, {"series": str(tmp_path / "none")})


def test_another_series_is_refused_with_tasks_that_change_it(
    run: Callable[..., trees.Answer], toy_catalog: Path, venv: Path
) -> None:
    where = {"root": str(venv)}
    run("apply", where, TARGET)
    described = toy_catalog / "patches/toy/patch.yaml"
    described.write_text(described.read_text().replace('"==0.31.0"', '"<0.31.0"'))
    found = run("apply", where, TARGET)
    assert (found.report.outcome, found.exit_code) == (Outcome.STALE_RESIDUE, 5)
    flags = f"--root={venv}"
    again = f"./inv patch.revert {flags} && ./inv patch.apply {flags} --variant=mxfp8 --arch=gfx942"
    assert found.report.hint.endswith(f"; {again}")
    assert json.loads(found.text)["report"]["hint"] == found.report.hint


def test_no_engine_is_exit_code_3(run: Callable[..., trees.Answer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kiln.engine.find", lambda _: None)
    with pytest.raises(errors.Missing, match="no Docker engine answers") as caught:
        run("status", {"container": "x"})
    assert caught.value.hint == "./inv engine.up"


# what the engine says


def read(stdout: str, code: int = 0, stderr: str = "") -> trees.Answer:
    said = process.Result(code=code, stdout=stdout, stderr=stderr)
    return answer.read(("/x/kiln-patch.pyz", "verify"), said, tree="a tree", again="again")


def failure(exit_code: int, files: list[dict[str, object]]) -> str:
    error = {"message": "it is so", "hint": "do this", "files": files}
    return json.dumps({"schema": 1, "exit_code": exit_code, "error": error})


@pytest.mark.parametrize(("code", "kind"), [(2, errors.BadInput), (5, errors.NotApplied)])
def test_an_error_of_the_engine_keeps_its_code_and_hint(code: int, kind: type[errors.KilnError]) -> None:
    row: dict[str, object] = {
        "path": "a.py",
        "outcome": "HALF_APPLIED",
        "expected": "1",
        "found": "2",
        "hunk": None,
        "hint": "",
    }
    with pytest.raises(kind) as caught:
        read(failure(code, [row]), code)
    assert caught.value.exit_code == code
    assert caught.value.message == "a tree: it is so\n  a.py: HALF_APPLIED: expected 1, found 2"
    assert caught.value.hint == "do this"


@pytest.mark.parametrize(
    "stdout",
    ["", "no json", "[]", "{}", '{"schema": 2}', '{"schema": 1, "report": {"hint": 1}}', '{"schema": 1, "error": 1}'],
)
def test_no_answer_is_exit_code_4(stdout: str) -> None:
    with pytest.raises(errors.CommandFailed, match="a tree: kiln-patch"):
        read(stdout, 1, "Traceback")


# containers, with an engine that says what it is told to


class FakeApi:
    """The calls of the SDK's low-level client behind an exec: each answer is an exit code, None runs for ever."""

    def __init__(self, *answers: int | Exception | None) -> None:
        self.answers, self.argv = list(answers), list[list[str]]()
        self.left = 0

    def exec_create(self, _: str, argv: list[str], **options: object) -> dict[str, str]:
        assert options == {"stdout": False, "stderr": False, "user": "0", "workdir": "/"}
        self.argv.append(argv)
        return {"Id": "1"}

    def exec_start(self, _: str, **options: bool) -> None:
        assert options == {"detach": True}
        self.left = 2
        if isinstance(self.answers[0], Exception):
            error, *self.answers = self.answers
            assert isinstance(error, Exception)
            raise error

    def exec_inspect(self, _: str) -> dict[str, object]:
        self.left -= 1
        if self.left or self.answers[0] is None:
            return {"Running": True, "ExitCode": None}
        return {"Running": False, "ExitCode": self.answers.pop(0)}


class FakeContainer:
    """A container that ends each exec with the next of `answers`, and holds `files`."""

    def __init__(self, *answers: int | Exception | None) -> None:
        self.id, self.status, self.name = "1", "running", "one"
        self.client = type("Client", (), {"api": FakeApi(*answers)})()
        self.archives: list[bytes] = []
        self.files: dict[str, bytes] = {}
        self.claimed: int | None = None
        self.removed = 0
        self.start_error: Exception | None = None
        self.put_error: Exception | None = None

    @property
    def api(self) -> FakeApi:
        found: FakeApi = self.client.api
        return found

    def put_archive(self, path: str, data: bytes) -> None:
        assert path == "/"
        if self.put_error:
            raise self.put_error
        self.archives.append(data)

    def get_archive(self, path: str) -> tuple[list[bytes], dict[str, int]]:
        if path not in self.files:
            raise NotFound("no")
        data = self.files[path]
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            row = tarfile.TarInfo(path.rpartition("/")[2])
            row.size = len(data)
            tar.addfile(row, io.BytesIO(data))
        size = len(data) if self.claimed is None else self.claimed
        return [archive.getvalue()], {"size": size}

    def start(self) -> None:
        if self.start_error:
            raise self.start_error

    def remove(self, **options: bool) -> None:
        assert options == {"force": True, "v": True}
        self.removed += 1


def client(container: FakeContainer | Exception) -> Any:
    """Return an SDK client that knows one container, or raises."""

    def get(*_: object, **__: object) -> FakeContainer:
        if isinstance(container, Exception):
            raise container
        return container

    listed = [type("Other", (), {"name": name})() for name in ("two", "one")]
    found = type("Containers", (), {"get": get, "create": get, "list": lambda _: listed})()
    return type("Client", (), {"containers": found})()


def inside(container: FakeContainer) -> containers.Inside:
    return containers.Inside(container=container, name="container one", folder="/.kiln-x")


def test_files_arrive_as_roots_and_readable(tmp_path: Path) -> None:
    (tmp_path / "series").mkdir(mode=0o700)
    (tmp_path / "series/a.patch").write_bytes(b"x")
    (tmp_path / "series/a.patch").chmod(0o600)
    container = FakeContainer()
    assert inside(container).send(tmp_path / "series") == "/.kiln-x/series"
    with tarfile.open(fileobj=io.BytesIO(container.archives[0])) as archive:
        rows = [(member.name, member.mode, member.uid, member.uname) for member in archive.getmembers()]
    assert rows == [
        (".kiln-x", 0o755, 0, ""),
        (".kiln-x/series", 0o755, 0, ""),
        (".kiln-x/series/a.patch", 0o644, 0, ""),
    ]


def test_a_program_is_bounded_inside_and_its_output_read_back(tmp_path: Path) -> None:
    container = FakeContainer(5)
    container.files = {"/.kiln-x/stdout": b"out", "/.kiln-x/stderr": b"err\xff"}
    found = inside(container).run(("/x.pyz", "status"), seconds=7)
    assert found == process.Result(code=5, stdout="out", stderr="err\ufffd")
    (argv,) = container.api.argv
    assert argv[:4] == ["python3", "-I", "-B", "-c"]
    assert argv[5:] == ["7", "/.kiln-x", "/x.pyz", "status"]
    script = "print('said', flush=True); import time; time.sleep(20)"
    ran = process.run((sys.executable, *argv[1:5], "1", str(tmp_path), "-c", script), timeout_s=10)
    assert (ran.code, ran.stdout) == (-14, "")
    assert (tmp_path / "stdout").read_text() == "said\n"


def test_a_program_that_said_nothing() -> None:
    assert inside(FakeContainer(1)).run(("x",), seconds=7) == process.Result(code=1, stdout="", stderr="")


def test_a_program_that_does_not_end() -> None:
    with pytest.raises(errors.CommandFailed, match=r"container one: no answer within 0\.05 s"):
        inside(FakeContainer(None)).execute("", seconds=0.05)


@pytest.mark.parametrize("claimed", [None, 10])
def test_a_flood_is_cut_off(claimed: int | None) -> None:
    container = FakeContainer(0)
    container.files, container.claimed = {"/.kiln-x/stdout": b"x" * 4_100_000}, claimed
    with pytest.raises(errors.CommandFailed, match="printed more than 4000000 bytes"):
        inside(container).run(("x",), seconds=5)


def test_a_container_that_takes_no_files_is_shown(tmp_path: Path) -> None:
    container = FakeContainer()
    container.put_error = APIError("no", explanation="rootfs is marked read-only")
    with pytest.raises(errors.CommandFailed, match="container one: rootfs is marked read-only"):
        inside(container).send(tmp_path)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (APIError("no", explanation='exec: "python3": not found'), 'cannot be started: exec: "python3": not found'),
        (127, "container one: no python3 in it"),
        (126, "container one: no python3 in it"),
        (96, "its python3 is older than 3.10, which the patch engine needs"),
        (1, "its python3 does not start: exit code 1"),
    ],
)
def test_a_container_without_a_python_that_fits(said: int | Exception, message: str) -> None:
    container = FakeContainer(said)
    with pytest.raises(errors.Missing, match=message), containers.running(client(container), "one"):
        pytest.fail("was opened")
    assert len(container.api.argv) == 1
    assert not container.archives


def test_the_check_of_python_and_the_removal_do_what_they_say(tmp_path: Path) -> None:
    container = FakeContainer(0, 0)
    with containers.running(client(container), "one") as place:
        pass
    check, remove = (argv[4] for argv in container.api.argv)
    assert process.succeeds((sys.executable, "-c", check))
    assert container.api.argv[1][5:] == [place.folder]
    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "x").touch()
    for _ in range(2):
        assert process.succeeds((sys.executable, "-c", remove, str(folder)))
        assert not folder.exists()


def test_our_folder_goes_in_any_case() -> None:
    container = FakeContainer(0, APIError("no", explanation="gone"), 0)
    with pytest.raises(errors.Missing, match="gone"), containers.running(client(container), "one") as place:
        place.execute("", seconds=1)
    assert (place.name, place.root) == ("container one", "")
    assert container.api.argv[-1][-1] == place.folder


def test_a_folder_that_stays_is_an_error() -> None:
    with (
        pytest.raises(errors.CommandFailed, match=r"/\.kiln-[0-9a-f]{12} could not be removed from it: exit code 1"),
        containers.running(client(FakeContainer(0, 1)), "one"),
    ):
        pass


def test_a_container_that_is_not_there_or_does_not_run() -> None:
    with (
        pytest.raises(errors.Missing, match="container x: no such container; running: one, two"),
        containers.running(client(NotFound("no")), "x"),
    ):
        pytest.fail("was opened")
    container = FakeContainer()
    container.status = "exited"
    with (
        pytest.raises(errors.Missing, match="container one: is exited, not running"),
        containers.running(client(container), "one"),
    ):
        pytest.fail("was opened")


def test_a_container_of_an_image_is_removed() -> None:
    container = FakeContainer(0)
    with containers.made_of(client(container), "i") as place:
        assert (place.name, container.removed) == ("image i", 0)
    assert container.removed == 1


def test_an_image_without_python_is_exit_code_3_and_leaves_nothing() -> None:
    container = FakeContainer()
    container.start_error = APIError("no", explanation='exec: "python3": executable file not found')
    with (
        pytest.raises(errors.Missing, match='image i: its python3 cannot be started: exec: "python3"'),
        containers.made_of(client(container), "i"),
    ):
        pytest.fail("was opened")
    assert container.removed == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImageNotFound("no"), "image i: the engine does not have it"),
        (APIError("no", explanation="invalid reference format"), "image i: invalid reference format"),
    ],
)
def test_an_image_that_is_not_there(error: Exception, message: str) -> None:
    with pytest.raises(errors.Missing, match=message), containers.made_of(client(error), "i"):
        pytest.fail("was opened")
