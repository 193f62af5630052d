"""Speaks HTTP with one registry: tokens, bounded answers, few retries, and credentials for nobody else."""

from __future__ import annotations

import email.utils
import os
import time
from dataclasses import replace
from http.cookiejar import DefaultCookiePolicy
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import requests

from kiln import errors
from kiln.registry import credentials, reference, tokens
from kiln.registry.answers import READS, Answer, Ask, Cut, joined

__all__ = ["Answer", "Ask", "Cut", "Session", "Transport"]

_TIMEOUT_S = (10, 60)
_HUB_HOST = "registry-1.docker.io"
_TRIES = 4
_MAX_WAIT_S = 30.0
_FIRST_WAIT_S = 0.5
_AGAIN = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_MAX_TOKEN_BYTES = 1 << 20
_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")


class Session(requests.Session):
    """A session that leaves redirects alone: `requests` would read their whole bodies, however long."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Say that there is none."""


class Transport:
    """The way to one registry; `host` is its name in references."""

    def __init__(self, host: str, session: Session, ca: Path | None) -> None:
        self.host = reference.checked_host(host)
        self.loopback = tokens.is_loopback(_hostname(host))
        name = _HUB_HOST if host == reference.DOCKER_HUB else host
        self._base = f"{'http' if self.loopback else 'https'}://{name}"
        self._session = session
        self._verify = _verify(ca)
        self._authorizations: dict[tuple[str, str, str], str] = {}
        session.auth = _as_it_is
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        session.headers.update({"User-Agent": "kiln", "Accept-Encoding": "identity"})

    def send(self, ask: Ask, *expected: int) -> Answer:
        """Return the answer if its status is expected; reads are tried again where that may help."""
        waits = _TRIES if ask.method in READS else 1
        for left in range(waits - 1, -1, -1):
            try:
                answer = self._authorized(ask)
            except Cut:
                if not left:
                    raise
                time.sleep(_wait("", waits - left))
                continue
            if answer.status in expected:
                return answer
            with answer:
                if not left or answer.status not in _AGAIN:
                    raise answer.problem()
                time.sleep(_wait(answer.headers.get("Retry-After", ""), waits - left))
        raise AssertionError("unreachable")

    def read(self, ask: Ask, *expected: int, limit: int) -> tuple[Answer, bytes]:
        """Return an expected answer and its whole body, asked for again where it broke off."""
        for left in range(_TRIES - 1, -1, -1):
            with self.send(ask, *expected) as answer:
                try:
                    return answer, answer.read(limit)
                except Cut:
                    if not left:
                        raise
        raise AssertionError("unreachable")

    def _authorized(self, ask: Ask) -> Answer:
        """Send a request with the token known for it; where the registry wants another, get that and send it again."""
        response = self._follow(ask, self._authorizations.get(ask.key, ""))
        if response.status_code == requests.codes.unauthorized and self._is_own(response.url):
            with response:
                challenge = tokens.read_challenge(response.headers.get("WWW-Authenticate", ""))
            if challenge and (authorization := self._answer(challenge, ask)):
                self._authorizations[ask.key] = authorization
                response = self._follow(ask, authorization)
        return Answer(response, ask, self.host)

    def _answer(self, challenge: tokens.Challenge, ask: Ask) -> str:
        known = credentials.find(self.host)
        if not challenge.realm:
            return tokens.basic(known) if known and known.username else ""
        asked = tokens.request(challenge, known, host=self.host, loopback=self.loopback)
        token = replace(
            ask,
            method="POST" if asked.form else "GET",
            what=f"a token for {ask.what}",
            headers={"Authorization": asked.authorization} if asked.authorization else {},
            data=None,
        )
        with Answer(self._exchange(token, asked.url, params=asked.query, form=asked.form), token, self.host) as answer:
            if answer.status != requests.codes.ok:
                raise answer.problem()
            return tokens.read_token(answer.read(_MAX_TOKEN_BYTES), self.host)

    def _follow(self, ask: Ask, authorization: str) -> requests.Response:
        """Send a request, and a read on to where it is redirected; credentials stay with the registry itself."""
        url = urljoin(self._base, ask.path)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url, ask)
            own = {"Authorization": authorization} if authorization and self._is_own(url) else {}
            response = self._exchange(replace(ask, headers={**ask.headers, **own}), url, data=ask.data)
            if response.status_code not in _REDIRECTS or ask.method not in READS:
                return response
            with response:
                url = joined(url, response.headers.get("Location", ""), ask.what)
        raise errors.Missing(f"{ask.what}: {self.host} redirects more than {_MAX_REDIRECTS} times")

    def _exchange(
        self,
        ask: Ask,
        url: str,
        *,
        data: bytes | None = None,
        params: tuple[tuple[str, str], ...] = (),
        form: tuple[tuple[str, str], ...] = (),
    ) -> requests.Response:
        try:
            return self._session.request(
                ask.method,
                url,
                params=params or None,
                headers=dict(ask.headers),
                data=dict(form) if form else data,
                timeout=_TIMEOUT_S,
                stream=True,
                allow_redirects=False,
                verify=self._verify,
                # as every client does: no proxy stands between this machine and itself
                proxies={"http": "", "https": "", "all": ""} if tokens.is_loopback(_hostname(url)) else None,
            )
        except requests.RequestException as error:
            raise self._unreachable(error, ask) from None

    def _unreachable(self, error: requests.RequestException, ask: Ask) -> errors.Missing:
        hint = (
            "./inv engine.status shows the local registry"
            if self.loopback
            else f"behind an air gap, name your mirror of {self.host} in kiln.yaml (mirrors:); "
            "behind a proxy, set HTTPS_PROXY"
        )
        what = f"{ask.what}: {self.host} cannot be reached"
        if isinstance(error, requests.exceptions.ProxyError):
            return Cut(f"{what}: the proxy does not let it through", hint="check HTTPS_PROXY and NO_PROXY")
        if isinstance(error, requests.exceptions.SSLError):
            hint = "name the CA bundle that your network needs in kiln.yaml (ca: PATH), or in REQUESTS_CA_BUNDLE"
            return errors.Missing(f"{what}: its certificate is not one that this machine trusts", hint=hint)
        if isinstance(error, requests.Timeout | requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
            words = "no answer in time" if isinstance(error, requests.Timeout) else "no connection"
            return Cut(f"{what}: {words}", hint=hint)
        return errors.Missing(f"{what}: {type(error).__name__}", hint=hint)

    def _check(self, url: str, ask: Ask) -> None:
        parts = urlsplit(url)
        plain = self.loopback and parts.scheme == "http" and tokens.is_loopback(parts.hostname or "")
        if not parts.hostname or not (plain or parts.scheme == "https"):
            raise errors.Missing(f"{ask.what}: {self.host} leads to where only plain http is spoken; not followed")

    def _is_own(self, url: str) -> bool:
        return _origin(url) == _origin(self._base)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Stand where requests would look for credentials in .netrc and in URLs."""
    return request


def _verify(ca: Path | None) -> str | bool:
    """Return the CA bundle: the one named, else the environment's, else what requests trusts."""
    named = str(ca) if ca else next((os.environ[name] for name in _CA_VARIABLES if os.environ.get(name)), "")
    if named and not Path(named).exists():
        raise errors.BadInput(f"{named}: no such CA bundle", hint="correct `ca:` in kiln.yaml, or REQUESTS_CA_BUNDLE")
    return named or True


def _wait(retry_after: str, attempt: int) -> float:
    """Return how long to wait: what the server asks for, within reason, or twice as long each time."""
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < len("1000000"):
        return min(float(retry_after), _MAX_WAIT_S)
    try:
        until = email.utils.parsedate_to_datetime(retry_after).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return _FIRST_WAIT_S * (1 << (attempt - 1))
    return min(max(until - time.time(), 0), _MAX_WAIT_S)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    default = {"https": 443, "http": 80}.get(parts.scheme)
    return parts.scheme, parts.hostname or "", parts.port or default


def _hostname(text: str) -> str:
    """Return the host of a URL or of HOST[:PORT]."""
    return urlsplit(text if "://" in text else f"//{text}").hostname or ""
