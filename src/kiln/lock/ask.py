"""Asks registries which digests stand behind tags: HEAD first, no more than is not known yet."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln.lock.judge import Answer
from kiln.registry import client, image, reference
from kiln.registry.records import read_json
from kiln.registry.transport import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kiln.lock.judge import Expected
    from kiln.registry.client import Registry
    from kiln.registry.records import Manifest
    from kiln.report import Reporter

_PARALLEL = 6
_MAX_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Question:
    """One image: `pulled` is what its tag reference is pulled as, a mirror included."""

    image: str
    pulled: str
    want: Expected


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A registry that gave no answer, and the images that so could not be asked about."""

    host: str
    reason: str
    hint: str
    images: tuple[str, ...]


def every(
    questions: Sequence[Question], ca: Path | None, reporter: Reporter
) -> tuple[dict[str, Answer], tuple[Silence, ...]]:
    """Ask about every image; a registry that cannot be reached at first is not asked again."""
    by_host: dict[str, list[Question]] = {}
    for question in questions:
        by_host.setdefault(reference.parse(question.pulled).host, []).append(question)
    answers: dict[str, Answer] = {}
    silent: list[Silence] = []
    for host, asked in by_host.items():
        with reporter.step(f"ask {host} about {len(asked)} images") as detail:
            unanswered = {}
            for name, answer in _host(host, asked, ca):
                detail(name)
                if isinstance(answer, Answer):
                    answers[name] = answer
                else:
                    unanswered[name] = answer
        if unanswered:
            said = next(iter(unanswered.values()))
            silent.append(Silence(host=host, reason=said.message, hint=said.hint, images=tuple(unanswered)))
    return answers, tuple(silent)


def _host(host: str, questions: Sequence[Question], ca: Path | None) -> Iterator[tuple[str, Answer | errors.Missing]]:
    first, *others = questions
    with client.connect(host, ca=ca) as registry, ThreadPoolExecutor(_PARALLEL) as pool:
        said = _asked(registry, first)
        yield first.image, said
        if isinstance(said, Cut):
            yield from ((question.image, said) for question in others)
            return
        rest = pool.map(lambda question: _asked(registry, question), others)
        yield from zip((question.image for question in others), rest, strict=True)


def _asked(registry: Registry, question: Question) -> Answer | errors.Missing:
    try:
        return one(registry, question)
    except errors.Missing as error:
        return error
    except errors.KilnError as error:
        return Answer(problem=error.message)


def one(registry: Registry, question: Question) -> Answer:
    """Return what a registry says of one tag; raises Missing where it says nothing, another error for nonsense."""
    at, want = reference.parse(question.pulled), question.want
    head = registry.head(at.repository, at.tag)
    if head is None:
        answer = Answer()
    elif want.is_confirmed and want.top and head.digest == want.top.digest:
        # what stands behind a digest was read when it was confirmed, and cannot change
        assert want.manifest
        answer = Answer(index=want.index.digest if want.index else "", manifest=want.manifest.digest)
    else:
        answer = _behind(registry, at.repository, head.digest)
    has_locked = want.manifest is None or registry.head(at.repository, want.manifest.digest) is not None
    return replace(answer, has_locked=has_locked)


def _behind(registry: Registry, repository: str, digest: str) -> Answer:
    """Return the linux/amd64 manifest behind a tag's digest."""
    manifest = registry.manifest(repository, digest)
    if not manifest.is_index:
        _require_platform(registry, repository, manifest)
        return Answer(manifest=digest)
    found = [each.digest for each in manifest.manifests if each.platform == image.PLATFORM]
    if len(found) != 1:
        platforms = ", ".join(sorted({each.platform or "none" for each in manifest.manifests}))
        raise errors.BadInput(
            f"{repository}@{digest} has {len(found)} images for {image.PLATFORM}; it is for: {platforms}"
        )
    return Answer(index=digest, manifest=found[0])


def _require_platform(registry: Registry, repository: str, manifest: Manifest) -> None:
    """Raise BadInput where a manifest without an index is for other machines, or for none."""
    digest = manifest.descriptor.digest
    if manifest.config is None:
        raise errors.BadInput(f"{repository}@{digest} is no image: it has no config")
    where = f"{repository}@{digest}"
    config = read_json(registry.read_blob(repository, manifest.config, limit=_MAX_CONFIG_BYTES), where)
    if (platform := image.platform_of(config)) != image.PLATFORM:
        raise errors.BadInput(f"{where} is for {platform or 'no platform'}, not for {image.PLATFORM}")
