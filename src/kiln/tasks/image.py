"""Tasks over images that are there, in a registry or in this engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command
from kiln.tasks.target import TARGET

if TYPE_CHECKING:
    from invoke.context import Context


@command(
    help={
        "from_": "image A: HOST/NAME:TAG or @DIGEST in a registry, kiln/... in this engine; --from may be left out",
        "to": "image B, in the same way; --to may be left out",
        "files": "every file and value, not only the first of many",
        "json": TARGET["json"],
    },
    words=("from_", "to"),
)
def diff(_: Context, *, from_: str = "", to: str = "", files: bool = False, json: bool = False) -> None:
    """Say what differs between two images: pins, patches, packages, settings, layers and files."""
    from kiln import catalog, errors
    from kiln.image import named
    from kiln.image.diff import compare as differing
    from kiln.report import Reporter
    from kiln.tasks.show_image import show_diff

    if not (from_ and to):
        raise errors.BadInput("two images are compared", hint="./inv image.diff A B")
    loaded = catalog.load(catalog.find_root(), locked=False)
    reporter = Reporter()
    with named.opened(from_, loaded, reporter) as a, named.opened(to, loaded, reporter) as b:
        with reporter.step("read the layers that they do not share") as progress:
            found = differing.compare((from_, to), a, b, progress=progress)
        show_diff(found, files=files, json=json)
