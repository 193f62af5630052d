"""What a build needs for the packages that a target gets over its base: arguments, contexts and staged files."""

from __future__ import annotations

import itertools
import json
import shutil
from typing import TYPE_CHECKING, Any

from kiln.catalog.load import INSTALL_SCRIPTS
from kiln.image import context

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.catalog import Catalog, records
    from kiln.plan import Plan


def arguments(plan: Plan) -> dict[str, str]:
    """Return the build arguments that choose the Dockerfile's stages; none for a target without installs."""
    if not plan.installs:
        return {}
    return {"BELOW": "installed"} | ({"WHEELHOUSE": "built"} if _source(plan) else {})


def contexts(catalog: Catalog, plan: Plan) -> dict[str, str]:
    """Return the named contexts: `tools` holds uv, `source` is the one commit that is built, where there is one."""
    if not plan.installs:
        return {}
    built = _source(plan)
    tools = {"tools": str(context.stage_uv(catalog.state))}
    if built is None or built.source is None:
        return tools
    return tools | {"source": f"{catalog.mirrored(built.source.repository)}#{built.source.commit}"}


def stage(folder: Path, catalog: Catalog, plan: Plan) -> None:
    """Write the scripts that every real image is made with; with installs their list, and each pinned wheel."""
    scripts = folder / "install"
    scripts.mkdir()
    for name in INSTALL_SCRIPTS:
        shutil.copy(catalog.root / "images/install" / name, scripts / name)
    if not plan.installs:
        return
    (scripts / "installs.json").write_text(json.dumps(listed(plan), indent=2) + "\n", encoding="utf-8")
    wheels = folder / "wheels"
    wheels.mkdir()
    for pin in _wheels(plan):
        context.link(str(context.whole_wheel(catalog.state / "installs", pin)), wheels / pin.file)


def listed(plan: Plan) -> dict[str, Any]:
    """Return installs.json: the packages in order, a companion before what needs it, and what is built from source."""
    packages = []
    for install in plan.installs:
        packages += [_of_wheel(pin) for pin in install.companions]
        # a wheel that is built has no hash before
        sha256 = install.wheel.sha256 if install.wheel else ""
        version = install.wheel.version if install.wheel else install.version
        packages.append({"name": install.package, "version": version, "sha256": sha256})
    built = _source(plan)
    if built is None or built.source is None:
        return {"packages": packages}
    requires = [_of_wheel(pin) for pin in built.source.build_requires]
    source = {"name": built.package, "version": built.version, "env": built.source.env, "requires": requires}
    return {"packages": packages, "source": source}


def _source(plan: Plan) -> records.Install | None:
    """Return the install that is built from source; a catalog that lint accepts has one for a target at most."""
    return next((install for install in plan.installs if install.source), None)


def _wheels(plan: Plan) -> list[records.WheelPin]:
    pinned = [install.wheel for install in plan.installs if install.wheel]
    companions = itertools.chain.from_iterable(install.companions for install in plan.installs)
    built_with = (install.source.build_requires for install in plan.installs if install.source)
    return [*pinned, *companions, *itertools.chain.from_iterable(built_with)]


def _of_wheel(pin: records.WheelPin) -> dict[str, str]:
    return {"name": pin.project, "version": pin.version, "sha256": pin.sha256}
