"""Asks Docker's own configuration, credential store and helpers what a registry knows the user by."""

from __future__ import annotations

import binascii
import json
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker import auth
from docker.errors import DockerException

from kiln import errors

# what docker.auth raises on an entry, or on a helper's answer, that is not what it should be
_MALFORMED = (binascii.Error, UnicodeError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """A user and password, or the identity token that stands for both; never shown."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


def find(host: str) -> Credentials | None:
    """Return what `docker login HOST` left; None where nothing is known, so that the registry is asked anonymously."""
    path = _config_path()
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise errors.BadInput(f"{path}: cannot be read: {type(error).__name__}", hint=_login(host)) from None
    if not isinstance(config, dict):
        raise errors.BadInput(f"{path}: not a configuration of Docker", hint=_login(host))
    found = _resolve(host, config, path)
    if not found:
        return None
    names = {key.casefold(): value for key, value in found.items() if isinstance(value, str)}
    credentials = Credentials(
        username=names.get("username", ""),
        password=names.get("password", ""),
        identity_token=names.get("identitytoken", ""),
    )
    return credentials if credentials.identity_token or credentials.username else None


def _resolve(host: str, config: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Return what the Docker SDK finds for a host; its errors are not shown: a helper's words may be in them."""
    sections = {key: config[key] for key in ("auths", "credsStore", "credHelpers") if config.get(key)}
    if not sections:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a helper is not installed is said below
            loaded = auth.load_config(config_dict=sections)
            found: dict[str, Any] | None = auth.resolve_authconfig(loaded, host)
    except (DockerException, OSError, *_MALFORMED) as error:
        helpers = config.get("credHelpers")
        named = helpers.get(host) if isinstance(helpers, dict) else None
        helper = named or config.get("credsStore")
        by = f" (credential helper docker-credential-{helper})" if isinstance(helper, str) else ""
        raise errors.Missing(
            f"{path}: gives no credentials for {host}{by}: {type(error).__name__}", hint=_login(host)
        ) from None
    return found


def _config_path() -> Path:
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def _login(host: str) -> str:
    return f"docker login {host}"
