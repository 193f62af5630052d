"""Says which build level of SLSA a build meets, from where it ran; never more than can be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.publish.statements import Slsa

if TYPE_CHECKING:
    from collections.abc import Mapping


def level(environment: Mapping[str, str], *, keyless: bool, builder: str) -> Slsa:
    """Return the level of a build with provenance that ran in this environment.

    Level 3 wants provenance that the build's own steps cannot touch, and Kiln writes it in the same job.
    """
    hosted = environment.get("GITHUB_ACTIONS") == "true" and environment.get("RUNNER_ENVIRONMENT") == "github-hosted"
    if builder:
        return Slsa(
            level=1, because=f"provenance exists; built by the builder {builder}, of which Kiln knows nothing more"
        )
    if not hosted:
        return Slsa(level=1, because="provenance exists; built on a machine that nobody else vouches for")
    if not keyless:
        return Slsa(level=1, because="provenance exists; built on a hosted service, but not signed by its identity")
    why = "built on a hosted service and signed by its identity; the provenance is written by the same job"
    return Slsa(level=2, because=why)
