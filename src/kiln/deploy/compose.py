"""Renders a deployment as a compose file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kiln.deploy.records import API_KEY, CACHE, CAPABILITIES, START_PERIOD_S, STOP_S, TOKEN

if TYPE_CHECKING:
    from kiln.deploy.records import Deployment


# images have python3, and not all of them curl; no proxy is asked on the way to the container itself
_HEALTH = (
    "import http.client as c; s = c.HTTPConnection('127.0.0.1', {port}, timeout=5); s.request('GET', '/health'); "
    "raise SystemExit(s.getresponse().status != 200)"
)


def render(made: Deployment) -> dict[str, Any]:
    """Return the file's data: the same options that the docker command has."""
    program, *words = made.command
    kind = "bind" if made.host_folder else "volume"
    unconfined = ["seccomp=unconfined"] if made.seccomp == "unconfined" else []
    service: dict[str, Any] = {
        "image": made.image,
        "container_name": made.name,
        "pull_policy": made.pull,
        "init": True,
        "stop_grace_period": f"{STOP_S}s",
        "entrypoint": [program],
        "command": [_literal(word) for word in words],
        # without a value: taken from the environment in which compose runs
        "environment": {name: _literal(value) for name, value in made.env} | {TOKEN: None, API_KEY: None},
        **_devices(made),
        "cap_drop": [CAPABILITIES],
        **({"cap_add": list(made.cap_add)} if made.cap_add else {}),
        "security_opt": ["no-new-privileges:true", *unconfined],
        "shm_size": f"{made.shm_gib}gb",
        "ulimits": {"memlock": made.memlock},
        "ports": [f"{made.address}:{made.port}:{made.server_port}"],
        "volumes": [{"type": kind, "source": _literal(made.cache), "target": CACHE} | _existing(made)],
        "healthcheck": {
            "test": ["CMD", "python3", "-c", _HEALTH.format(port=made.server_port)],
            "start_period": f"{START_PERIOD_S}s",
            "interval": "30s",
            "timeout": "20s",
            "retries": 3,
        },
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
