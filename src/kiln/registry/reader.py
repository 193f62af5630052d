"""The reading half of a registry's client: manifests, blobs, tags and referrers, checked against their digests."""

from __future__ import annotations

import contextlib
import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode, urlsplit

import requests

from kiln import errors
from kiln.registry import artifact, records, reference
from kiln.registry.answers import joined
from kiln.registry.records import Damaged, Descriptor, Manifest
from kiln.registry.transport import Ask, Cut, Transport

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from kiln.registry.transport import Answer

OK, PARTIAL, NOT_FOUND = 200, 206, 404
# what registries without the referrers API, or without deletion, answer where it would be
UNKNOWN = (400, 404, 405, 406)
_ACCEPT = {"Accept": ", ".join((*records.MANIFESTS, *records.INDEXES))}
_SIZE = re.compile(r"[0-9]{1,15}")
_PAGE = 1000
_MAX_PAGES = 100
_TRIES = 4


class RegistryReader:
    """One registry, to be read; Missing is raised where it cannot be reached or refuses, Damaged for wrong bytes."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.host = transport.host

    def head(self, repository: str, ref: str) -> Descriptor | None:
        """Return what a tag or digest stands for; None where it is not there."""
        found = self._ask(repository, "HEAD", f"manifests/{checked(ref)}", what=named(ref), headers=_ACCEPT)
        with self._transport.send(found, OK, NOT_FOUND) as answer:
            if answer.status == NOT_FOUND:
                return None
        media_type, digest = _media_type(answer), answer.headers.get("Docker-Content-Digest", "")
        size = answer.headers.get("Content-Length", "")
        if media_type not in (*records.MANIFESTS, *records.INDEXES) or not digest or not _SIZE.fullmatch(size):
            manifest = self._get(repository, ref)
            return manifest.descriptor if manifest else None
        where = self._where(repository, ref)
        if not reference.is_digest(digest) or (reference.is_digest(ref) and digest != ref):
            raise Damaged(f"{where}: the registry says that its digest is {digest!r}")
        return Descriptor(media_type=media_type, digest=digest, size=int(size))

    def manifest(self, repository: str, ref: str) -> Manifest:
        """Return the manifest of a tag or digest: a tag is asked for its digest first, and read by that."""
        if reference.is_digest(ref):
            manifest = self._get(repository, ref)
        else:
            head = self.head(repository, ref)
            manifest = self._get(repository, head.digest) if head else None
        if not manifest:
            raise errors.Missing(f"{self._where(repository, ref)}: the registry does not have it")
        return manifest

    def read_blob(self, repository: str, descriptor: Descriptor, *, limit: int) -> bytes:
        """Return a blob's bytes; raises Damaged where there are more than `limit`, or others than its digest says."""
        if descriptor.size > limit:
            where = self._where(repository, descriptor.digest)
            raise Damaged(f"{where}: {descriptor.size} bytes, more than the {limit} that Kiln reads here")
        with self.stream_blob(repository, descriptor) as pieces:
            return b"".join(pieces)

    @contextlib.contextmanager
    def stream_blob(self, repository: str, descriptor: Descriptor) -> Iterator[Iterator[bytes]]:
        """Yield the pieces of a blob; the last step raises Damaged unless size and digest are those of `descriptor`."""
        where = self._where(repository, descriptor.digest)
        with contextlib.closing(self._pieces(repository, descriptor)) as pieces:
            yield verified(pieces, descriptor, where)

    def tags(self, repository: str) -> tuple[str, ...]:
        """Return every tag of a repository; none where there is no such repository."""
        found: list[str] = []
        for page in self._pages(repository, f"tags/list?n={_PAGE}", what="tags"):
            where = self._where(repository, "tags")
            listed = records.read_json(page, where).get("tags") or []
            if not isinstance(listed, list) or not all(
                isinstance(tag, str) and reference.is_tag(tag) for tag in listed
            ):
                raise Damaged(f"{where}: the registry lists what is no tag")
            found += listed
        return tuple(dict.fromkeys(found))

    def referrers(self, repository: str, digest: str, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """Return what refers to a manifest: by the registry's API, else as the fallback tag's index lists it."""
        query = f"?{urlencode({'artifactType': artifact_type})}" if artifact_type else ""
        path = f"referrers/{reference.checked_digest(digest)}{query}"
        where = self._where(repository, f"referrers of {digest}")
        pages = list(self._pages(repository, path, what=f"referrers of {digest}", media_type=records.OCI_INDEX))
        if pages:
            each = (records.read_manifest(page, records.OCI_INDEX, where).manifests for page in pages)
            found = tuple(descriptor for page in each for descriptor in page)
        else:
            fallback = self._fallback(repository, digest)
            found = fallback.manifests if fallback else ()
        return tuple(descriptor for descriptor in found if artifact_type in {"", descriptor.artifact_type})

    def _fallback(self, repository: str, digest: str) -> Manifest | None:
        tag = artifact.fallback_tag(digest)
        head = self.head(repository, tag)
        manifest = self._get(repository, head.digest) if head else None
        if manifest and not manifest.is_index:
            raise Damaged(f"{self._where(repository, tag)}: the tag for referrers is not one of an index")
        return manifest

    def _get(self, repository: str, ref: str) -> Manifest | None:
        ask = self._ask(repository, "GET", f"manifests/{checked(ref)}", what=named(ref), headers=_ACCEPT)
        answer, data = self._transport.read(ask, OK, NOT_FOUND, limit=records.MAX_MANIFEST_BYTES)
        if answer.status == NOT_FOUND:
            return None
        self._compare(answer, records.digest_of(data), ask.what)
        if reference.is_digest(ref) and records.digest_of(data) != ref:
            raise Damaged(f"{ask.what}: what the registry sends has the digest {records.digest_of(data)}")
        return records.read_manifest(data, _media_type(answer), ask.what)

    def _pieces(self, repository: str, descriptor: Descriptor) -> Generator[bytes]:
        """Yield a blob's bytes; where the connection breaks, go on from there."""
        done = 0
        for left in range(_TRIES - 1, -1, -1):
            try:
                with self._open_blob(repository, descriptor, done) as answer:
                    for piece in answer.pieces():
                        done += len(piece)
                        yield piece
            except Cut:
                if done >= descriptor.size:
                    return
                if not left:
                    raise
            else:
                return

    def _open_blob(self, repository: str, descriptor: Descriptor, start: int) -> Answer:
        headers = {"Range": f"bytes={start}-"} if start else {}
        what = f"blob {descriptor.digest}"
        ask = self._ask(repository, "GET", f"blobs/{descriptor.digest}", what=what, headers=headers)
        answer = self._transport.send(ask, PARTIAL if start else OK)
        if start and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise Damaged(f"{ask.what}: the registry sends another range than was asked for")
        return answer

    def _pages(self, repository: str, path: str, *, what: str, media_type: str = "") -> Iterator[bytes]:
        """Yield every page of a list; none where the registry does not know it, or answers in another kind."""
        url, yielded = path, False
        unknown = UNKNOWN if media_type else (NOT_FOUND,)
        for _ in range(_MAX_PAGES):
            ask = self._ask(repository, "GET", url, what=what, headers={"Accept": media_type or "application/json"})
            answer, data = self._transport.read(ask, OK, *unknown, limit=records.MAX_MANIFEST_BYTES)
            if answer.status != OK or (media_type and _media_type(answer) != media_type):
                if yielded:
                    raise Damaged(f"{ask.what}: the list ends before its end")
                return
            yielded = True
            yield data
            following = requests.utils.parse_header_links(answer.headers.get("Link", ""))
            link = next((each["url"] for each in following if each.get("rel") == "next"), "")
            if not link:
                return
            # only the query counts: where the list is, is known
            query = urlsplit(joined(answer.url, link, ask.what)).query
            url = f"{path.partition('?')[0]}?{urlencode(parse_qsl(query))}"
        raise Damaged(f"{self._where(repository, what)}: more than {_MAX_PAGES} pages")

    def _compare(self, answer: Answer, digest: str, what: str) -> None:
        said = answer.headers.get("Docker-Content-Digest", digest)
        if said != digest:
            raise Damaged(f"{what}: the registry says that its digest is {said!r}, its bytes have {digest}")

    def _ask(  # noqa: PLR0913 - one argument for each part of a request
        self,
        repository: str,
        method: str,
        path: str,
        *,
        what: str,
        also: str = "",
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
    ) -> Ask:
        return Ask(
            method=method,
            path=f"/v2/{reference.checked_repository(repository)}/{path}",
            what=self._where(repository, what),
            repository=repository,
            also=also,
            headers=headers or {},
            data=data,
        )

    def _where(self, repository: str, what: str) -> str:
        name = f"{self.host}/{repository}"
        if reference.is_digest(what):
            return f"{name}@{what}"
        return f"{name}{what}" if what.startswith((":", "@")) else f"{name}: {what}"


def verified(pieces: Iterator[bytes], descriptor: Descriptor, where: str) -> Iterator[bytes]:
    """Yield the pieces; raise Damaged as soon as they are too many, and at the end unless they are what was named."""
    sha256, size = hashlib.sha256(), 0
    for piece in pieces:
        size += len(piece)
        if size > descriptor.size:
            raise Damaged(f"{where}: more than the {descriptor.size} bytes that its manifest says")
        sha256.update(piece)
        yield piece
    if size != descriptor.size:
        raise Damaged(f"{where}: {size} bytes, its manifest says {descriptor.size}")
    if (found := f"sha256:{sha256.hexdigest()}") != descriptor.digest:
        raise Damaged(f"{where}: its bytes have the digest {found}")


def checked(ref: str) -> str:
    return ref if reference.is_digest(ref) else reference.checked_tag(ref)


def named(ref: str) -> str:
    return f"@{ref}" if reference.is_digest(ref) else f":{ref}"


def _media_type(answer: Answer) -> str:
    return answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
