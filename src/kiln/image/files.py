"""Reads the files of a package out of an image whose container is made and never started."""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from docker.errors import DockerException, ImageNotFound

from kiln import errors
from kiln.engine import short_lived
from kiln.image import inspect
from kiln.patching import ledger

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from docker import DockerClient
    from docker.models.containers import Container

_PYTHONS = tuple(f"python3.{minor}" for minor in range(15, 9, -1))
_PATH = "/usr/local/bin:/usr/bin"  # where an image's PATH does not say, a program is looked for there
_BUILT = "/opt/kiln/ledger.json"
_VERSION = re.compile(rb"^__version__ = version = '([^'\n]{1,80})'$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A package in an image; `version` is what it says of itself, `root` the folder that holds it."""

    container: Container
    identity: str
    root: str
    version: str

    def read(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the bytes of each path that is there."""
        found = {path: inspect.find_file(self.container, f"{self.root}/{path}") for path in paths}
        return {path: data for path, data in found.items() if data is not None}


@contextlib.contextmanager
def opened(client: DockerClient, image: str) -> Iterator[ImageFiles]:
    """Yield the vLLM of an image; raises Missing where there is none, BadInput where Kiln has patched it."""
    try:
        with short_lived.created(client, image, command=["true"]) as container:
            for root in places(container):
                data = inspect.find_file(container, f"{root}/vllm/_version.py")
                if match := _VERSION.search(data or b""):
                    version = match[1].decode("ascii", "replace")
                    _refuse_patched(container, root, version, image)
                    identity = str(client.images.get(image).id)
                    yield ImageFiles(container=container, identity=identity, root=root, version=version)
                    return
    except ImageNotFound as error:
        raise errors.Missing(f"{image}: no such image in this engine", hint=f"docker pull {image}") from error
    except DockerException as error:
        raise errors.Missing(f"{image}: the engine does not give its files: {error}") from error
    raise errors.Missing(f"{image}: no vllm/_version.py beside the Pythons of its PATH and VIRTUAL_ENV")


def roots(container: Container, package: str) -> Iterator[str]:
    """Yield every folder in which a Python of the image would find a package."""
    for root in places(container):
        if inspect.find_file(container, f"{root}/{package}/__init__.py") is not None:
            yield root


def places(container: Container) -> Iterator[str]:
    """Yield the folders in which the Pythons of the image's VIRTUAL_ENV and PATH find packages, in that order."""
    settings = dict(entry.partition("=")[::2] for entry in container.attrs["Config"]["Env"] or ())
    path = f"{settings.get('PATH', '')}:{_PATH}".split(":")
    bins = [folder.removesuffix("/bin") for folder in path if folder.endswith("/bin")]
    for prefix in dict.fromkeys((settings.get("VIRTUAL_ENV", ""), *bins)):
        if prefix.startswith("/"):
            yield f"{prefix}/lib/python3/dist-packages"
            for python in _PYTHONS:
                yield from (f"{prefix}/lib/{python}/{name}-packages" for name in ("site", "dist"))


def _refuse_patched(container: Container, root: str, version: str, image: str) -> None:
    """Raise BadInput where a ledger lies: in an image that Kiln built, or beside what it patched elsewhere."""
    base = version.partition("+")[0]
    infos = (f"{root}/vllm-{name}.dist-info/{ledger.NAME}" for name in dict.fromkeys((version, base, f"{base}+cpu")))
    if any(inspect.find_file(container, path) is not None for path in (_BUILT, *infos)):
        raise errors.BadInput(
            f"{image}: Kiln has patched it already, so it is not what upstream released",
            hint=f"./inv patch.verify --image {image}; drift takes the image that it was built from",
        )
