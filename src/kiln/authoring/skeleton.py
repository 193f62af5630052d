"""The files of a new patch: its edition, and what its author still has to write, marked so that lint finds it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from kiln.catalog import edit, edition_path
from kiln.catalog.lint import UNWRITTEN

if TYPE_CHECKING:
    from kiln.catalog import Catalog, records

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ,.()/'_+-]*[A-Za-z0-9).]")
_WORDS = frozenset({"true", "false", "null", "yes", "no", "on", "off"})
_YAML = """\
id: {id}
title: {title}
reason: >-
  TODO: why it exists, and what it changes
lost_without: >-
  TODO: what is lost without it
upstream:
  status: not-reported
drop_when: >-
  TODO: when it can be dropped
applies:
  releases: "=={release}"
probe:
  needs: source
  shows: >-
    TODO: what probe.py looks at
"""
_PROBE = f'''\
"""Red until it is written; then: red unless the tree has what the patch is for.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(root: Path) -> int:
    """Print `red: what is wrong` and return 1, or `green: what was seen` and 0."""
    del root
    print("red: {UNWRITTEN}")
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
'''
_TEST = '''\
"""What the patch is for; a rule must fail without it and pass with it: fixtures `tree` and `release`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.rule("not written yet")
def test_what_the_patch_is_for(tree: Path) -> None:
    pytest.fail(f"this test is not written yet: it would look at {tree}")
'''


def make(  # noqa: PLR0913 - all that a new patch is made of
    catalog: Catalog, *, patch_id: str, title: str, release: str, data: bytes, edition: records.Edition
) -> dict[Path, bytes]:
    """Return every file of a new patch by its path in the catalog, the series last; raises BadInput."""
    folder = Path("patches") / patch_id
    series = Path("patches/series.yaml")
    described = _YAML.format(id=patch_id, title=_scalar(title), release=release)
    order = (catalog.root / series).read_bytes().decode()
    return {
        edition_path(patch_id, release): data,
        folder / "patch.yaml": edit.with_edition(described, release, edition).encode(),
        folder / "probe.py": _PROBE.encode(),
        folder / "tests" / f"test_{re.sub(r'[^a-z0-9]', '_', patch_id)}.py": _TEST.encode(),
        series: edit.with_last(order, patch_id).encode(),
    }


def _scalar(text: str) -> str:
    """Return a title as YAML that says exactly this text."""
    if not text:
        return '"TODO: what it changes, in a line"'
    plain = _PLAIN.fullmatch(text) and text.casefold() not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)
