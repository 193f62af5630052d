"""The task that serves a target: prints the command or manifests for it, or starts it here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiln.tasks.command import command
from kiln.tasks.target import TARGET

if TYPE_CHECKING:
    from invoke.context import Context

_HELP = {
    "image": "reference of the image; default: the one that was built here",
    "format": "docker (default), compose or k8s",
    "exec": "start it here, after checks; Ctrl-C ends it",
    "port": "PORT, or ADDRESS:PORT; default: 8000 on 127.0.0.1 alone",
    "cache": "folder for downloaded models; with k8s a PersistentVolumeClaim; default: a volume of the engine",
    "gid": "ROCm: number of the group that owns the GPUs' device files, where it is not this machine's",
    "cdi": "devices by their CDI names (nvidia.com/gpu=0), as the vendors' container toolkits make them",
}


@command(help=TARGET | _HELP)
def run(
    _: Context,
    *,
    variant: str = "",
    arch: str = "",
    release: str = "",
    model: str = "",
    image: str = "",
    format: str = "docker",  # noqa: A002
    exec: bool = False,  # noqa: A002
    port: str = "8000",
    cache: str = "",
    gid: str = "",
    cdi: bool = False,
    json: bool = False,
) -> None:
    """Print how a target is served with least privilege: docker command, compose file or Kubernetes manifests."""
    from kiln import catalog, engine, errors
    from kiln import plan as planning
    from kiln.deploy import machine, make, notes, start
    from kiln.deploy.records import Wanted
    from kiln.image import receipt
    from kiln.tasks.show_run import show_deployment, show_notes

    if exec and (json or format != "docker"):
        raise errors.BadInput("--exec starts the docker command: it takes no --json and no other --format")
    loaded = catalog.load(catalog.find_root())
    chosen = planning.make(loaded, variant=variant, arch=arch, release=release, model=model)
    wanted = Wanted(form=format, image=image, port=port, cache=cache, gid=gid, cdi=cdi)
    built = receipt.read(loaded.output(chosen.target.slug), chosen.image.kind)
    gpus = machine.amd() if chosen.image.kind == "rocm" else machine.nvidia() if exec else ()
    made = make.make(chosen, wanted, built=built, gpus=gpus)
    home = loaded.state / "engine"
    if exec:
        show_notes(made.notes)
        start.run(made, home, gpus=gpus)
    else:
        there = notes.of_engine(made.image, engine.status(home).engine) if made.digest and format != "k8s" else ()
        show_notes((*made.notes, *there))
        show_deployment(made, format, json=json)
