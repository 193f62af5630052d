"""A package index in this process, on loopback, with wheels of vllm that are read by byte range."""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from kiln.catalog.records import WheelPin
from kiln.upstream import pip_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pytest


def wheel(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


class Index:
    """A package index with wheels of vllm; `asked` holds the path and range of every request."""

    def __init__(self) -> None:
        self.wheels: dict[str, bytes] = {}
        self.odd: list[str] = []
        self.asked: list[tuple[str, str]] = []

    def add(self, release: str, files: Mapping[str, bytes]) -> WheelPin:
        name = f"vllm-{release}-cp38-abi3-manylinux_2_28_x86_64.whl"
        self.wheels[name] = wheel(files)
        return WheelPin(project="vllm", file=name, sha256=hashlib.sha256(self.wheels[name]).hexdigest())

    def page(self) -> bytes:
        links = [
            f'<a href="/files/{name}#sha256={hashlib.sha256(data).hexdigest()}">x</a>'
            for name, data in self.wheels.items()
        ]
        return "\n".join([*links, *self.odd]).encode()


@contextlib.contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """Let pip's settings name an index, and yield it."""
    made = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            made.asked.append((self.path, wanted))
            data = made.page() if self.path == "/simple/vllm/" else made.wheels.get(self.path.removeprefix("/files/"))
            if data is None:
                self.send_error(404)
                return
            if match := re.fullmatch(r"bytes=(\d*)-(\d+)", wanted):
                start = int(match[1]) if match[1] else max(0, len(data) - int(match[2]))
                stop = int(match[2]) if match[1] else len(data) - 1
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{stop}/{len(data)}")
                data = data[start : stop + 1]
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_address[1]}/simple/")
        pip_config.read.cache_clear()
        yield made
        server.shutdown()
        thread.join()
