from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, errors, plan
from kiln.image.rehearsal import Rehearsal, rehearse
from kiln.upstream import wheel

if TYPE_CHECKING:
    from pathlib import Path

# the toy of conftest.py, as the hashes of its catalog say it is
PATH = "vllm/toy.py"
BEFORE = b"# one\n# two\n# three\nWORD = 'before'\n# five\n# six\n# seven\n"
EDITION = "patches/toy/0.31.0.patch"
TARGET = "minimax-m3-mxfp8-gfx942-0.31.0"
HINT = f"nothing was built; compare {EDITION} with patch.yaml: git diff patches/"


def rehearsed(root: Path, pristine: bytes = BEFORE) -> Rehearsal:
    loaded = catalog.load(root)
    made = plan.make(loaded, variant="mxfp8", arch="gfx942")
    pin = made.wheel
    wheel.keep(pin, PATH, pristine, cache=loaded.state / "wheels")
    return rehearse(made, loaded, made.wheel)


def refusal(root: Path, pristine: bytes = BEFORE) -> errors.NotApplied:
    with pytest.raises(errors.NotApplied) as caught:
        rehearsed(root, pristine)
    assert caught.value.exit_code == 5
    return caught.value


def hashes(root: Path) -> tuple[str, str, str]:
    """Return the toy's edition, pre and post, as patch.yaml has them."""
    edition = catalog.load(root).patches["toy"].editions["0.31.0"]
    pre, post = edition.files[PATH].pre, edition.files[PATH].post
    assert pre is not None
    assert post is not None
    return edition.sha256, pre, post


def test_a_series_that_applies_gives_the_ledger_of_the_image(toy_catalog: Path) -> None:
    found = rehearsed(toy_catalog)
    sha256, pre, post = hashes(toy_catalog)
    (patch,) = found.series.patches
    assert (found.series.distribution, found.series.release, patch.id) == ("vllm", "0.31.0", "toy")
    ledger = json.loads(found.ledger)
    assert (ledger["distribution"], ledger["release"]) == ("vllm", "0.31.0")
    (row,) = ledger["patches"]
    assert row == {"id": "toy", "edition_sha256": sha256, "files": [{"path": PATH, "pre": pre, "post": post}]}
    assert rehearsed_again(toy_catalog) == found


def rehearsed_again(root: Path) -> Rehearsal:
    loaded = catalog.load(root)
    made = plan.make(loaded, variant="mxfp8", arch="gfx942")
    return rehearse(made, loaded, made.wheel)


def test_a_target_that_needs_no_patch_has_an_empty_ledger(toy_catalog: Path) -> None:
    loaded = catalog.load(toy_catalog)
    made = plan.make(loaded, variant="mxfp8", arch="gfx942", release="0.33.0")
    found = rehearse(made, loaded, made.wheel)
    assert found.series.patches == ()
    assert json.loads(found.ledger)["patches"] == []


def test_one_changed_byte_of_an_edition_is_named(toy_catalog: Path) -> None:
    edition = toy_catalog / EDITION
    edition.write_bytes(edition.read_bytes().replace(b"after", b"aftes"))
    error = refusal(toy_catalog)
    sha256, _, post = hashes(toy_catalog)
    first, *rest = error.message.splitlines()
    assert first.startswith("patch toy: PATCH_CHANGED: toy.patch has sha256 ")
    assert first.endswith(f", not {sha256}")
    assert rest == [f"  {PATH}: PATCH_CHANGED", f"    expected: {post}"]
    assert error.hint == HINT


def test_a_changed_line_of_the_release_is_named_with_its_hunk(toy_catalog: Path) -> None:
    error = refusal(toy_catalog, BEFORE.replace(b"before", b"other"))
    assert error.message.splitlines() == [
        "patch toy: CONFLICT",
        f"  {PATH} hunk 1: CONFLICT",
        "    expected: line 4: WORD = 'before'",
        "    found:    line 4: WORD = 'other'",
    ]
    assert error.hint == HINT


def test_a_release_that_moved_the_code_is_named(toy_catalog: Path) -> None:
    error = refusal(toy_catalog, b"# zero\n" + BEFORE)
    assert error.message.splitlines()[:2] == ["patch toy: OFFSET", f"  {PATH} hunk 1: OFFSET"]


def test_a_release_that_changed_elsewhere_is_named_by_hash(toy_catalog: Path) -> None:
    error = refusal(toy_catalog, BEFORE + b"# eight\n")
    _, pre, _ = hashes(toy_catalog)
    lines = error.message.splitlines()
    assert lines[:3] == ["patch toy: TARGET_MODIFIED", f"  {PATH}: TARGET_MODIFIED", f"    expected: {pre}"]
    assert lines[3].startswith("    found:    ")


def test_a_release_that_has_the_change_already_is_named(toy_catalog: Path) -> None:
    error = refusal(toy_catalog, BEFORE.replace(b"before", b"after"))
    assert error.message.splitlines()[:2] == ["patch toy: MERGED", f"  {PATH}: MERGED"]


def test_an_edition_that_touches_another_file_is_named(toy_catalog: Path) -> None:
    described = toy_catalog / "patches/toy/patch.yaml"
    described.write_text(described.read_text(encoding="utf-8").replace(PATH, "vllm/other.py"), encoding="utf-8")
    loaded = catalog.load(toy_catalog)
    pin = loaded.releases.releases["0.31.0"].wheel
    wheel.keep(pin, "vllm/other.py", BEFORE, cache=loaded.state / "wheels")
    with pytest.raises(errors.NotApplied) as caught:
        rehearsed_again(toy_catalog)
    assert caught.value.message.startswith(f"{TARGET}: toy.patch: does not touch vllm/other.py")
