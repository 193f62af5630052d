"""Answers a registry's challenge: Basic, or a Bearer token from the service that it names."""

from __future__ import annotations

import base64
import ipaddress
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from kiln import errors

if TYPE_CHECKING:
    from kiln.registry.credentials import Credentials

_MAX_CHALLENGE = 4096
_BEARER = re.compile(r"(?:^|,\s{0,8})bearer\s", re.IGNORECASE)
_BASIC = re.compile(r"(?:^|,\s{0,8})basic(?:\s|$)", re.IGNORECASE)
_PARAMETER = re.compile(r'([a-z_]{1,40})="([^"]*)"', re.IGNORECASE)
_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")
_CLIENT = "kiln"


@dataclass(frozen=True, kw_only=True)
class Challenge:
    """What a registry asks for: a token of `realm` for `service` and `scopes`, or, without a realm, a password."""

    realm: str = ""
    service: str = ""
    scopes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TokenRequest:
    """The one HTTP request that gets a token; `form` makes it a POST."""

    url: str
    query: tuple[tuple[str, str], ...] = ()
    form: tuple[tuple[str, str], ...] = ()
    authorization: str = ""


def read_challenge(header: str) -> Challenge | None:
    """Return the challenge in a WWW-Authenticate header, a Bearer one first; None where there is none of use."""
    header = header[:_MAX_CHALLENGE]
    match = _BEARER.search(header)
    if not match:
        return Challenge() if _BASIC.search(header) else None
    named: dict[str, str] = {}
    for key, value in _PARAMETER.findall(header[match.end() :]):
        named.setdefault(key.lower(), value)
    if not named.get("realm"):
        return None
    return Challenge(
        realm=named["realm"], service=named.get("service", ""), scopes=tuple(named.get("scope", "").split())
    )


def request(challenge: Challenge, credentials: Credentials | None, *, host: str, loopback: bool) -> TokenRequest:
    """Return how to ask for the token; raises Missing where the realm could be read by others on the way."""
    realm = _split(challenge.realm)
    safe = realm.scheme == "https" or (realm.scheme == "http" and loopback and is_loopback(realm.hostname or ""))
    if not safe or not realm.hostname or realm.username is not None:
        raise errors.Missing(f"{host}: its token service is not one of https, so nothing is sent to it")
    asked = (("service", challenge.service), *(("scope", scope) for scope in challenge.scopes))
    query = tuple((key, value) for key, value in asked if value)
    if credentials and credentials.identity_token:
        form = {
            "grant_type": "refresh_token",
            "service": challenge.service,
            "client_id": _CLIENT,
            "scope": " ".join(challenge.scopes),
            "refresh_token": credentials.identity_token,
        }
        return TokenRequest(url=realm.geturl(), form=tuple(form.items()))
    return TokenRequest(url=realm.geturl(), query=query, authorization=basic(credentials) if credentials else "")


def read_token(data: bytes, host: str) -> str:
    """Return the Authorization header that a token service's answer stands for; raises Missing."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    named = value if isinstance(value, dict) else {}
    token = named.get("token") or named.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise errors.Missing(f"{host}: its token service answers without a token")
    return f"Bearer {token}"


def basic(credentials: Credentials) -> str:
    """Return the Authorization header of a user and password."""
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"


def is_loopback(hostname: str) -> bool:
    """Say whether a host name, or address with or without brackets, is this machine by its very name."""
    try:
        return ipaddress.ip_address(hostname.strip("[]")).is_loopback
    except ValueError:
        return hostname == "localhost"


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        return SplitResult(scheme="", netloc="", path="", query="", fragment="")
