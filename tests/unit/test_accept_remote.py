"""What makes an image in a registry not the one that was rehearsed."""

from __future__ import annotations

import pytest

from kiln.image.accept_remote import Site, differences
from kiln.registry.layers import Changes, Found

ROOT = "usr/lib/python3.12/dist-packages"
SITE = Site(root=ROOT, bytecode=("vllm/__pycache__/a.cpython-312.pyc", "vllm/__pycache__/other.cpython-312.pyc"))
EXPECTED = {"vllm/a.py": "1" * 64, "vllm/gone.py": None, "vllm/b.json": "2" * 64}


def changes(files: dict[str, str], removed: set[str]) -> Changes:
    found = {
        f"{ROOT}/{path}": Found(
            path=f"{ROOT}/{path}", layer=9, layer_digest="", mode=0o644, size=1, sha256=sha256, data=None
        )
        for path, sha256 in files.items()
    }
    return Changes(found=found, removed=frozenset(f"{ROOT}/{path}" for path in removed), emptied=frozenset())


FILES = {"vllm/a.py": "1" * 64, "vllm/b.json": "2" * 64}
REMOVED = {"vllm/gone.py", "vllm/__pycache__/a.cpython-312.pyc"}
STALE = "bytecode of a changed module: Python may run it in its place"


def test_an_image_as_rehearsed_has_no_difference() -> None:
    assert list(differences(changes(FILES, REMOVED), EXPECTED, SITE)) == []


def test_a_folder_that_is_gone_takes_all_in_it_away() -> None:
    assert list(differences(changes(FILES, {"vllm/gone.py", "vllm/__pycache__"}), EXPECTED, SITE)) == []


@pytest.mark.parametrize(
    ("files", "removed", "where", "problem"),
    [
        (FILES | {"vllm/a.py": "3" * 64}, REMOVED, "vllm/a.py", f"sha256 {'3' * 64}, not {'1' * 64}"),
        ({"vllm/a.py": "1" * 64}, REMOVED, "vllm/b.json", f"sha256 none, not {'2' * 64}"),
        (FILES, REMOVED - {"vllm/gone.py"}, "vllm/gone.py", "still there, and the series removes it"),
        (FILES | {"vllm/gone.py": "4" * 64}, REMOVED, "vllm/gone.py", f"sha256 {'4' * 64}, not none"),
        (FILES, {"vllm/gone.py"}, f"{ROOT}/vllm/__pycache__/a.cpython-312.pyc", STALE),
        (
            FILES | {"vllm/__pycache__/a.cpython-313.opt-1.pyc": "5" * 64},
            REMOVED,
            f"{ROOT}/vllm/__pycache__/a.cpython-313.opt-1.pyc",
            STALE,
        ),
    ],
)
def test_each_difference_is_found(files: dict[str, str], removed: set[str], where: str, problem: str) -> None:
    (found,) = differences(changes(files, removed), EXPECTED, SITE)
    assert (found.where, found.problem) == (where, problem)
