"""A copy of the real catalog to break, for every suite."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import catalog
from kiln.lock import run as locking
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[1]
CATALOG = ("images", "patches", "recipes")


@pytest.fixture
def catalog_copy(tmp_path: Path) -> Path:
    """Return a folder with everything hand-edited that `catalog.load` reads, free to be edited."""
    copy = tmp_path / "catalog"
    for name in CATALOG:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return copy


@pytest.fixture
def two_patches(catalog_copy: Path) -> Path:
    """Return the copy with two of its patches, of which one is for one arch only."""
    kept = ("gfx942-index-topk-pin", "m3-stream-first-delta")
    for path in (catalog_copy / "patches").glob("*/patch.yaml"):
        if path.parent.name not in kept:
            shutil.rmtree(path.parent)
    (catalog_copy / "patches/series.yaml").write_text(f"order: [{', '.join(kept)}]\n", encoding="utf-8")
    return catalog_copy


@pytest.fixture
def edit(catalog_copy: Path) -> Callable[[str, str, str], None]:
    """Return edit(file, old, new), which replaces the first `old` in a file of the copy; it must be there."""

    def edit(file: str, old: str, new: str) -> None:
        path = catalog_copy / file
        text = path.read_text(encoding="utf-8")
        assert old in text, f"{file} does not hold {old!r}"
        path.write_text(text.replace(old, new, 1), encoding="utf-8")

    return edit


@pytest.fixture
def relock(catalog_copy: Path) -> Callable[[], None]:
    """Return relock(), which does to the copy what `./inv lock --offline` does, after an edit of its images."""

    def relock() -> None:
        locking.run(catalog.load(catalog_copy, locked=False), locking.Wish(offline=True), Reporter(quiet=True))

    return relock
