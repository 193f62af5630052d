"""Guards around every unit test: no network but loopback, no home directory, no settings of this machine."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest
import registry_support
from lock_world import World

from kiln.upstream import pip_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
IDENTITY = {
    "GIT_AUTHOR_NAME": "Kiln Test",
    "GIT_AUTHOR_EMAIL": "test@example.invalid",
    "GIT_COMMITTER_NAME": "Kiln Test",
    "GIT_COMMITTER_EMAIL": "test@example.invalid",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def is_local(host: object) -> bool:
    if not isinstance(host, str):
        return host is None
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"localhost", ""}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every name look-up and connection that would leave this machine."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        assert is_local(host), f"a unit test asked for the address of {host!r}"
        return resolve(host, *args, **kwargs)

    def guarded(name: str) -> Any:
        plain = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            local = self.family == socket.AF_UNIX or is_local(address[0])
            assert local, f"a unit test connected to {address!r}"
            return plain(self, address)

        return connect

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, guarded(name))
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def no_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the test a home of its own, a fixed git identity and locale, and none of this machine's settings."""
    home = tmp_path_factory.getbasetemp() / "home"
    home.mkdir(exist_ok=True)
    for name in [name for name in os.environ if name.startswith(("PIP_", "KILN_", "GIT_", "XDG_"))]:
        monkeypatch.delenv(name)
    settings = IDENTITY | {"HOME": str(home), "LC_ALL": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    pip_config.read.cache_clear()
    yield
    pip_config.read.cache_clear()
    assert not list(home.iterdir()), f"a unit test wrote into the home directory: {list(home.iterdir())}"


# a patch of one line, on a file that is small enough to stand here

TOY_PATH = "vllm/toy.py"
TOY_BEFORE = b"# one\n# two\n# three\nWORD = 'before'\n# five\n# six\n# seven\n"
TOY_AFTER = TOY_BEFORE.replace(b"before", b"after")
TOY_EDITION = f"""\
diff --git a/{TOY_PATH} b/{TOY_PATH}
--- a/{TOY_PATH}
+++ b/{TOY_PATH}
@@ -1,7 +1,7 @@
 # one
 # two
 # three
-WORD = 'before'
+WORD = 'after'
 # five
 # six
 # seven
""".encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def toy_catalog(catalog_copy: Path) -> Path:
    """Return a catalog whose one patch is the toy, its pristine file in the wheel cache: no index is needed."""
    for folder in [path for path in (catalog_copy / "patches").iterdir() if path.is_dir()]:
        shutil.rmtree(folder)
    folder = catalog_copy / "patches/toy"
    folder.mkdir()
    (catalog_copy / "patches/series.yaml").write_text("order: [toy]\n", encoding="utf-8")
    (folder / "0.31.0.patch").write_bytes(TOY_EDITION)
    (folder / "patch.yaml").write_text(
        f"""\
id: toy
title: One word
reason: to be applied
lost_without: nothing
upstream: {{status: not-reported}}
drop_when: never
applies: {{releases: "==0.31.0"}}
probe: {{needs: source, shows: nothing}}
editions:
  0.31.0:
    sha256: {sha256(TOY_EDITION)}
    files:
      {TOY_PATH}: {{pre: {sha256(TOY_BEFORE)}, post: {sha256(TOY_AFTER)}}}
""",
        encoding="utf-8",
    )
    return catalog_copy


@pytest.fixture
def world(toy_catalog: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Return the toy's catalog with a registry of its own, the CUDA image's index on record."""
    with registry_support.serving(registry_support.Fake()) as registry:
        made = World(toy_catalog, registry, monkeypatch)
        made.write(index=made.index)
        yield made
