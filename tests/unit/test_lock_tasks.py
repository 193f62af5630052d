"""`./inv lock` as a person and a program see it: tables, JSON, exit codes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import fake_index
import pytest
from lock_world import CUDA, FIRST, ROCM, R, World, put_index

from kiln import __version__
from kiln.tasks import namespace, program

if TYPE_CHECKING:
    from collections.abc import Callable

    Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ran(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Ran:
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)  # Invoke changes it

    def run(*argv: str) -> tuple[int, str, str]:
        made = program.KilnProgram(name="Kiln", binary="kiln", version=__version__, namespace=namespace())
        code: object = 0
        try:
            made.run(["kiln", *argv])
        except SystemExit as end:
            code = end.code
        assert isinstance(code, int)
        return code, *capsys.readouterr()

    return run


def unreachable(world: World) -> None:
    (world.root / "kiln.yaml").write_text("mirrors:\n  docker.io/vllm: 127.0.0.1:9/vllm\n", encoding="utf-8")


def test_what_is_locked_is_a_table_and_a_sentence(ran: Ran, world: World) -> None:
    code, out, err = ran("lock", "--release", R)
    assert code == 0
    assert err.startswith(f"… ask {world.registry.host} about 2 images\n")
    rows = [line.split("  ") for line in out.splitlines()]
    assert [[cell.strip() for cell in row if cell] for row in rows[1:3]] == [
        [name, world.manifests[name.rsplit("/", 1)[1].partition(":")[0]][:19], f"its registry, {FIRST}", "not read"]
        for name in (ROCM, CUDA)
    ]
    assert out.splitlines()[-1] == "2 images: 2 confirmed by a registry; wrote images/lock.json"
    assert ran("lock", "--release", R)[1].splitlines()[-1].endswith("; images/lock.json is as it was")


def test_a_finding_is_exit_code_6_with_what_to_type(ran: Ran, world: World) -> None:
    assert ran("lock", "--release", R)[0] == 0
    world.tag(world.image("vllm-openai", b"second"))
    code, out, err = ran("lock", "--release", R)
    assert (code, err.splitlines()[-1]) == (6, "✗ 1 finding")
    assert f"\n{CUDA}: the tag moved: index {world.index} (confirmed " in out
    assert f"  next: look why; then take what the tag holds: ./inv lock --accept-moved {CUDA}\n" in out
    assert ran("lock", "--accept-moved", CUDA, "--release", R)[0] == 0


def test_as_json_it_is_json_and_nothing_else(ran: Ran, world: World) -> None:
    code, out, _ = ran("lock", "--release", R, "--json", "--dry-run")
    assert code == 0
    data = json.loads(out)
    assert {key: value for key, value in data.items() if key != "images"} == {
        "changed": [ROCM, CUDA],
        "damaged": [],
        "undone": [],
        "findings": [],
        "new_releases": [],
        "silent": [],
        "unconfirmed": [],
        "unknown": [],
        "written": False,
    }
    manifest = {"digest": world.manifests["vllm-openai"], "confidence": "registry", "confirmed": FIRST}
    assert data["images"][CUDA]["manifest"] == manifest


def test_a_silent_registry_is_no_failure_unless_asked_to_be(ran: Ran, world: World) -> None:
    unreachable(world)
    code, out, _ = ran("lock", "--release", R)
    assert code == 0
    silent = [line for line in out.splitlines() if line.startswith("127.0.0.1:9: ")]
    assert len(silent) == 1
    assert "no answer for 2 images: " in silent[0]
    assert out.splitlines()[-1].startswith("2 images: 0 confirmed by a registry, 2 without a digest; ")
    code, _, err = ran("lock", "--release", R, "--strict")
    assert (code, err.splitlines()[-2]) == (3, "✗ no answer from 127.0.0.1:9")
    assert ran("lock", "--release", R, "--offline", "--strict")[0] == 0
    assert ran("lock", "--release", R, "--accept-moved", CUDA)[0] == 3
    assert ran("lock", "--release", R, "--bases")[0] == 3


def test_what_a_registry_says_is_shown_without_its_control_characters(ran: Ran, world: World) -> None:
    index = put_index(world.registry, "vllm/vllm-openai", f"v{R}", {"arm64": world.arm})
    _, raw = world.registry.manifests[f"vllm/vllm-openai@{index}"]
    evil = raw.replace(b'"arm64"', b'"\\u001b[31m"')
    world.registry.put("vllm/vllm-openai", f"v{R}", evil)
    code, out, err = ran("lock", "--release", R)
    assert code == 6
    assert "\x1b" not in out + err
    assert "⟦U+001B⟧" in out


def test_an_update_shows_what_to_add(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_index.serving(monkeypatch) as index:
        index.add("0.34.0", {"vllm/_version.py": b"commit_id = 'g0123abcde'\n"})
        code, out, _ = ran("lock", "--release", R, "--update")
    assert code == 0
    assert "0.34.0 is a new release; add it to images/releases.yaml, then ./inv lock:\n  0.34.0:\n" in out
    assert "\n    commit: 0123abcde\n" in out


def test_both_names_of_the_task_are_there(ran: Ran) -> None:
    listed = ran("--list")[1]
    assert "lock.images (lock)" in listed
    assert "lock.twin" in listed
    code, _, err = ran("lock.images", "--relaese", R)
    assert (code, err.splitlines()[0]) == (2, "✗ unknown option '--relaese'; did you mean '--release'?")


def test_a_release_that_is_not_there_is_exit_code_2(ran: Ran) -> None:
    code, out, err = ran("lock", "--release", "0.31.9")
    assert (code, out) == (2, "")
    assert err.startswith("✗ unknown release '0.31.9'; did you mean ")
