"""Real engine, real wheels, real images: brought up once for all container tests."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kiln import catalog, engine, plan
from kiln.image import build
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import docker

    from kiln.catalog import Catalog
    from kiln.engine import Engine
    from kiln.image.receipt import Receipt
    from kiln.plan import Plan

REPORTER = Reporter()


@pytest.fixture(scope="session")
def real_catalog() -> Catalog:
    return catalog.load(catalog.find_root(Path(__file__).parent))


@pytest.fixture(scope="session")
def real_engine(real_catalog: Catalog) -> Engine:
    return engine.ensure(real_catalog.state / "engine", REPORTER)


@pytest.fixture(scope="session")
def client(real_engine: Engine) -> Iterator[docker.DockerClient]:
    client = real_engine.client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def twin_plan(real_catalog: Catalog) -> Plan:
    return plan.make(real_catalog, variant="mxfp8", arch="gfx942")


@pytest.fixture(scope="session")
def twin(real_catalog: Catalog, twin_plan: Plan) -> Receipt:
    """The twin that `./inv build --variant mxfp8 --arch gfx942 --twin` makes."""
    return build.run(real_catalog, twin_plan, twin=True, reporter=REPORTER)


@pytest.fixture(scope="session")
def twin_image(twin: Receipt) -> str:
    return twin.digest


@pytest.fixture
def edited(real_catalog: Catalog, tmp_path: Path) -> Callable[[Callable[[Path], None]], Catalog]:
    """Return a function that loads a copy of the catalog after an edit; engine and caches are the real ones."""

    def copy(edit: Callable[[Path], None]) -> Catalog:
        root = tmp_path / "catalog"
        for folder in ("images", "patches", "recipes"):
            shutil.copytree(real_catalog.root / folder, root / folder)
        edit(root)
        return replace(catalog.load(root), state=real_catalog.state)

    return copy
