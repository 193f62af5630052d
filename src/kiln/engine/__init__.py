"""Finds a Docker engine with BuildKit, or brings up the embedded one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

from kiln import errors
from kiln.engine import embedded, machine, plan
from kiln.engine.records import Engine, Status

if TYPE_CHECKING:
    from pathlib import Path

    from kiln.report import Reporter

__all__ = ["Engine", "Status", "down", "ensure", "find", "status", "up"]

_CHOICE = "KILN_ENGINE"


def find(home: Path) -> Engine | None:
    """Return the machine's engine if one answers, else the embedded one under `home` if it is up."""
    own = embedded.find(home)
    if _choice() == "embedded":
        return own
    if own and os.environ.get("DOCKER_HOST") == own.host:
        return own
    return machine.find() or own


def ensure(home: Path, reporter: Reporter) -> Engine:
    """Return an engine that answers, the embedded one brought up if there is none."""
    return find(home) or up(home, reporter)


def up(home: Path, reporter: Reporter) -> Engine:
    """Bring up the embedded engine under `home`, or return it if it is up."""
    return embedded.up(home, reporter)


def down(home: Path, reporter: Reporter, *, purge: bool = False) -> bool:
    """End the embedded engine under `home`, and with `purge` remove all of it; say whether it ran."""
    return embedded.down(home, reporter, purge=purge)


def status(home: Path) -> Status:
    """Say which engine would be used and what of the embedded one is there; starts and ends nothing."""
    layout = plan.Home(root=home.resolve())
    engine, problem = None, ""
    try:
        engine = find(home)
    except errors.Missing as error:
        problem = error.message
    return Status(
        home=layout.root,
        engine=engine,
        embedded_pids=embedded.pids(layout),
        unpacked=layout.docker.exists(),
        logs=tuple(log for log in (layout.dockerd_log, layout.registry_log) if log.exists()),
        problem=problem,
    )


def _choice() -> Literal["", "embedded"]:
    named = os.environ.get(_CHOICE, "")
    if named not in {"", "embedded"}:
        raise errors.BadInput(f"{_CHOICE}={named}: the only choice is embedded", hint=f"unset {_CHOICE}")
    return "embedded" if named else ""
