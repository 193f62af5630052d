"""Asks registries which digests stand behind tags: HEAD first, no more than is not known yet."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiln import errors
from kiln.lock.judge import Answer
from kiln.registry import client, image, reference
from kiln.registry.records import MANIFESTS
from kiln.registry.transport import Cut

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from kiln.lock.judge import Expected
    from kiln.registry.client import Registry
    from kiln.registry.records import Descriptor, Manifest
    from kiln.report import Reporter

_PARALLEL = 6
_STATUS = re.compile(r"\bHTTP ([0-9]{3})\b")
_REFUSALS = frozenset({"401", "403", "429"})


@dataclass(frozen=True, kw_only=True)
class Question:
    """One image: `pulled` is what its tag reference is pulled as, a mirror included."""

    image: str
    pulled: str
    want: Expected


@dataclass(frozen=True, kw_only=True)
class Silence:
    """A registry that gave no answer, why, and the images that so could not be asked about."""

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
            unanswered: dict[tuple[str, str], list[str]] = {}
            for question, answer in _host(host, asked, ca):
                detail(question.image)
                if isinstance(answer, Answer):
                    answers[question.image] = answer
                else:
                    unanswered.setdefault((_reason(answer, question), answer.hint), []).append(question.image)
        silent += [
            Silence(host=host, reason=reason, hint=hint, images=tuple(images))
            for (reason, hint), images in unanswered.items()
        ]
    return answers, tuple(silent)


def _host(
    host: str, questions: Sequence[Question], ca: Path | None
) -> Iterator[tuple[Question, Answer | errors.Missing]]:
    first, *others = questions
    with client.connect(host, ca=ca) as registry, ThreadPoolExecutor(_PARALLEL) as pool:
        said = _asked(registry, first)
        yield first, said
        if isinstance(said, Cut):
            yield from ((question, said) for question in others)
            return
        rest = pool.map(lambda question: _asked(registry, question), others)
        yield from zip(others, rest, strict=True)


def _asked(registry: Registry, question: Question) -> Answer | errors.Missing:
    try:
        return one(registry, question)
    except errors.Missing as error:
        return Answer(problem=error.message) if _is_answer(error) else error
    except errors.KilnError as error:
        return Answer(problem=error.message)


def one(registry: Registry, question: Question) -> Answer:
    """Return what a registry says of one tag; raises Missing where it says nothing, another error for nonsense."""
    at, want = reference.parse(question.pulled), question.want
    head = registry.head(at.repository, at.tag)
    if head is None:
        answer = Answer()
    else:
        is_same = want.is_confirmed and want.top and head.digest == want.top.digest
        is_known = is_same and (want.index or head.media_type in MANIFESTS)
        known = want.manifest.digest if is_known and want.manifest else ""
        answer = _behind(registry, at.repository, head.digest, known)
    has_locked = want.manifest is None or registry.head(at.repository, want.manifest.digest) is not None
    return replace(answer, has_locked=has_locked)


def _behind(registry: Registry, repository: str, digest: str, known: str) -> Answer:
    """Return the linux/amd64 manifest behind a tag's digest, read but where it is the one that is known."""
    store = _Store(registry=registry, repository=repository, known=known)
    where = f"{repository}@{digest}"
    try:
        found = image.opened(store, digest, image.PLATFORM, where)
    except _Known:
        return Answer(index="" if known == digest else digest, manifest=known)
    except _Silent as error:
        raise errors.Missing(error.message, hint=error.hint) from None
    except errors.Missing as error:
        raise errors.BadInput(error.message) from None
    return Answer(index=found.index_digest, manifest=found.digest)


class _Known(Exception):
    """The manifest that is asked for is the one that was read when it was confirmed, and cannot change."""


class _Silent(errors.Missing):
    """The registry gives no answer, which says nothing of the image."""


@dataclass(frozen=True, kw_only=True)
class _Store:
    """A repository as `image.opened` reads it, up to the manifest that is known."""

    registry: Registry
    repository: str
    known: str

    def manifest(self, ref: str) -> Manifest:
        if ref == self.known:
            raise _Known
        try:
            return self.registry.manifest(self.repository, ref)
        except errors.Missing as error:
            if self._is_absent(ref):
                raise errors.BadInput(f"{self.repository}@{ref}: the registry does not have it") from None
            raise _heard(error) from None

    def read_blob(self, descriptor: Descriptor, *, limit: int) -> bytes:
        try:
            return self.registry.read_blob(self.repository, descriptor, limit=limit)
        except errors.Missing as error:
            raise _heard(error) from None

    def _is_absent(self, ref: str) -> bool:
        try:
            return self.registry.head(self.repository, ref) is None
        except errors.Missing as error:
            raise _heard(error) from None


def _heard(error: errors.Missing) -> errors.KilnError:
    return errors.BadInput(error.message) if _is_answer(error) else _Silent(error.message, hint=error.hint)


def _is_answer(error: errors.Missing) -> bool:
    """Say whether a registry answered: with a status that is neither its own trouble nor a refusal."""
    match = _STATUS.search(error.message)
    return bool(match and match[1].startswith("4") and match[1] not in _REFUSALS)


def _reason(error: errors.Missing, question: Question) -> str:
    """Return why there is no answer, without the name of the one image, so that the same reason is said once."""
    host = re.escape(reference.parse(question.pulled).host)
    return re.sub(rf"^((?:a token for )?){host}/\S+: (?:blob \S+: )?", r"\1", error.message)
