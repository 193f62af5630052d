"""One request to a registry, and its answer: bounded, and never waited for without end."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self
from urllib.parse import urljoin, urlsplit

import urllib3.exceptions

from kiln import errors
from kiln.registry.records import Damaged, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import requests

READS = frozenset({"GET", "HEAD"})
_PIECE = 1 << 20
_REFUSED = frozenset({401, 403})
_MAX_ERROR_BYTES = 64 << 10
_PATIENCE_S, _SLOWEST = 60, 1024  # an answer that by then has come slower than this many bytes a second is given up
_CODE = re.compile(r"[A-Z_]{1,60}")


class Cut(errors.Missing):
    """An answer that ended before its end: asked again, it may come whole."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One request: `what` names it in messages, `repository` and `also` are whom its token is for."""

    method: str
    path: str
    what: str
    repository: str
    also: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    data: bytes | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Return which other requests the same token does for."""
        kind = {"GET": "read", "HEAD": "read", "DELETE": "delete"}.get(self.method, "write")
        return self.repository, kind, self.also


class Answer:
    """A registry's answer, its body not yet read; a context manager that lets go of the connection."""

    def __init__(self, response: requests.Response, ask: Ask, host: str) -> None:
        self._response, self._ask, self._host = response, ask, host
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.url = response.url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._response.close()

    def pieces(self) -> Iterator[bytes]:
        """Yield the body as it comes; raises Cut where it ends early, Missing where it hardly comes at all."""
        if self.headers.get("Content-Encoding", "identity") != "identity":
            raise Damaged(f"{self._ask.what}: {self._host} sends it encoded, which it was not asked to")
        began, done = time.monotonic(), 0
        while True:
            try:
                piece = self._response.raw.read1(_PIECE, decode_content=False)
            except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
                raise Cut(f"{self._ask.what}: {self._host} broke off: {type(error).__name__}") from None
            if not piece:
                return
            done += len(piece)
            passed = time.monotonic() - began
            if passed > _PATIENCE_S and done < passed * _SLOWEST:
                raise errors.Missing(f"{self._ask.what}: {self._host} sends less than {_SLOWEST} bytes a second")
            yield piece

    def read(self, limit: int) -> bytes:
        """Return the whole body; raises Damaged where it is longer than `limit`."""
        body = bytearray()
        for piece in self.pieces():
            body += piece
            if len(body) > limit:
                raise Damaged(f"{self._ask.what}: {self._host} sends more than the {limit} bytes that Kiln reads here")
        return bytes(body)

    def problem(self) -> errors.KilnError:
        """Return the error that this status stands for, with the registry's own codes for it."""
        codes = f" ({', '.join(found)})" if (found := self._codes()) else ""
        said = f"HTTP {self.status}{codes}"
        if self.status in _REFUSED:
            return errors.Missing(
                f"{self._ask.what}: {self._host} does not allow it, or does not have it: {said}",
                hint=f"docker login {self._host}",
            )
        kind = errors.Missing if self._ask.method in READS else errors.CommandFailed
        return kind(f"{self._ask.what}: {self._host} answers {said}")

    def _codes(self) -> list[str]:
        if self._ask.method == "HEAD":
            return []
        try:
            listed = read_json(self.read(_MAX_ERROR_BYTES), "").get("errors")
        except errors.KilnError:
            return []
        found = (each.get("code") for each in listed if isinstance(each, dict)) if isinstance(listed, list) else ()
        return [code for code in found if isinstance(code, str) and _CODE.fullmatch(code)][:3]


def joined(url: str, location: str, what: str) -> str:
    """Return where a Location header leads; raises Damaged where that is no address."""
    try:
        address = urljoin(url, location).partition("#")[0]
        urlsplit(address).port  # noqa: B018 - raises where it is none
    except ValueError:
        raise Damaged(f"{what}: sent on to what is no address") from None
    return address
