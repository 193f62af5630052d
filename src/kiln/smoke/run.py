"""Runs the smoke tiers against one image and returns what they found."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors
from kiln.errors import Finding
from kiln.smoke import caches, checks, guard, puppet, server, transcript
from kiln.smoke.records import CheckResult, SmokeResult
from kiln.smoke.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.report import Reporter
    from kiln.smoke.guard import Session
    from kiln.smoke.records import Status, Tier
    from kiln.smoke.server import Engine, ServeSpec

_KILLED = 137
_GPU_DEVICES = ("/dev/kfd", "/dev/nvidia0")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is smoked: an image that the engine holds, what the recipe serves it with, and the family of transcripts."""

    image: str
    family: str
    flags: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()


def run(engine: Engine, inputs: Inputs, *, cache: Path, reporter: Reporter) -> SmokeResult:
    """Serve the image with a puppet and ask it everything. A server that does not start is a failed check."""
    clock, started = time.monotonic(), dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    image = server.find_image(engine, inputs.image)
    family = transcript.load(inputs.family)
    made = puppet.build(cache / "puppet" / inputs.family, family.cut(), family.added_tokens)
    spec = server.twin_spec(image, made.path.resolve(), flags=inputs.flags, env=inputs.env)
    server.serve_argv(spec)  # a wrong flag is said before anything is started
    for name in guard.sweep(engine.host):
        reporter.note(f"removed container {name}, left by a run that is gone")
    with guard.guarded(engine.host) as session:
        found = tuple(_serve_tier(engine, spec, session, family=family, reporter=reporter))
    with contextlib.closing(engine.client()) as client:
        caches.prune(client, used=spec.volumes)
    seconds = round(time.monotonic() - clock, 2)
    return SmokeResult(
        image=image.digest, puppet=made.digest, started=started, seconds=seconds, checks=(*found, *_other_tiers())
    )


def _serve_tier(
    engine: Engine, spec: ServeSpec, session: Session, *, family: transcript.Family, reporter: Reporter
) -> Iterator[CheckResult]:
    clock = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            with reporter.step("start the server") as detail:
                running = stack.enter_context(server.serving(engine, spec, session, detail=detail))
        except errors.SmokeFailed as error:
            finding = Finding(where="start", problem=error.message, hint=error.hint)
            yield _served("start", clock, finding)
            yield from (_not_run("serve", check.name, "the server did not start") for check in checks.SERVE)
            yield _not_run("serve", "shutdown", "the server did not start")
            return
        yield _served("start", clock)
        with reporter.step("ask the server") as detail:
            talk = stack.enter_context(Talk(running.url, spec.served_name, family.tools))
            means = {said.name: said for said in family.cut()}
            subject = checks.Subject(talk=talk, means=means, markers=family.markers)
            for check in checks.SERVE:
                detail(check.name)
                yield checks.run(check, subject)
        with reporter.step("stop the server"):
            yield _shutdown(running)


def _shutdown(running: server.Running) -> CheckResult:
    clock = time.monotonic()
    try:
        code = running.stop()
    except errors.SmokeFailed as error:
        return _served("shutdown", clock, Finding(where="shutdown", problem=error.message))
    if code == _KILLED:
        problem = f"the server did not end within {server.STOP_S} s of being asked to"
        return _served("shutdown", clock, Finding(where="shutdown", problem=problem))
    return _served("shutdown", clock)


def _served(name: str, clock: float, *findings: Finding) -> CheckResult:
    seconds = round(time.monotonic() - clock, 3)
    status: Status = "failed" if findings else "passed"
    return CheckResult(tier="serve", name=name, status=status, findings=findings, seconds=seconds)


def _not_run(tier: Tier, name: str, reason: str) -> CheckResult:
    return CheckResult(tier=tier, name=name, status="not_run", reason=reason)


def _other_tiers() -> Iterator[CheckResult]:
    yield _not_run("structural", "structural", "the checks of the image's files are not part of this step")
    yield _not_run("replay", "replay", "the replay through the image's parsers is not part of this step")
    no_gpu = not any(Path(device).exists() for device in _GPU_DEVICES)
    reason = "no GPU on this machine" if no_gpu else "not part of a smoke run of a CPU-only image"
    yield _not_run("device", "device", reason)
    yield _not_run("full", "full", reason)
