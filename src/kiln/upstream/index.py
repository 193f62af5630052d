"""Asks the configured package index (PEP 503) which files a project has, and with which hashes."""

from __future__ import annotations

import html.parser
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

import requests
from packaging.version import Version

from kiln import errors
from kiln.upstream import pip_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kiln.catalog import records

TIMEOUT_S = 60
_MAX_INDEX_BYTES = 50_000_000
# one wheel for every Python, for the machines that the images are for
_FILE = re.compile(
    r"[A-Za-z0-9_]+-(?P<version>[0-9]{1,6}(\.[0-9]{1,6})*(\.post[0-9]{1,6})?)(?P<rest>-.*\.whl|\.tar\.gz)"
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_RELEASE_WHEEL = re.compile(r"-cp\d+-abi3-manylinux[0-9_a-z]*_x86_64\.whl")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A file as the index lists it; `sha256` is "" where the index gives no hash."""

    file: str
    url: str
    sha256: str
    yanked: bool


def files(project: str, index: str | None, session: requests.Session) -> tuple[Listed, ...]:
    """Return every file of a project; raises Missing where the index has no answer."""
    page_url = f"{index or pip_config.read().index_url}/{project}/"
    page = get(session, page_url, f"the package index has no answer for {project}", most=_MAX_INDEX_BYTES)
    links = _Links()
    links.feed(page.body.decode("utf-8", "replace"))
    found = (_listed(page.url, href, yanked=yanked) for href, yanked in links.found)
    listed = tuple(file for file in found if file)
    if not listed:
        raise errors.Missing(f"the package index lists no file of {project}", hint="check the index: pip config list")
    return listed


def releases(listed: Iterable[Listed]) -> dict[str, Listed | None]:
    """Return the wheel for Linux on x86-64 of each final release, in order; None where a release has no such wheel.

    Pre-releases and yanked files are no releases.
    """
    found: dict[Version, Listed | None] = {}
    for file in sorted(listed, key=lambda file: file.file):
        match = _FILE.fullmatch(file.file)
        if match and not file.yanked:
            is_wheel = bool(_RELEASE_WHEEL.fullmatch(match["rest"]) and file.sha256)
            version = Version(match["version"])
            found[version] = file if is_wheel else found.get(version)
    return {str(version): found[version] for version in sorted(found)}


def locate(pin: records.WheelPin, session: requests.Session) -> str:
    """Return the URL of a wheel on its index, after checking that the index lists the pinned sha256."""
    return url_of(pin, files(pin.project, pin.index, session))


def url_of(pin: records.WheelPin, listed: Iterable[Listed]) -> str:
    """Return the URL of a pinned wheel; raises BadInput for another hash, Missing where it is not listed."""
    for file in listed:
        if file.file != pin.file:
            continue
        if file.sha256 != pin.sha256:
            raise errors.BadInput(
                f"{pin.file}: pinned sha256 {pin.sha256}, the index lists {file.sha256 or 'no hash'}",
                hint="the wheel was replaced: check the release, then edit images/releases.yaml",
            )
        return file.url
    raise errors.Missing(f"{pin.file}: not on the package index", hint="check the index: pip config list")


def session() -> requests.Session:
    """Return a session that trusts what pip trusts."""
    made = requests.Session()
    if cert := pip_config.read().cert:
        made.verify = str(cert)
    return made


@dataclass(frozen=True, kw_only=True)
class Answer:
    url: str
    headers: Mapping[str, str]
    body: bytes


def get(session: requests.Session, url: str, problem: str, *, span: str = "", most: int) -> Answer:
    """Return a good answer of at most `most` bytes, a span of them if asked; raises Missing, `problem` first."""
    check = "check the index: pip config list"
    body = bytearray()
    try:
        with session.get(url, headers={"Range": span} if span else {}, timeout=TIMEOUT_S, stream=True) as answer:
            if not answer.ok:
                raise errors.Missing(f"{problem}: HTTP {answer.status_code}", hint=check)
            if span and answer.status_code != requests.codes.partial_content:
                raise errors.Missing("the package index does not serve byte ranges, so single files cannot be read")
            for block in answer.iter_content(1 << 20):
                body += block
                if len(body) > most:
                    raise errors.Missing(f"{problem}: it sends more than {most} bytes", hint=check)
    except requests.RequestException as error:
        raise errors.Missing(f"{problem}: {type(error).__name__}", hint=check) from error
    return Answer(url=answer.url, headers=answer.headers, body=bytes(body))


def _listed(page: str, href: str, *, yanked: bool) -> Listed | None:
    """Return the file that a link names; None for a link to nothing."""
    try:
        url, _, fragment = urljoin(page, href).partition("#")
        name = unquote(PurePosixPath(urlsplit(url).path).name)
    except ValueError:
        return None
    kind, _, sha256 = fragment.partition("=")
    hashed = kind == "sha256" and _SHA256.fullmatch(sha256)
    return Listed(file=name, url=url, sha256=sha256 if hashed else "", yanked=yanked)


class _Links(html.parser.HTMLParser):
    """Collects the targets of all links of a PEP 503 page, and which PEP 592 marks as yanked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a" and (href := dict(attrs).get("href")):
            self.found.append((href, "data-yanked" in dict(attrs)))
