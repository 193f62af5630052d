"""Edits of patch.yaml and series.yaml: only the owned lines change, and what cannot be edited is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from kiln import catalog, errors
from kiln.catalog import edit
from kiln.catalog.records import Edition, FileHashes

ROOT = Path(__file__).resolve().parents[2]
LOADED = catalog.load(ROOT)
A, B, C = ("a" * 64, "b" * 64, "c" * 64)
EDITION = Edition(sha256=A, files={"vllm/a.py": FileHashes(pre=B, post=C), "vllm/new.py": FileHashes(post=A)})
BLOCK = f"""\
  0.31.0:
    sha256: {A}
    files:
      vllm/a.py:
        pre: {B}
        post: {C}
      vllm/new.py:
        post: {A}
"""
HEAD = """\
# why this is here
id: toy
title: 'One "word"'   # quoted
reason: >-
  first line

  # no comment
lost_without: nothing
upstream: {status: merged, links: [x]}  # seen
drop_when: never
applies: {releases: '>=0.24.0'}
"""
BRACES = (
    "{id: toy, title: a, reason: b, lost_without: c, drop_when: d, "
    "upstream: {status: open}, applies: {releases: '>=0'}}"
)


def text_of(patch_id: str) -> str:
    return (ROOT / "patches" / patch_id / "patch.yaml").read_bytes().decode()


def without_block(text: str, release: str) -> str:
    """Take an edition out by hand, and `editions:` with the last one."""
    lines = text.splitlines(keepends=True)
    start = lines.index(f"  {release}:\n")
    end = next((n for n in range(start + 1, len(lines)) if not lines[n].startswith("    ")), len(lines))
    left = lines[:start] + lines[end:]
    return "".join(left[:-1] if left[-1] == "editions:\n" else left)


@pytest.mark.parametrize("patch_id", LOADED.order)
def test_every_edition_of_the_catalog_can_be_set_again_and_taken_out_and_added(patch_id: str) -> None:
    text = text_of(patch_id)
    for release, edition in LOADED.patches[patch_id].editions.items():
        assert edit.with_edition(text, release, edition) == text
        assert edit.with_edition(without_block(text, release), release, edition) == text
        other = edit.with_edition(text, release, EDITION)
        assert other != text
        assert edit.with_edition(other, release, edition) == text


def test_the_first_edition_and_one_between_two_go_where_their_version_belongs() -> None:
    first = edit.with_edition(HEAD, "0.31.0", EDITION)
    assert first == HEAD + "editions:\n" + BLOCK
    older = edit.with_edition(first, "0.27.1", EDITION)
    assert older == HEAD + "editions:\n" + BLOCK.replace("0.31.0", "0.27.1") + BLOCK
    between = edit.with_edition(older, "0.28.0", EDITION)
    assert [line for line in between.splitlines() if line.startswith("  0.")] == ["  0.27.1:", "  0.28.0:", "  0.31.0:"]
    assert edit.with_edition(HEAD + "editions: {}  # none yet\nunported: []\n", "0.31.0", EDITION) == (
        HEAD + "editions:  # none yet\n" + BLOCK + "unported: []\n"
    )


def test_comments_between_editions_stay_where_they_were() -> None:
    text = f"{HEAD}editions:\n  # the oldest\n{BLOCK}  # below the last\n\nunported: []\n# the end"
    added = edit.with_edition(text, "0.32.0", EDITION)
    assert added == text.replace(BLOCK, BLOCK + BLOCK.replace("0.31.0", "0.32.0"))
    assert edit.with_edition(text, "0.24.0", EDITION) == text.replace(
        "editions:\n", "editions:\n" + BLOCK.replace("0.31.0", "0.24.0")
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("unported: [0.31.0]\n", ""),
        ("unported: [0.30.0, 0.31.0]  # both\n", "unported: [0.30.0]  # both\n"),
        ("unported: [0.31.0, 0.32.0]\n", "unported: [0.32.0]\n"),
        ("unported: [0.30.0,\n  0.31.0,\n  0.32.0]\n", "unported: [0.30.0,\n  0.32.0]\n"),
        ("unported:\n  - 0.30.0\n  - 0.31.0  # soon\n  - 0.32.0\n", "unported:\n  - 0.30.0\n  - 0.32.0\n"),
        ("unported:\n- 0.31.0\n", ""),
    ],
)
def test_a_release_with_an_edition_is_no_longer_unported(before: str, after: str) -> None:
    text = f"{HEAD}{before}probe: {{needs: source, shows: it}}\n"
    wanted = text.replace(before, after) + "editions:\n" + BLOCK
    assert edit.with_edition(text, "0.31.0", EDITION) == wanted


def test_line_ends_are_those_of_the_file() -> None:
    text = HEAD.replace("\n", "\r\n")
    assert edit.with_edition(text, "0.31.0", EDITION) == text + ("editions:\n" + BLOCK).replace("\n", "\r\n")
    assert edit.with_edition(HEAD.removesuffix("\n"), "0.31.0", EDITION) == HEAD + "editions:\n" + BLOCK


def test_upstream_since_goes_below_upstream_or_is_replaced() -> None:
    line = "upstream: {status: merged, links: [x]}  # seen\n"
    text = edit.with_upstream_since(HEAD, "0.32.0")
    assert text == HEAD.replace(line, line + "upstream_since: 0.32.0\n")
    assert edit.with_upstream_since(text, "0.33.0") == text.replace("0.32.0", "0.33.0")
    block = HEAD.replace(line, "upstream:\n  status: merged\n  links:\n    - x  # this\n\n")
    assert "    - x  # this\nupstream_since: 0.32.0\n\n" in edit.with_upstream_since(block, "0.32.0")


def test_releases_are_replaced_in_braces_and_in_a_block() -> None:
    assert edit.with_releases(HEAD, ">=0.24.0,<0.32.0") == HEAD.replace("'>=0.24.0'", '">=0.24.0,<0.32.0"')
    text = text_of("mxfp8-zero-block")
    changed = edit.with_releases(text, "==0.29.0")
    assert changed == text.replace('  releases: ">=0.29.0,<0.30.0"', '  releases: "==0.29.0"')


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "# in order\norder:\n  - a\n  - b  # last\n# end\n",
            "# in order\norder:\n  - a\n  - b  # last\n  - toy\n# end\n",
        ),
        ("order:\n- a\n", "order:\n- a\n- toy\n"),
        ("order: [a, b]\n", "order: [a, b, toy]\n"),
        ("order: []\n", "order: [toy]\n"),
    ],
)
def test_a_patch_is_added_at_the_end_of_the_order(before: str, after: str) -> None:
    assert edit.with_last(before, "toy") == after


@pytest.mark.parametrize(
    "text",
    [
        HEAD.replace("id: toy", "id: &x toy").replace("title: 'One \"word\"'", "title: *x"),
        HEAD + "editions: {0.30.0: {sha256: " + A + ", files: {vllm/a.py: {post: " + A + "}}}}\n",
        HEAD + "...\n",
        BRACES,
        HEAD + "editions:\n" + BLOCK + "unheard_of: 1\n",
        HEAD + "editions:\n" + BLOCK + BLOCK,
    ],
)
def test_what_cannot_be_edited_safely_is_refused(text: str) -> None:
    with pytest.raises(errors.BadInput):
        edit.with_edition(text, "0.31.0", EDITION)
