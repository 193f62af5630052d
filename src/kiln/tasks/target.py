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
_ALL = {"all": "every target of the matrix in images/releases.yaml, those of the other flags where given"}
_BUILD = {
    "thin": "one layer over the base, pushed to --to without the base being pulled",
    "dry_run": "rehearse the series and print the plan; build nothing",
    "rebuild": "build even where the inputs are those of the image that is there",
    "push": "push by digest what was accepted, to `publish` of kiln.yaml",
    "to": "push to this HOST/REPOSITORY",
    "builder": "a builder of yours, as docker buildx ls names it: BuildKit elsewhere, or on Kubernetes",
    "jobs": "how many targets of --all are built at a time; default: 4",
    "print": "print the docker buildx bake file, for your own builders; build nothing",
}


@command(help=TARGET | _ALL | {"list": "list the targets there are, those of the other flags where given"})
def plan(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    json: bool = False,
    list: bool = False,  # noqa: A002
    all: bool = False,  # noqa: A002
) -> None:
    """Show everything a target resolves to: image, pins, series, serve command."""
    from kiln import catalog, errors
    from kiln import plan as planning
    from kiln.tasks.choice import Asked, matrix, targets
    from kiln.tasks.show import show_plan, show_plans, show_targets

    if all and list:
        raise errors.BadInput("--all shows plans, --list shows targets: name one of them", hint="./inv plan --list")
    loaded = catalog.load(catalog.find_root())
    asked = Asked(model=model, variant=variant, arch=arch, release=release)
    if all:
        show_plans(matrix(loaded, asked), json=json)
    elif list:
        twins = {name for name, pins in loaded.releases.releases.items() if pins.twin}
        show_targets(targets(loaded, asked), twins, json=json)
    else:
        show_plan(planning.make(loaded, variant=variant, arch=arch, release=release, model=model), json=json)


@command(help=TARGET | _TWIN | _ALL | _BUILD)
def build(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    twin: bool = False,
    thin: bool = False,
    all: bool = False,  # noqa: A002
    jobs: str = "4",
    builder: str = "",
    push: bool = False,
    to: str = "",
    rebuild: bool = False,
    dry_run: bool = False,
    print: bool = False,  # noqa: A002
    json: bool = False,
) -> None:
    """Rehearse the series, build the image, compare its ledger with the rehearsal, write a receipt."""
    from kiln import catalog
    from kiln.image import many, orders
    from kiln.report import Reporter
    from kiln.tasks.choice import Asked, matrix, one
    from kiln.tasks.show import show_document, show_plan, show_receipt, show_rows

    loaded = catalog.load(catalog.find_root())
    order = orders.Order(twin=twin, thin=thin, rebuild=rebuild, dry_run=dry_run, builder=builder)
    order = orders.checked(order, loaded, push=push, to=to, show=print)
    at_a_time = orders.jobs(jobs)
    find = matrix if all else one
    found = find(loaded, Asked(model=model, variant=variant, arch=arch, release=release))
    if print:
        show_document(orders.document(order, loaded, found, Reporter()))
        return
    orders.reach(order, loaded)
    if all:
        show_rows(many.run(found, orders.worker(order, loaded), jobs=at_a_time), json=json)
    elif made := orders.fill(order, loaded, found[0].planned(), Reporter()):
        show_receipt(made, json=json)
    else:
        show_plan(found[0].planned(), json=json)


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
    kind = "twin" if twin else chosen.image.kind
    written = evidence.write(loaded.output(chosen.target.slug), chosen, result, kind=kind)
    show_smoke(result, written, json=json)
