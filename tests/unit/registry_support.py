"""A registry in memory, over real HTTP on loopback: as specified, and misbehaving where a test says so."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import socket
import ssl
import tarfile
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from kiln.registry import records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from email.message import Message
    from pathlib import Path

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True, kw_only=True)
class Asked:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes


@dataclass(kw_only=True)
class Reply:
    """An answer; `claims` is the Content-Length sent, where it is not the body's."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    claims: int | None = None


@dataclass(kw_only=True)
class Fake:
    """`scripted` answers come first, one after the other, for a method and path; then the registry itself."""

    host: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    scripted: dict[tuple[str, str], list[Reply]] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    has_referrers: bool = False
    deletes: bool = True
    mounts: bool = True
    password: str = ""
    token: str = ""
    tunnel_to: str = ""
    on_put: Callable[[str], None] | None = None

    def script(self, method: str, path: str, *replies: Reply) -> None:
        self.scripted.setdefault((method, path), []).extend(replies)

    def put(self, repository: str, ref: str, value: dict[str, Any] | bytes, media_type: str = "") -> str:
        """Store a manifest without asking over HTTP; return its digest."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        kind = media_type or json.loads(data)["mediaType"]
        self.manifests[f"{repository}@{digest(data)}"] = kind, data
        if ref:
            self.tags[f"{repository}:{ref}"] = digest(data)
        return digest(data)

    def put_image(self, repository: str, ref: str, *layers: bytes, **config: Any) -> str:
        """Store an image of uncompressed layers; return its digest."""
        value = {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": []}} | config
        value["rootfs"] = {"type": "layers", "diff_ids": [digest(layer) for layer in layers]}
        data = json.dumps(value).encode()
        self.blobs |= {digest(each): each for each in (data, *layers)}
        return self.put(repository, ref, image_manifest(data, *layers))

    def methods(self) -> list[tuple[str, str]]:
        return [(each.method, each.path) for each in self.asked]

    def answer(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        if waiting := self.scripted.get((asked.method, asked.path)):
            return waiting.pop(0)
        if asked.path == "/token":
            return self._issue(asked)
        routes = {
            "/manifests/": self._manifest,
            "/blobs/uploads/": self._upload,
            "/blobs/": self._blob,
            "/referrers/": self._referrers,
            "/tags/": self._tags,
        }
        answer = next((route for part, route in routes.items() if part in asked.path), None)
        return self._refuse(asked) or (answer(asked) if answer else Reply(status=404))

    def _refuse(self, asked: Asked) -> Reply | None:
        sent = asked.headers.get("Authorization", "")
        if self.token and sent != f"Bearer {self.token}":
            repository = asked.path.removeprefix("/v2/").partition("/manifests/")[0].partition("/blobs/")[0]
            says = f'Bearer realm="http://{self.host}/token",service="fake",scope="repository:{repository}:pull"'
            return Reply(status=401, headers={"WWW-Authenticate": says})
        if self.password and not self.token and sent != self._basic():
            return Reply(status=401, headers={"WWW-Authenticate": 'Basic realm="fake"'})
        return None

    def _basic(self) -> str:
        return f"Basic {base64.b64encode(f'ada:{self.password}'.encode()).decode()}"

    def _issue(self, asked: Asked) -> Reply:
        if asked.method == "POST":
            right = parse_qs(asked.body.decode()).get("refresh_token") == [self.password]
            return Reply(body=json.dumps({"access_token": self.token}).encode()) if right else Reply(status=401)
        if self.password and asked.headers.get("Authorization") != self._basic():
            return Reply(status=401)
        return Reply(body=json.dumps({"token": self.token}).encode())

    def _manifest(self, asked: Asked) -> Reply:
        repository, _, ref = asked.path.removeprefix("/v2/").partition("/manifests/")
        if asked.method == "PUT":
            kind = asked.headers["Content-Type"]
            found = self.put(repository, "" if ":" in ref else ref, asked.body, kind)
            subject = (json.loads(asked.body).get("subject") or {}).get("digest")
            answered = {"OCI-Subject": subject} if subject and self.has_referrers else {}
            if self.on_put:
                self.on_put(ref)
            return Reply(status=201, headers={"Docker-Content-Digest": found, **answered})
        name = ref if ":" in ref else self.tags.get(f"{repository}:{ref}", "")
        key = f"{repository}@{name}"
        if asked.method == "DELETE":
            if not self.deletes or ":" not in ref:
                return Reply(status=405)
            self.tags = {tag: each for tag, each in self.tags.items() if each != name}
            return Reply(status=202 if self.manifests.pop(key, None) else 404)
        if key not in self.manifests:
            return Reply(status=404, body=b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
        kind, data = self.manifests[key]
        return Reply(headers={"Content-Type": kind, "Docker-Content-Digest": digest(data)}, body=data)

    def _upload(self, asked: Asked) -> Reply:
        if asked.method == "POST":
            if self.mounts and asked.query.get("mount", [""])[0] in self.blobs:
                return Reply(status=201)
            return Reply(status=202, headers={"Location": f"{asked.path}1?state=a%2Fb"})
        if asked.method == "PUT":
            assert asked.query["state"] == ["a/b"], "the upload's own query is gone"
            self.blobs[asked.query["digest"][0]] = asked.body
            return Reply(status=201)
        return Reply(status=204)

    def _blob(self, asked: Asked) -> Reply:
        data = self.blobs.get(asked.path.rpartition("/")[2])
        if data is None:
            return Reply(status=404)
        if wanted := asked.headers.get("Range", ""):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return Reply(status=206, headers={"Content-Range": span}, body=data[start:])
        return Reply(body=data)

    def _tags(self, asked: Asked) -> Reply:
        """List two tags a page."""
        repository = asked.path.removeprefix("/v2/").removesuffix("/tags/list")
        names = sorted(tag.rpartition(":")[2] for tag in self.tags if tag.startswith(f"{repository}:"))
        last = asked.query.get("last", [""])[0]
        page = [name for name in names if name > last][:2]
        more = {"Link": f'<{asked.path}?last={page[-1]}&n=2>; rel="next"'} if page and page[-1] != names[-1] else {}
        return Reply(status=200 if names else 404, headers=more, body=json.dumps({"tags": page or None}).encode())

    def _referrers(self, asked: Asked) -> Reply:
        if not self.has_referrers:
            return Reply(status=404)
        subject = asked.path.rpartition("/")[2]
        listed = [
            {
                "mediaType": kind,
                "digest": digest(data),
                "size": len(data),
                "artifactType": value["artifactType"],
                "annotations": value.get("annotations", {}),
            }
            for kind, data in self.manifests.values()
            if ((value := json.loads(data)).get("subject") or {}).get("digest") == subject
        ]
        index = {"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": listed}
        return Reply(headers={"Content-Type": records.OCI_INDEX}, body=json.dumps(index).encode())


@contextlib.contextmanager
def serving(fake: Fake, tls: tuple[Path, Path] | None = None) -> Iterator[Fake]:
    """Serve `fake` on a free port of loopback; `tls` are the files of a certificate and its key."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            reply = fake.answer(
                Asked(
                    method=self.command,
                    path=unquote(parts.path),
                    query=parse_qs(parts.query),
                    headers=self.headers,
                    body=body,
                )
            )
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            claimed = len(reply.body) if reply.claims is None else reply.claims
            if "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(claimed))
            if claimed > len(reply.body):
                self.close_connection = True
            self.end_headers()
            if self.command != "HEAD":
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(reply.body)

        def do_CONNECT(self) -> None:
            if not fake.tunnel_to:
                self.handle_any()
                return
            fake.asked.append(Asked(method="CONNECT", path=self.path, query={}, headers=self.headers, body=b""))
            self.close_connection = True
            host, _, port = fake.tunnel_to.rpartition(":")
            with socket.create_connection((host, int(port))) as far:
                self.connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                back = threading.Thread(target=pump, args=(far, self.connection))
                back.start()
                pump(self.connection, far)
                back.join()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that hangs up is no news
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    fake.host = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pump(near: socket.socket, far: socket.socket) -> None:
    """Hand on all that comes, and its end."""
    with contextlib.suppress(OSError):
        while data := near.recv(65536):
            far.sendall(data)
    with contextlib.suppress(OSError):
        far.shutdown(socket.SHUT_WR)


def descriptor(data: bytes, media_type: str = LAYER) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def image_manifest(config: bytes, *layers: bytes) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": records.OCI_MANIFEST,
        "config": descriptor(config, CONFIG),
        "layers": [descriptor(layer) for layer in layers],
    }


@dataclass(frozen=True)
class Entry:
    """A member of a tar: a file unless `kind` says otherwise."""

    name: str
    data: bytes = b""
    kind: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644


def tar(*entries: Entry) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.name)
            member.type, member.linkname, member.mode, member.size = entry.kind, entry.link, entry.mode, len(entry.data)
            archive.addfile(member, io.BytesIO(entry.data))
    return out.getvalue()


def zipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)
