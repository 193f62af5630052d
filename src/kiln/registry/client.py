"""A client of OCI registries: what it reads, and what it pushes, mounts, attaches and deletes."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from kiln import errors
from kiln.registry import artifact, records, reference
from kiln.registry.answers import joined
from kiln.registry.reader import NOT_FOUND, OK, UNKNOWN, RegistryReader, checked, named
from kiln.registry.records import Damaged, Descriptor
from kiln.registry.transport import Ask, Session, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from kiln.registry.transport import Answer

_CREATED, _ACCEPTED, _NO_CONTENT = 201, 202, 204
_ATTACH_TRIES = 8
_SETTLE_S = 0.1


@contextlib.contextmanager
def connect(host: str, *, ca: Path | None = None) -> Iterator[Registry]:
    """Yield the registry at HOST[:PORT]; nothing is asked yet. Plain http is spoken to this machine alone."""
    with Session() as session:
        yield Registry(Transport(host, session, ca))


class Registry(RegistryReader):
    """One registry; what is written is compared with what it says that it has. A write is never sent twice."""

    def push_blob(self, repository: str, data: bytes, media_type: str) -> Descriptor:
        """Upload bytes, unless the repository has them; return their descriptor."""
        descriptor = records.describe(data, media_type)
        if self._has_blob(repository, descriptor):
            return descriptor
        what = f"blob {descriptor.digest}"
        begin = self._ask(repository, "POST", "blobs/uploads/", what=what)
        with self._transport.send(begin, _ACCEPTED) as answer:
            place = _place(answer, begin, digest=descriptor.digest)
        headers = {"Content-Type": "application/octet-stream"}
        upload = Ask(method="PUT", path=place, what=begin.what, repository=repository, headers=headers, data=data)
        with self._transport.send(upload, _CREATED) as answer:
            self._compare(answer, descriptor.digest, begin.what)
        return descriptor

    def mount(self, repository: str, digest: str, source_repository: str) -> bool:
        """Take over a blob from another repository of this registry, no bytes moved; False where it does not."""
        query = urlencode(
            {
                "mount": reference.checked_digest(digest),
                "from": reference.checked_repository(source_repository),
            }
        )
        ask = self._ask(repository, "POST", f"blobs/uploads/?{query}", what=f"blob {digest}", also=source_repository)
        with self._transport.send(ask, _CREATED, _ACCEPTED) as answer:
            if answer.status == _CREATED:
                self._compare(answer, digest, ask.what)
                return True
            place = _place(answer, ask)
        # the registry waits for an upload instead: call it off, best effort, it expires by itself
        cancel = Ask(method="DELETE", path=place, what=ask.what, repository=repository)
        with contextlib.suppress(errors.KilnError), self._transport.send(cancel, _NO_CONTENT, _ACCEPTED, OK):
            pass
        return False

    def put_manifest(self, repository: str, ref: str, data: bytes, media_type: str) -> str:
        """Store a manifest by tag or by its own digest; return the digest, which the registry must have found too."""
        self._put(repository, ref, data, media_type)
        return records.digest_of(data)

    def delete(self, repository: str, ref: str) -> bool:
        """Remove a tag, or a manifest with all its tags; False where the registry does not do that."""
        ask = self._ask(repository, "DELETE", f"manifests/{checked(ref)}", what=named(ref))
        with self._transport.send(ask, _ACCEPTED, OK, _NO_CONTENT, *UNKNOWN):
            pass
        return self.head(repository, ref) is None

    def attach(
        self,
        repository: str,
        subject: Descriptor,
        *,
        artifact_type: str,
        data: bytes,
        annotations: Mapping[str, str] | None = None,
    ) -> Descriptor:
        """Store an artifact that refers to `subject`, listed among its referrers; return the artifact's descriptor."""
        self.push_blob(repository, records.EMPTY, records.OCI_EMPTY)
        layer = self.push_blob(repository, data, artifact_type)
        made = artifact.manifest(subject, layer, artifact_type=artifact_type, annotations=annotations or {})
        headers = self._put(repository, made.digest, made.data, made.descriptor.media_type)
        listed = artifact.listed(made)
        if headers.get("OCI-Subject") != subject.digest:
            self._list_under_fallback(repository, subject.digest, listed)
        return listed

    def _list_under_fallback(self, repository: str, subject: str, listed: Descriptor) -> None:
        """Add to the fallback tag's index until it is seen there: others may write the tag at the same time."""
        tag = artifact.fallback_tag(subject)
        for _ in range(_ATTACH_TRIES):
            known = self._fallback(repository, subject)
            if known and listed in known.manifests:
                time.sleep(_SETTLE_S * (1 + random.random()))  # noqa: S311 - only so that two do not keep step
                again = self._fallback(repository, subject)
                if again and listed in again.manifests:
                    return
                continue
            index = artifact.extended(known, listed)
            self._put(repository, tag, index.data, index.descriptor.media_type)
        where = self._where(repository, tag)
        raise errors.CommandFailed(f"{where}: others keep writing this tag, so {listed.digest} is not listed under it")

    def _put(self, repository: str, ref: str, data: bytes, media_type: str) -> Mapping[str, str]:
        """Store a manifest and return the answer's headers, its digest compared."""
        digest = records.digest_of(data)
        if reference.is_digest(ref) and ref != digest:
            raise errors.BadInput(f"{self._where(repository, ref)}: the manifest to be put there is {digest}")
        headers = {"Content-Type": media_type}
        path = f"manifests/{checked(ref)}"
        ask = self._ask(repository, "PUT", path, what=named(ref), headers=headers, data=data)
        with self._transport.send(ask, _CREATED) as answer:
            pass
        if "Docker-Content-Digest" in answer.headers:
            self._compare(answer, digest, ask.what)
        elif not (head := self.head(repository, ref)) or head.digest != digest:
            raise Damaged(f"{ask.what}: the registry does not have what was put there")
        return answer.headers

    def _has_blob(self, repository: str, descriptor: Descriptor) -> bool:
        ask = self._ask(repository, "HEAD", f"blobs/{descriptor.digest}", what=f"blob {descriptor.digest}")
        with self._transport.send(ask, OK, NOT_FOUND) as answer:
            return answer.status == OK and answer.headers.get("Content-Length") == str(descriptor.size)


def _place(answer: Answer, ask: Ask, *, digest: str = "") -> str:
    """Return the address of an upload, which may be given relative to the one asked."""
    location = answer.headers.get("Location", "")
    if not location:
        raise errors.CommandFailed(f"{ask.what}: the registry does not say where to upload it")
    place = joined(answer.url, location, ask.what)
    return f"{place}{'&' if '?' in place else '?'}digest={quote(digest)}" if digest else place
