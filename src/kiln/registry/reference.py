"""Reads image references by Docker's rules: docker.io and library/ filled in, nothing guessed beyond that."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from kiln import errors

DOCKER_HUB = "docker.io"
_OLD_DOCKER_HUB = "index.docker.io"
_OFFICIAL = "library"
_MAX_NAME = 255
_MAX_PORT = 65_535

_LABEL = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HEX = re.compile(r"[0-9a-f]{64}")
_HINT = "write it as [HOST[:PORT]/]NAME[:TAG][@sha256:...]"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image's full name, and a tag, a digest, both or none."""

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}"

    def at(self, digest: str) -> Reference:
        """Return the same name at this digest, without a tag."""
        return replace(self, tag="", digest=checked_digest(digest))

    def tagged(self, tag: str) -> Reference:
        """Return the same name with this tag, without a digest."""
        return replace(self, tag=checked_tag(tag), digest="")

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}{f'@{self.digest}' if self.digest else ''}"


def parse(text: str) -> Reference:
    """Return what `text` names; raises BadInput where Docker would not take it, or the digest is not sha256."""
    name, at, digest = text.partition("@")
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, colon, tag = name, "", ""
    host, repository = _split(path)
    if _HEX.fullmatch(path):
        raise errors.BadInput(f"{_shown(text)}: 64 hex digits are an image's id, not its name", hint=_HINT)
    return Reference(
        host=checked_host(host),
        repository=checked_repository(repository),
        tag=checked_tag(tag) if colon else "",
        digest=checked_digest(digest) if at else "",
    )


def checked_host(text: str) -> str:
    """Return a registry's HOST[:PORT] that can be one; raises BadInput."""
    match = _HOST.fullmatch(text)
    if not match or len(text) > _MAX_NAME or not 0 < int(match["port"] or 1) <= _MAX_PORT or not _is_address(text):
        raise errors.BadInput(f"{_shown(text)}: not the HOST[:PORT] of a registry", hint=_HINT)
    return text


def checked_repository(text: str) -> str:
    """Return a repository's name that can be one; raises BadInput."""
    if len(text) > _MAX_NAME:
        raise errors.BadInput(f"{_shown(text)}: a repository's name has at most {_MAX_NAME} characters", hint=_HINT)
    if not _REPOSITORY.fullmatch(text):
        upper = "; upper case is not allowed" if text != text.lower() else ""
        raise errors.BadInput(f"{_shown(text)}: not the name of a repository{upper}", hint=_HINT)
    return text


def checked_tag(text: str) -> str:
    """Return a tag that can be one; raises BadInput."""
    if not _TAG.fullmatch(text):
        raise errors.BadInput(f"{_shown(text)}: not a tag (letters, digits, _ . -, at most 128)", hint=_HINT)
    return text


def checked_digest(text: str) -> str:
    """Return a digest that can be one; raises BadInput."""
    if not is_digest(text):
        raise errors.BadInput(f"{_shown(text)}: not a digest: sha256: and 64 lower-case hex digits", hint=_HINT)
    return text


def is_digest(text: str) -> bool:
    return bool(_DIGEST.fullmatch(text))


def is_tag(text: str) -> bool:
    return bool(_TAG.fullmatch(text))


def _split(path: str) -> tuple[str, str]:
    """Return host and repository, as Docker fills in what is left out."""
    first, slash, rest = path.partition("/")
    named = slash and (first != first.lower() or "." in first or ":" in first or first == "localhost")
    host, repository = (first, rest) if named else (DOCKER_HUB, path)
    if host == _OLD_DOCKER_HUB:
        host = DOCKER_HUB
    if host == DOCKER_HUB and "/" not in repository:
        repository = f"{_OFFICIAL}/{repository}"
    return host, repository


def _is_address(host: str) -> bool:
    """Say whether what stands in brackets, if anything does, is an address."""
    address = host.partition("]")[0].removeprefix("[")
    try:
        return not host.startswith("[") or ipaddress.ip_address(address).version == 6  # noqa: PLR2004 - IPv6
    except ValueError:
        return False


def _shown(text: str) -> str:
    """Return a wrong name short, and with nothing in it that a terminal would obey."""
    return repr(text if len(text) <= _MAX_NAME else f"{text[:60]}...")
