"""The person's own Docker credentials reach the registry through the embedded engine: a real push, a real pull."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from kiln import errors
from kiln.image import bake, base, buildkit
from kiln.report import Reporter

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kiln.catalog import Catalog
    from kiln.engine import Engine

QUIET = Reporter(quiet=True)
USER, WORD = "someone", "a word"
HELPER = """#!/bin/sh
read -r host
echo "$1 $host" >> {record}
echo '{{"ServerURL": "", "Username": "{user}", "Secret": "{word}"}}'
"""


class _Guarded(BaseHTTPRequestHandler):
    """Hands every request with the right basic credentials on to the registry behind."""

    protocol_version = "HTTP/1.1"
    # to a TLS handshake a plain server answers in plain HTTP too, by which the engine knows it
    default_request_version = "HTTP/1.1"
    behind = ""

    def log_message(self, *_: object) -> None: ...

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        wanted = "Basic " + base64.b64encode(f"{USER}:{WORD}".encode()).decode()
        if self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="test"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        dropped = {"transfer-encoding", "content-length", "authorization", "connection"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        with contextlib.closing(http.client.HTTPConnection(self.behind)) as connection:
            connection.request(self.command, self.path, body=body, headers=headers)
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in {"content-length", "transfer-encoding", "connection"} or not data:
                    self.send_header(name, value)
            if data:
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def __getattr__(self, name: str) -> object:
        """Answer every method, each of which the server looks for under its own name."""
        if name.startswith("do_"):
            return self._pass_on
        raise AttributeError(name)


@pytest.fixture
def guarded(real_engine: Engine) -> Iterator[str]:
    """A registry that asks for a name and a password, in front of the local one: its HOST:PORT."""
    handler = type("Handler", (_Guarded,), {"behind": real_engine.registry})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the credential helper was asked, by a Docker configuration whose current context leads elsewhere."""
    folder, programs, record = tmp_path / "docker", tmp_path / "bin", tmp_path / "asked"
    folder.mkdir()
    programs.mkdir()
    helper = programs / "docker-credential-kilntest"
    helper.write_text(HELPER.format(record=record, user=USER, word=WORD))
    helper.chmod(0o755)
    (folder / "config.json").write_text(json.dumps({"credsStore": "kilntest", "currentContext": "far"}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return record


@pytest.fixture
def one(guarded: str, real_catalog: Catalog, tmp_path: Path) -> bake.Build:
    """A build of one file over the base root, pushed to the registry that asks."""
    folder = tmp_path / "context"
    folder.mkdir()
    (folder / "Dockerfile").write_text("ARG BASE=base\nFROM ${BASE}\nCOPY Dockerfile /made-of\n")
    return bake.Build(
        name="one",
        dockerfile=folder / "Dockerfile",
        context=folder,
        contexts={"base": base.ensure("base", real_catalog.state / "bases", QUIET).context},
        args={"BASE": "base"},
        output=bake.pushed(f"{guarded}/kiln-test/guarded:1") | {"store": "false"},
    )


def run(build: bake.Build, own: Engine) -> bake.Made:
    return buildkit.run(build, engine=own, reporter=QUIET, step="build")


def test_a_push_and_a_pull_with_the_persons_own_credentials(
    guarded: str, real_engine: Engine, asked: Path, one: bake.Build
) -> None:
    made = run(one, real_engine)
    assert set(asked.read_text().splitlines()) == {f"get {guarded}"}
    asked.unlink()
    pulled = replace(
        one,
        contexts={},
        args={"BASE": f"{guarded}/kiln-test/guarded@{made.digest}"},
        output=bake.pushed(f"{guarded}/kiln-test/guarded:2") | {"store": "false"},
    )
    assert run(pulled, real_engine).digest != made.digest
    assert set(asked.read_text().splitlines()) == {f"get {guarded}"}


def test_without_credentials_nothing_is_pushed(
    real_engine: Engine, one: bake.Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "none"))
    with pytest.raises(errors.CommandFailed, match=r"401|authorization|no basic auth") as caught:
        run(one, real_engine)
    assert caught.value.exit_code == 4
