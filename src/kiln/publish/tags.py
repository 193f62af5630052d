"""Names the tags of an image, and moves them all or none, each read back."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kiln import errors
from kiln.registry import records, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kiln.plan import Target
    from kiln.registry.client import Registry
    from kiln.registry.records import Manifest

_SHOWN_SERIES = 12  # hex digits of the series in a tag
_ENDINGS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, kw_only=True)
class Names:
    """`immutable` never names other content; `aliases` move from one publication to the next."""

    immutable: str
    aliases: tuple[str, ...]

    @property
    def every(self) -> tuple[str, ...]:
        return (self.immutable, *self.aliases)


def names(target: Target, *, twin: bool, series: str, aliases: Sequence[str]) -> Names:
    """Return the tags of a target: MODEL-VARIANT-ARCH[-twin]-vRELEASE-kSERIES, then what points to it."""
    model = target.model.rsplit("/", 1)[-1].lower()
    family = f"{model}-{target.variant}-{target.arch}{'-twin' if twin else ''}"
    of_release = f"{family}-v{target.release}"
    immutable = reference.checked_tag(immutable_tag(of_release, series))
    chosen = tuple(reference.checked_tag(tag) for tag in aliases) or (of_release, family)
    if immutable in chosen:
        raise errors.BadInput(f"--alias {immutable}: this tag names one content for ever; it is no alias")
    return Names(immutable=immutable, aliases=tuple(dict.fromkeys(chosen)))


def immutable_tag(of_release: str, series: str) -> str:
    return f"{of_release}-k{series[:_SHOWN_SERIES]}"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A tag of a repository and the manifest that it named before, None where it was not there."""

    tag: str
    before: Manifest | None


def look(registry: Registry, repository: str, tags: Sequence[str]) -> tuple[Place, ...]:
    """Return where each tag points now."""
    found = ((tag, registry.head(repository, tag)) for tag in tags)
    return tuple(Place(tag=tag, before=registry.manifest(repository, at.digest) if at else None) for tag, at in found)


def taken(place: Place, digest: str) -> str:
    """Return why a tag that never changes cannot be used for this digest, empty when it can."""
    if place.before is None or place.before.digest == digest:
        return ""
    return f"names {place.before.digest} already, and never names anything else"


@contextlib.contextmanager
def moved(
    registry: Registry, repository: str, places: Sequence[Place], to: Manifest, *, say: Callable[[str], None]
) -> Iterator[None]:
    """Point every tag to one manifest, in order, each read back; if anything fails, here or in the body, undo it all.

    An interrupt is a failure, too, and so is a tag that somebody else has moved when the body is done. What cannot be
    put back is said, and is part of the error.
    """
    begun: list[Place] = []
    try:
        for place in places:
            begun.append(place)
            _put(registry, repository, place.tag, to)
        yield
        for place in places:
            _compare(registry, repository, place.tag, to)
    except BaseException as error:
        with _undisturbed():
            left = [told for place in reversed(begun) if (told := _restore(registry, repository, place, to))]
            outcome = "\n".join(left) or "every tag is again as it was"
            say(outcome)
        if isinstance(error, errors.KilnError):
            raise type(error)(f"{error.message}\n{outcome}", hint=error.hint) from error
        raise


def _put(registry: Registry, repository: str, tag: str, to: Manifest) -> None:
    registry.put_manifest(repository, tag, to.data, to.descriptor.media_type)
    _compare(registry, repository, tag, to)


def _compare(registry: Registry, repository: str, tag: str, to: Manifest) -> None:
    found = registry.head(repository, tag)
    if found is None or found.digest != to.digest:
        at = found.digest if found else "nothing"
        raise errors.CommandFailed(f"{repository}:{tag}: set to {to.digest}, but read back it names {at}")


def _restore(registry: Registry, repository: str, place: Place, moved_to: Manifest) -> str:
    """Put one tag back and read it back; return what is wrong with it now, empty when it is as it was."""
    before = place.before.digest if place.before else ""
    try:
        found = registry.head(repository, place.tag)
        now = found.digest if found else ""
        if now == before:
            return ""
        if now != moved_to.digest:
            return f"moved by somebody else to {now or 'nothing'}, left: {repository}:{place.tag}"
        if place.before:
            _put(registry, repository, place.tag, place.before)
            return ""
        if _remove(registry, repository, place.tag, moved_to):
            return ""
        why = "this registry deletes no tags"
    except (errors.KilnError, OSError) as error:
        why = str(error)
    was = before or "not there"
    return f"NOT PUT BACK: {repository}:{place.tag} was {was} before, and may name {moved_to.digest} now: {why}"


def _remove(registry: Registry, repository: str, tag: str, moved_to: Manifest) -> bool:
    """Take a tag away that was not there before; say whether it is gone.

    Many registries delete by digest alone, which would take the image with it. There the tag is pointed to a manifest
    of its own, and that one is deleted.
    """
    if registry.delete(repository, tag):
        return True
    empty = registry.push_blob(repository, records.EMPTY, records.OCI_EMPTY)
    own = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": records.OCI_MANIFEST,
            "artifactType": "application/vnd.kiln.removed",
            "config": records.as_json(empty),
            "layers": [records.as_json(empty)],
            "annotations": {"ai.kiln.removed": str(uuid.uuid4())},
        }
    ).encode()
    digest = registry.put_manifest(repository, tag, own, records.OCI_MANIFEST)
    if registry.delete(repository, digest) and registry.head(repository, tag) is None:
        return True
    _put(registry, repository, tag, moved_to)
    return False


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let a second interrupt wait until what the first one began to undo is undone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = {number: signal.signal(number, lambda number, _: waiting.append(number)) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
