"""Tasks over one target: plan it, build it, smoke it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command

if TYPE_CHECKING:
    from invoke.context import Context

TARGET = {
    "variant": "quantised form of the model: bf16, mxfp8, nvfp4, mxfp4",
    "arch": "GPU architecture or product: gfx942, gfx950, sm90, sm100, sm103, mi300x, b200, ...",
    "release": "vLLM release; default: default_release of images/releases.yaml",
    "model": "model id; default: MiniMaxAI/MiniMax-M3",
    "json": "print JSON to stdout and nothing else",
}
_TWIN = {"twin": "the CPU-only image of the target: same release, same series, no GPU"}


@command(help=TARGET | {"list": "list the targets there are, those of the other flags where given"})
def plan(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    json: bool = False,
    list: bool = False,  # noqa: A002
) -> None:
    """Show everything a target resolves to: image, pins, series, serve command."""
    from kiln import catalog
    from kiln import plan as planning
    from kiln.tasks.choice import targets
    from kiln.tasks.show import show_plan, show_targets

    loaded = catalog.load(catalog.find_root())
    if list:
        twins = {name for name, pins in loaded.releases.releases.items() if pins.twin}
        chosen = targets(loaded, model=model, variant=variant, arch=arch, release=release)
        show_targets(chosen, twins, json=json)
    else:
        show_plan(planning.make(loaded, variant=variant, arch=arch, release=release, model=model), json=json)


@command(help=TARGET | _TWIN | {"dry_run": "rehearse the series and print the plan; build nothing"})
def build(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    twin: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Rehearse the series, build the image, compare its ledger with the rehearsal, write a receipt."""
    from kiln import catalog
    from kiln import plan as planning
    from kiln.image import build as building
    from kiln.report import Reporter
    from kiln.tasks.show import show_plan, show_receipt

    loaded = catalog.load(catalog.find_root())
    chosen = planning.make(loaded, variant=variant, arch=arch, release=release, model=model)
    if dry_run:
        building.rehearse_target(loaded, chosen, twin=twin, reporter=Reporter())
        show_plan(chosen, json=json)
    else:
        show_receipt(building.run(loaded, chosen, twin=twin, reporter=Reporter()), json=json)


@command(help=TARGET | _TWIN)
def smoke(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    twin: bool = False,
    json: bool = False,
) -> None:
    """Serve the target's image in a real container and check that its parsers work; writes evidence."""
    from kiln import catalog
    from kiln import plan as planning
    from kiln.publish import evidence
    from kiln.report import Reporter
    from kiln.smoke import target
    from kiln.tasks.show import show_smoke

    loaded = catalog.load(catalog.find_root())
    chosen = planning.make(loaded, variant=variant, arch=arch, release=release, model=model)
    result = target.run(loaded, chosen, twin=twin, reporter=Reporter())
    written = evidence.write(loaded.output(chosen.target.slug), chosen, result, kind="twin")
    show_smoke(result, written, json=json)
