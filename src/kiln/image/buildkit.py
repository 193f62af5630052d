"""Runs one build by BuildKit, and says in whose words it failed."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors, process
from kiln.image import bake, provenance

if TYPE_CHECKING:
    from kiln.engine import Engine
    from kiln.image.bake import Build, Made
    from kiln.report import Reporter

_INSPECT_TIMEOUT_S = 60
_DRIVER = re.compile(r"^Driver:\s+(\S+)$", re.MULTILINE)
_OWN_DRIVER = "docker"
# how BuildKit's plain progress shows the end of kiln-patch with exit code 5, and a line that a step printed
_PATCH_STEP_FAILED = re.compile(r"kiln-patch\.pyz apply .*exit code: 5\b")
# that of images/install, which says in such lines why it refuses what it was to install
_INSTALL_STEP_FAILED = re.compile(r"install/(build|install)\.py .*exit code: 6\b")
_REFUSAL = "install: "
_STEP_OUTPUT = re.compile(r"^#\d+ \d+\.\d+ (.*)$")
_PROVENANCE = {"BUILDX_METADATA_PROVENANCE": "max"}


def run(build: Build, *, engine: Engine, reporter: Reporter, step: str, builder: str = "") -> Made:
    """Run one build on the engine, or on a builder that the person has; a step of the reporter shows how it goes.

    Raises, in its own words, NotApplied for a patch step that fails, Findings for an install that is refused;
    CommandFailed for any other step.
    """
    printed: list[str] = []
    # what BuildKit writes there names every argument with its value
    with tempfile.TemporaryDirectory(prefix="kiln-bake-") as folder:
        file, metadata = Path(folder) / "bake.json", Path(folder) / "metadata.json"
        file.write_text(bake.document((build,)), encoding="utf-8")
        argv = bake.command(build, buildx=engine.buildx, file=file, metadata=metadata, builder=builder)
        try:
            with reporter.step(step) as detail:

                def line(text: str) -> None:
                    printed.append(text)
                    detail(text)

                process.show(argv, line=line, env=engine.environment(builder=builder) | _PROVENANCE)
        except errors.CommandFailed as error:
            if any(_INSTALL_STEP_FAILED.search(text) for text in printed):
                raise _refused(printed) from error
            if not any(_PATCH_STEP_FAILED.search(text) for text in printed):
                raise
            raise _not_applied(printed) from error
        made = bake.read(metadata, build)
    return bake.Made(digest=made.digest, provenance=provenance.cleaned(made.provenance))


def is_own_driver(engine: Engine, builder: str) -> bool:
    """Say whether a builder is Docker's own BuildKit, which shares its store and pushes under tags alone.

    Raises BadInput for a builder that there is not.
    """
    if not builder:
        return True
    argv = (*engine.buildx, "inspect", builder)
    said = process.run(argv, env=engine.environment(builder=builder), timeout_s=_INSPECT_TIMEOUT_S)
    found = _DRIVER.search(said.stdout)
    if said.code or not found:
        why = (said.stderr.strip().splitlines() or ["it says no driver"])[-1]
        raise errors.BadInput(
            f"--builder {builder}: {why}",
            hint="docker buildx ls; make one: docker buildx create --name NAME --driver remote URL",
        )
    return found[1] == _OWN_DRIVER


def _not_applied(printed: list[str]) -> errors.NotApplied:
    said = dict.fromkeys(match[1] for text in printed if (match := _STEP_OUTPUT.match(text)))
    return errors.NotApplied(
        "\n".join(["the patch step failed in the image, which was not tagged:", *said]),
        hint="the base holds other files than the wheel that was rehearsed: check the base's digest",
    )


def _refused(printed: list[str]) -> errors.Findings:
    said = dict.fromkeys(match[1] for text in printed if (match := _STEP_OUTPUT.match(text)))
    lines = [text.removeprefix(_REFUSAL) for text in said if text.startswith(_REFUSAL)]
    return errors.Findings(
        "\n".join(["an install was refused, and no image was made:", *lines]),
        hint="correct installs in images/releases.yaml, then ./inv lint",
    )
