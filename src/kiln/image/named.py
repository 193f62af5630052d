"""Opens the image that a name stands for: one of this engine, or one in a registry."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from docker.errors import ImageNotFound

from kiln import engine as engines
from kiln import errors, process
from kiln.image import local
from kiln.registry import client, reference, saved
from kiln.registry import image as images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.catalog import Catalog
    from kiln.registry.image import RemoteImage
    from kiln.registry.saved import SavedImage
    from kiln.report import Reporter


@contextlib.contextmanager
def opened(name: str, catalog: Catalog, reporter: Reporter) -> Iterator[RemoteImage | SavedImage]:
    """Yield the image, its layers to be read while the block lasts; raises Missing where it is not there."""
    if local.is_local(name):
        with _saved(name, catalog, reporter) as image:
            yield image
        return
    asked = reference.parse(name)
    if not (asked.tag or asked.digest):
        raise errors.BadInput(f"{name}: neither a tag nor a digest", hint=f"{name}:TAG, or {name}@sha256:...")
    at = reference.parse(catalog.mirrored(str(asked)))
    with client.connect(at.host, ca=catalog.config.ca) as registry:
        yield images.open_image(registry, at.repository, at.digest or at.tag)


@contextlib.contextmanager
def _saved(name: str, catalog: Catalog, reporter: Reporter) -> Iterator[SavedImage]:
    """Yield an image of the engine out of what `docker save` writes, which is removed afterwards."""
    engine = engines.find(catalog.state / "engine")
    if engine is None:
        raise errors.Missing(f"{name}: no Docker engine answers, which would have it", hint="./inv engine.status")
    with contextlib.closing(engine.client()) as api:
        try:
            api.images.get(name)
        except ImageNotFound as error:
            raise errors.Missing(f"{name}: the engine does not have it", hint="docker image ls") from error
    work = catalog.state / "work"
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="saved-", dir=work) as folder:
        path = Path(folder) / "image.tar"
        with reporter.step(f"take {name} out of the engine"):
            process.ask((engine.docker, "save", f"--output={path}", name), env=engine.environment())
        yield saved.open_saved(path)
