from __future__ import annotations

import hashlib
import io
import random
import re
import socket
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from kiln import errors
from kiln.catalog.records import WheelPin
from kiln.upstream import pip_config, wheel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = "toy-1.0+cpu-py3-none-any.whl"
PAGE, WHEEL = "/simple/toy/", f"/files/{FILE}"
NEAR = {"toy/a.py": b"a = 1\n" * 50, "toy/b.py": b"b = 2\n" * 50}
FAR = {"toy/c.py": b"c = 3\n" * 50}
TAIL = "bytes=-800000"


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)  # noqa: S311 - only has to be incompressible


def packed(files: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", how) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return out.getvalue()


# a and b are neighbours, c is beyond a gap, and all three are out of reach of the first request
BIG = packed(NEAR | {"toy/gap": noise(200_000)} | FAR | {"toy/rest": noise(900_000)})
SMALL = packed(NEAR | FAR, zipfile.ZIP_DEFLATED)


def extent(first: str, after: str) -> str:
    """Return the range from one member of BIG to the next one that is not wanted."""
    with zipfile.ZipFile(io.BytesIO(BIG)) as file:
        return f"bytes={file.getinfo(first).header_offset}-{file.getinfo(after).header_offset - 1}"


@dataclass
class Index:
    """A package index with one wheel; `asked` holds (path, range) of every request."""

    host: str = ""
    data: bytes = BIG
    listed: str = ""
    ranges: bool = True
    content_range: str = "bytes {start}-{stop}/{size}"
    short_by: int = 0
    always: str = ""
    asked: list[tuple[str, str]] = field(default_factory=list)

    def serve(self, data: bytes) -> WheelPin:
        """Serve `data` as the wheel and return its pin."""
        self.data, self.listed = data, hashlib.sha256(data).hexdigest()
        return WheelPin(project="toy", file=FILE, sha256=self.listed)

    def answer(self, path: str, wanted: str) -> tuple[int, bytes, str]:
        if path == PAGE:
            fragment = f"#sha256={self.listed}" if self.listed else ""
            links = f'<a href="other.whl#sha256=0">other</a> <a href="../../files/{FILE}{fragment}">{FILE}</a>'
            return 200, f"<!DOCTYPE html><html><body>{links.replace('+', '%2B')}</body></html>".encode(), ""
        if path.replace("%2B", "+") != WHEEL:
            return 404, b"", ""
        if not (self.ranges and wanted):
            return 200, self.data, ""
        size, (first, last) = len(self.data), (self.always or wanted).removeprefix("bytes=").split("-")
        start, stop = (int(first), int(last)) if first else (max(0, size - int(last)), size - 1)
        part = self.data[start : stop + 1 - self.short_by]
        return 206, part, self.content_range.format(start=start, stop=stop, size=size)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    served = Index()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            served.asked.append((self.path.replace("%2B", "+"), wanted))
            code, body, content_range = served.answer(self.path, wanted)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        served.host = f"127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{served.host}/simple/")
        pip_config.read.cache_clear()
        yield served
        server.shutdown()
        thread.join()


# what is read, and how


def test_single_files_are_read_and_neighbours_share_a_request(index: Index, tmp_path: Path) -> None:
    pin = index.serve(BIG)
    assert wheel.read(pin, [*FAR, *NEAR], cache=tmp_path) == FAR | NEAR
    assert index.asked[:2] == [(PAGE, ""), (WHEEL, TAIL)]
    assert sorted(index.asked[2:]) == sorted(
        [(WHEEL, extent("toy/a.py", "toy/gap")), (WHEEL, extent("toy/c.py", "toy/rest"))]
    )


def test_what_was_fetched_is_counted(index: Index) -> None:
    opened = wheel.RemoteWheel(index.serve(BIG))
    assert opened.fetched_bytes == 800_000
    assert opened.read(NEAR) == NEAR
    first, last = extent("toy/a.py", "toy/gap").removeprefix("bytes=").split("-")
    assert opened.fetched_bytes == 800_000 + int(last) - int(first) + 1
    assert opened.names() == [*NEAR, "toy/gap", *FAR, "toy/rest"]


def test_a_small_wheel_takes_one_request(index: Index, tmp_path: Path) -> None:
    assert wheel.read(index.serve(SMALL), NEAR, cache=tmp_path) == NEAR
    assert index.asked == [(PAGE, ""), (WHEEL, TAIL)]


def test_a_path_that_the_wheel_lacks_is_left_out(index: Index, tmp_path: Path) -> None:
    assert wheel.read(index.serve(SMALL), ["toy/none.py", *FAR], cache=tmp_path) == FAR


def test_what_was_read_once_needs_no_index(index: Index, tmp_path: Path) -> None:
    pin = index.serve(SMALL)
    wheel.read(pin, NEAR, cache=tmp_path)
    asked = len(index.asked)
    assert wheel.read(pin, NEAR, cache=tmp_path) == NEAR
    assert len(index.asked) == asked
    assert sorted(path.name for path in (tmp_path / pin.sha256 / "files/toy").iterdir()) == ["a.py", "b.py"]
    assert wheel.read(pin, [*NEAR, *FAR], cache=tmp_path) == NEAR | FAR
    assert len(index.asked) == asked + 2


@pytest.mark.parametrize("broken", ["files/toy/a.py", "sums/toy/a.py"])
def test_a_file_that_went_bad_in_the_cache_is_fetched_again(index: Index, tmp_path: Path, broken: str) -> None:
    pin = index.serve(SMALL)
    wheel.read(pin, NEAR, cache=tmp_path)
    (tmp_path / pin.sha256 / broken).write_bytes(b"rotten")
    asked = len(index.asked)
    assert wheel.read(pin, NEAR, cache=tmp_path) == NEAR
    assert len(index.asked) > asked


def test_the_cache_is_enough_when_the_index_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    pip_config.read.cache_clear()
    pin = WheelPin(project="toy", file=FILE, sha256="0" * 64)
    wheel.keep(pin, "toy/a.py", b"held", cache=tmp_path)
    assert wheel.read(pin, ["toy/a.py"], cache=tmp_path) == {"toy/a.py": b"held"}
    with pytest.raises(errors.Missing, match=r"^the package index has no answer for toy: ConnectionError$") as caught:
        wheel.read(pin, ["toy/b.py"], cache=tmp_path)
    assert (caught.value.exit_code, caught.value.hint) == (3, "check the index: pip config list")


def test_a_pin_can_name_an_index_of_its_own(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin = index.serve(SMALL).model_copy(update={"index": f"http://{index.host}/simple"})
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    pip_config.read.cache_clear()
    assert wheel.read(pin, FAR, cache=tmp_path) == FAR


def test_credentials_of_the_index_are_in_no_message(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = index.serve(SMALL).model_copy(update={"project": "none"})
    monkeypatch.setenv("PIP_INDEX_URL", f"http://someone:hunter2@{index.host}/simple")
    pip_config.read.cache_clear()
    with pytest.raises(errors.Missing) as caught:
        wheel.read(pin, FAR, cache=tmp_path)
    assert caught.value.message == "the package index has no answer for none: HTTP 404"


# what is refused


def refusal(index: Index, data: bytes, folder: Path, *paths: str) -> errors.KilnError:
    pin = index.serve(data)
    with pytest.raises(errors.KilnError) as caught:
        wheel.read(pin, paths or NEAR, cache=folder)
    assert not list(folder.rglob("*.py"))
    return caught.value


@pytest.mark.parametrize(("listed", "shown"), [("1" * 64, "1" * 64), ("", "no hash")])
def test_another_hash_on_the_index(index: Index, tmp_path: Path, listed: str, shown: str) -> None:
    pin = index.serve(SMALL)
    index.listed = listed
    with pytest.raises(errors.BadInput) as caught:
        wheel.read(pin, NEAR, cache=tmp_path)
    assert caught.value.message == f"{FILE}: pinned sha256 {pin.sha256}, the index lists {shown}"
    assert caught.value.hint == "the wheel was replaced: check the release, then edit images/releases.yaml"
    assert index.asked == [(PAGE, "")]


def test_a_file_that_is_not_on_the_index(index: Index, tmp_path: Path) -> None:
    pin = index.serve(SMALL).model_copy(update={"file": "toy-2.0-py3-none-any.whl"})
    with pytest.raises(errors.Missing, match=r"^toy-2.0-py3-none-any.whl: not on the package index$"):
        wheel.read(pin, NEAR, cache=tmp_path)


def test_an_index_without_ranges(index: Index, tmp_path: Path) -> None:
    index.ranges = False
    error = refusal(index, SMALL, tmp_path)
    assert isinstance(error, errors.Missing)
    assert error.message == "the package index does not serve byte ranges, so single files cannot be read"


@pytest.mark.parametrize("content_range", ["bytes {start}-{stop}/*", "bytes */{size}", "bytes x", "items 0-1/2"])
def test_an_answer_to_a_range_that_is_none(index: Index, tmp_path: Path, content_range: str) -> None:
    index.content_range = content_range
    error = refusal(index, SMALL, tmp_path)
    assert isinstance(error, errors.Missing)
    assert error.message == "the package index does not serve byte ranges, so single files cannot be read"


def test_an_answer_that_is_shorter_than_asked(index: Index, tmp_path: Path) -> None:
    index.short_by = 5
    error = refusal(index, BIG, tmp_path)
    assert isinstance(error, errors.Missing)
    assert error.message == "the package index serves other byte ranges than it says"


def test_an_answer_to_another_range_than_was_asked_for(index: Index, tmp_path: Path) -> None:
    pin = index.serve(BIG)
    index.always = TAIL
    with pytest.raises(errors.Missing, match=r"^the wheel cannot be read: it sends more than \d+ bytes$"):
        wheel.read(pin, NEAR, cache=tmp_path)


def test_a_wheel_cut_at_its_end(index: Index, tmp_path: Path) -> None:
    error = refusal(index, SMALL[:-30], tmp_path)
    assert isinstance(error, errors.Missing)
    assert error.message == f"{FILE}: what the index serves is no zip file"


@pytest.mark.parametrize("cut", [10, 40, 300])
def test_a_wheel_cut_at_its_start(index: Index, tmp_path: Path, cut: int) -> None:
    error = refusal(index, SMALL[cut:], tmp_path)
    assert error.message in {
        f"{FILE}: damaged: its directory names places outside it",
        f"{FILE}: what the index serves is no zip file",
    }


def test_a_wheel_that_is_something_else(index: Index, tmp_path: Path) -> None:
    assert refusal(index, b"<html>", tmp_path).message == f"{FILE}: what the index serves is no zip file"


def test_an_empty_wheel(index: Index, tmp_path: Path) -> None:
    assert isinstance(refusal(index, b"", tmp_path), errors.Missing)


@pytest.mark.parametrize("data", [SMALL, packed(NEAR)], ids=["deflated", "stored"])
def test_every_damaged_byte_of_a_member_is_noticed(index: Index, tmp_path: Path, data: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        info = file.getinfo("toy/a.py")
        start = info.header_offset + 30 + len(info.filename)
        places = range(start, start + info.compress_size, max(1, info.compress_size // 8))
    for place in places:
        damaged = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        error = refusal(index, damaged, tmp_path)
        assert isinstance(error, errors.BadInput)
        assert error.message.startswith(f"{FILE}: damaged: ")


def test_a_member_over_the_bound(index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheel, "_MAX_MEMBER_BYTES", 299)
    error = refusal(index, SMALL, tmp_path)
    assert isinstance(error, errors.BadInput)
    assert error.message == "toy/a.py: 300 bytes is more than Kiln reads from a wheel"


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "", "a\\b"])
def test_a_path_that_leaves_the_wheel(index: Index, tmp_path: Path, path: str) -> None:
    error = refusal(index, packed({path or "x": b"x"}), tmp_path / "cache", path)
    assert isinstance(error, errors.BadInput)
    assert error.message == f"{path!r}: not a path inside a wheel"
    assert index.asked == []


# whole wheels


def test_a_whole_wheel_is_downloaded(index: Index, tmp_path: Path) -> None:
    target = tmp_path / "wheels" / FILE
    wheel.download(index.serve(BIG), target)
    assert target.read_bytes() == BIG
    assert [path.name for path in target.parent.iterdir()] == [FILE]


def test_a_whole_wheel_with_other_bytes_is_not_kept(index: Index, tmp_path: Path) -> None:
    pin = index.serve(BIG)
    index.data = SMALL
    with pytest.raises(errors.BadInput) as caught:
        wheel.download(pin, tmp_path / FILE)
    fetched = hashlib.sha256(SMALL).hexdigest()
    assert caught.value.message == f"{FILE}: pinned sha256 {pin.sha256}, fetched {fetched}"
    assert not list(tmp_path.iterdir())


def test_the_guard_refuses_the_world() -> None:
    with pytest.raises(AssertionError, match=r"address of 'example.invalid'"):
        socket.create_connection(("example.invalid", 80), timeout=1)
    with (
        socket.socket() as plain,
        pytest.raises(AssertionError, match=re.escape("connected to ('192.0.2.1', 80)")),
    ):
        plain.connect(("192.0.2.1", 80))
