"""Runs the smoke tiers against one image and returns what they found."""

from __future__ import annotations

import contextlib
import datetime as dt
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kiln import errors
from kiln.engine import guard
from kiln.errors import Finding
from kiln.smoke import caches, checks, puppet, server, structural, transcript
from kiln.smoke.records import CheckResult, SmokeResult
from kiln.smoke.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kiln.engine.guard import Session
    from kiln.report import Reporter
    from kiln.smoke.records import Status, Tier
    from kiln.smoke.server import Engine, ServeSpec

_KILLED = 137
_GPU_DEVICES = ("/dev/kfd", "/dev/nvidia0")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is smoked: an image that the engine holds, what the recipe serves it with, and the family of transcripts.

    `patched` is what the image should hold; `not_served` are flags of the recipe that mean nothing without a GPU.
    """

    image: str
    family: str
    flags: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    patched: structural.Patched | None = None
    not_served: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Started:
    """What a run has made before it starts the server."""

    engine: Engine
    spec: ServeSpec
    session: Session
    family: transcript.Family
    patched: structural.Patched | None
    reporter: Reporter


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
        started_run = _Started(
            engine=engine,
            spec=spec,
            session=session,
            family=family,
            patched=inputs.patched,
            reporter=reporter,
        )
        found = tuple(_serve(started_run))
    with contextlib.closing(engine.client()) as client:
        caches.prune(client, used=spec.volumes)
    seconds = round(time.monotonic() - clock, 2)
    return SmokeResult(
        image=image.digest, puppet=made.digest, started=started, seconds=seconds, checks=(*found, *_not_covered(inputs))
    )


def look(engine: Engine, image: str, patched: structural.Patched, *, reporter: Reporter) -> SmokeResult:
    """Check an image whose server cannot be started here: tier structural, all else is NOT_RUN."""
    clock, started = time.monotonic(), dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    found = server.find_image(engine, image)
    with (
        contextlib.closing(engine.client()) as client,
        reporter.step("verify the patched files, run the probes"),
    ):
        checked = tuple(structural.run_idle(client, found.digest, patched))
    reason = "serving a real image is not part of this release of Kiln"
    unserved = (_not_run("serve", name, reason) for name in (*(check.name for check in checks.SERVE), "shutdown"))
    seconds = round(time.monotonic() - clock, 2)
    return SmokeResult(
        image=found.digest, puppet="", started=started, seconds=seconds, checks=(*checked, *unserved, *_later("a real"))
    )


def _serve(made: _Started) -> Iterator[CheckResult]:
    clock = time.monotonic()
    with contextlib.ExitStack() as stack:
        try:
            with made.reporter.step("start the server") as detail:
                running = stack.enter_context(server.serving(made.engine, made.spec, made.session, detail=detail))
        except errors.SmokeFailed as error:
            yield _served("start", clock, Finding(where="start", problem=error.message, hint=error.hint))
            yield from _unserved(made.patched)
            return
        yield _served("start", clock)
        yield from _ask(made, running)
        if made.patched:
            client = stack.enter_context(contextlib.closing(made.engine.client()))
            with made.reporter.step("verify the patched files, run the probes"):
                yield from structural.run(client, str(running.container.name), made.patched)
        with made.reporter.step("stop the server"):
            yield _shutdown(running)


def _ask(made: _Started, running: server.Running) -> Iterator[CheckResult]:
    with (
        made.reporter.step("ask the server") as detail,
        Talk(running.url, made.spec.served_name, made.family.tools) as talk,
    ):
        means = {said.name: said for said in made.family.cut()}
        subject = checks.Subject(talk=talk, means=means, markers=made.family.markers)
        for check in checks.SERVE:
            detail(check.name)
            yield checks.run(check, subject)


def _unserved(patched: structural.Patched | None) -> Iterator[CheckResult]:
    reason = "the server did not start"
    yield from (_not_run("serve", check.name, reason) for check in checks.SERVE)
    yield _not_run("serve", "shutdown", reason)
    yield from (_not_run("structural", name, reason) for name in (patched.names if patched else ()))


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


def _not_covered(inputs: Inputs) -> Iterator[CheckResult]:
    if inputs.not_served:
        yield _not_run("serve", "flags", f"without a GPU it was served without {' '.join(inputs.not_served)}")
    if inputs.patched is None:
        yield _not_run("structural", "verify", "no series was named for this image")
    yield from _later("a CPU-only")


def _later(kind: str) -> Iterator[CheckResult]:
    """Yield the tiers that are not run on an image of this kind, wherever it is."""
    yield _not_run("structural", "flags, code objects", "not part of this release of Kiln")
    yield _not_run("replay", "replay", "not part of this release of Kiln")
    no_gpu = not any(Path(device).exists() for device in _GPU_DEVICES)
    reason = "no GPU on this machine" if no_gpu else f"not part of a smoke run of {kind} image so far"
    yield _not_run("device", "device", reason)
    yield _not_run("full", "full", reason)
