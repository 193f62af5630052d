"""Renders a deployment as a compose file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiln.deploy.records import CACHE, CAPABILITIES, TOKEN

if TYPE_CHECKING:
    from kiln.deploy.records import Deployment


def render(made: Deployment) -> dict[str, Any]:
    """Return the file's data: the same options that the docker command has."""
    program, *words = made.command
    kind = "bind" if made.host_folder else "volume"
    unconfined = ["seccomp=unconfined"] if made.seccomp == "unconfined" else []
    service: dict[str, Any] = {
        "image": made.image,
        "container_name": made.name,
        "pull_policy": made.pull,
        "entrypoint": [program],
        "command": [_literal(word) for word in words],
        # without a value: taken from the environment in which compose runs
        "environment": {name: _literal(value) for name, value in made.env} | {TOKEN: None},
        **_devices(made),
        "cap_drop": [CAPABILITIES],
        **({"cap_add": list(made.cap_add)} if made.cap_add else {}),
        "security_opt": ["no-new-privileges:true", *unconfined],
        "shm_size": f"{made.shm_gib}gb",
        "ports": [f"{made.address}:{made.port}:{made.server_port}"],
        "volumes": [{"type": kind, "source": _literal(made.cache), "target": CACHE} | _existing(made)],
    }
    volumes = {} if made.host_folder else {"volumes": {made.cache: {"name": made.cache}}}
    return {"name": made.name, "services": {made.name: service}, **volumes}


def _devices(made: Deployment) -> dict[str, Any]:
    if made.devices:
        groups = {"group_add": [str(group) for group in made.groups]} if made.groups else {}
        return {"devices": list(made.devices), **groups}
    wanted = {"driver": "nvidia", "count": made.gpus, "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [wanted]}}}}


def _existing(made: Deployment) -> dict[str, Any]:
    """Keep compose from making a folder of the host that is not there."""
    return {"bind": {"create_host_path": False}} if made.host_folder else {}


def _literal(text: str) -> str:
    """Keep compose from taking a dollar sign for a variable."""
    return text.replace("$", "$$")
