from __future__ import annotations

import contextlib
import json
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from registry_support import LAYER, Entry, descriptor, digest, image_manifest, tar, zipped

from kiln import errors
from kiln.registry import archive, contents, layers, records, saved
from kiln.registry.layers import Found
from kiln.registry.reader import verified
from kiln.registry.records import Damaged, Descriptor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FOLDER, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE


@dataclass
class Stack:
    """An image in memory; `read` holds the index of each layer read, in that order."""

    tars: tuple[bytes, ...]
    kind: str = ""
    broken: dict[int, bytes] = field(default_factory=dict)
    wrong_id: int = -1
    read: list[int] = field(default_factory=list)

    def blob(self, index: int) -> bytes:
        pack: dict[str, Callable[[bytes], bytes]] = {"": bytes, "+gzip": zipped, "+zstd": zstandard.compress}
        return pack[self.kind](self.tars[index])

    @property
    def layers(self) -> tuple[Descriptor, ...]:
        return tuple(records.describe(self.blob(index), f"{LAYER}{self.kind}") for index in range(len(self.tars)))

    @property
    def diff_ids(self) -> tuple[str, ...]:
        return tuple(digest(b"other" if index == self.wrong_id else each) for index, each in enumerate(self.tars))

    @contextlib.contextmanager
    def stream_blob(self, named: Descriptor) -> Iterator[Iterator[bytes]]:
        index = self.layers.index(named)
        self.read.append(index)
        data = self.broken.get(index, self.blob(index))
        pieces = (data[start : start + 1000] for start in range(0, len(data), 1000))
        yield verified(pieces, named, f"layer {index}")


def quiet(_: str) -> None:
    pass


def data_of(found: dict[str, Found]) -> dict[str, bytes | None]:
    return {path: each.data for path, each in found.items()}


def everything(stack: Stack, **options: Any) -> dict[str, Found]:
    return layers.scan(stack, lambda _: True, layers=None, progress=quiet, **options)


def stacked(*each: tuple[Entry, ...], kind: str = "") -> Stack:
    return Stack(tuple(tar(*entries) for entries in each), kind)


BASE = (
    Entry("./etc/", kind=FOLDER, mode=0o755),
    Entry("./etc/passwd", b"root"),
    Entry("usr/bin/tool", b"tool" * 5000, mode=0o4755),
    Entry("/usr/lib/a", b"a"),
    Entry("usr/lib//./b", b"b"),
    Entry("lib", kind=LINK, link="usr/lib"),
)


@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
def test_files_are_found_with_their_hashes(kind: str) -> None:
    stack = stacked(BASE, kind=kind)
    wanted = ["usr/bin/tool", "etc/passwd", "usr/lib/a", "usr/lib/b", "lib", "etc", "nothing"]
    found = layers.find(stack, wanted, progress=quiet)
    assert list(found) == wanted[:-1]
    assert found["usr/bin/tool"] == Found(
        path="usr/bin/tool",
        layer=0,
        layer_digest=stack.layers[0].digest,
        mode=0o4755,
        size=20000,
        sha256=digest(b"tool" * 5000).removeprefix("sha256:"),
        data=b"tool" * 5000,
    )
    assert (found["lib"].kind, found["lib"].link, found["lib"].data) == ("link", "usr/lib", None)
    assert (found["etc"].kind, found["etc"].mode) == ("folder", 0o755)
    assert found == layers.scan(stack, set(wanted).__contains__, layers=None, progress=quiet, keep=True)


def test_without_keep_there_are_hashes_alone() -> None:
    found = layers.find(stacked(BASE), ["usr/lib/a"], progress=quiet, keep=False)["usr/lib/a"]
    assert (found.data, found.size, found.sha256) == (None, 1, digest(b"a").removeprefix("sha256:"))


def test_the_layers_below_are_not_read_when_all_is_decided() -> None:
    upper = (Entry("etc/passwd", b"new"), Entry("usr/lib/.wh.a"))
    stack = stacked(BASE, BASE, upper)
    assert data_of(layers.find(stack, ["etc/passwd", "usr/lib/a"], progress=quiet)) == {"etc/passwd": b"new"}
    assert stack.read == [2]
    assert layers.find(stack, [], progress=quiet) == {}
    assert stack.read == [2]


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ((Entry("d/.wh.x"),), {"d/y": b"1", "e/x": b"1"}),
        ((Entry(".wh.d"),), {"e/x": b"1"}),
        ((Entry(".wh.d"), Entry("d/x", b"2")), {"d/x": b"2", "e/x": b"1"}),
        ((Entry("d/x", b"2"), Entry("d/.wh..wh..opq")), {"d/x": b"2", "e/x": b"1"}),
        ((Entry("./.wh..wh..opq"), Entry("e/x", b"2")), {"e/x": b"2"}),
        ((Entry("d", kind=LINK, link="e"),), {"e/x": b"1"}),
        ((Entry("d", b"a file now"),), {"d": b"a file now", "e/x": b"1"}),
        ((Entry("d/x", kind=FOLDER),), {"d/y": b"1", "e/x": b"1"}),
        ((Entry("d", kind=FOLDER),), {"d/x": b"1", "d/y": b"1", "e/x": b"1"}),
        ((Entry("d/.wh..wh.plnk", b"?"),), {"d/x": b"1", "d/y": b"1", "e/x": b"1"}),
        ((Entry("d/x", b"2"), Entry("d/x", b"3")), {"d/x": b"3", "d/y": b"1", "e/x": b"1"}),
    ],
)
def test_upper_layers_hide_lower_ones(upper: tuple[Entry, ...], left: dict[str, bytes]) -> None:
    lower = (Entry("d/x", b"1"), Entry("d/y", b"1"), Entry("e/x", b"1"))
    stack = stacked(lower, (Entry("z", b""),), upper)
    names = ["d", "d/x", "d/y", "e/x"]
    found = layers.find(stack, names, progress=quiet)
    assert {path: data for path, data in data_of(found).items() if data is not None} == left
    scanned = layers.scan(stack, names.__contains__, layers=None, progress=quiet, keep=True)
    assert scanned == dict(sorted(found.items()))


def test_chosen_layers_are_read_alone() -> None:
    stack = stacked((Entry("a", b"0"),), (Entry("b", b"1"), Entry(".wh.a")), (Entry("b", b"2"),))
    found = layers.scan(stack, lambda _: True, layers={0, 1}, progress=quiet)
    assert {path: each.layer for path, each in found.items()} == {"b": 1}
    assert stack.read == [1, 0]


# hard links


def test_hard_links_are_the_files_that_they_name() -> None:
    lower = (Entry("low", b"low", mode=0o600), Entry("bin/a", b"A"), Entry("bin/b", kind=HARD, link="./bin/a"))
    middle = (Entry("other", b"other"),)
    upper = (Entry("up", b"up"), Entry("x/up", kind=HARD, link="up"), Entry("x/low", kind=HARD, link="/low"))
    stack = stacked(lower, middle, upper)
    found = layers.find(stack, ["x/up", "x/low", "bin/b"], progress=quiet)
    assert data_of(found) == {"x/up": b"up", "x/low": b"low", "bin/b": b"A"}
    assert (found["x/low"].layer, found["x/low"].mode, found["x/low"].path) == (0, 0o600, "x/low")
    assert {path: each.layer for path, each in everything(stack).items()} == {
        "bin/a": 0, "bin/b": 0, "low": 0, "other": 1, "up": 2, "x/low": 0, "x/up": 2,
    }  # fmt: skip


def test_a_hard_link_lives_on_where_its_file_is_taken_away() -> None:
    stack = stacked((Entry("a", b"A"), Entry("b", kind=HARD, link="a")), (Entry(".wh.a"),))
    assert data_of(everything(stack, keep=True)) == {"b": b"A"}
    assert data_of(layers.find(stack, ["a", "b"], progress=quiet)) == {"b": b"A"}


def test_a_chain_of_hard_links_is_followed() -> None:
    stack = stacked((Entry("a", b"A"),), (Entry("b", kind=HARD, link="a"), Entry("c", kind=HARD, link="b")))
    assert data_of(everything(stack, keep=True)) == {"a": b"A", "b": b"A", "c": b"A"}


@pytest.mark.parametrize(
    "each",
    [
        [(Entry("b", kind=HARD, link="a"),)],
        [(Entry("b", kind=HARD, link="b"),)],
        [(Entry("b", kind=HARD, link="c"), Entry("c", kind=HARD, link="b"))],
        [(Entry("b", kind=HARD, link="../a"),)],
        [(Entry("a", b"1"), Entry("b", kind=HARD, link="a"), Entry("a", b"2"))],
        [(Entry("a", b"1"),), (Entry(".wh.a"),), (Entry("b", kind=HARD, link="a"),)],
        [
            (
                Entry("a", b"1"),
                Entry("x", kind=HARD, link="a"),
                Entry("y", kind=HARD, link="x"),
                Entry("b", kind=HARD, link="y"),
            )
        ],
    ],
)
def test_a_hard_link_that_is_not_clear_is_damage(each: list[tuple[Entry, ...]]) -> None:
    with pytest.raises(Damaged):
        layers.find(stacked(*each), ["b"], progress=quiet)


def test_hard_links_on_hard_links_are_not_looked_for_in_the_wrong_layer() -> None:
    lower = (Entry("a", b"low"),)
    upper = (Entry("a", b"up"), Entry("x", kind=HARD, link="a"), Entry("b", kind=HARD, link="x"))
    with pytest.raises(Damaged, match="hard links on hard links"):
        layers.find(stacked(lower, upper), ["b"], progress=quiet)
    assert data_of(everything(stacked(lower, upper), keep=True)) == {"a": b"up", "b": b"up", "x": b"up"}


def test_changes_are_those_of_the_layers_above() -> None:
    lower = (Entry("d/x", b"1"), Entry("d/y", b"1"), Entry("o/x", b"1"))
    upper = (Entry("d/.wh.x"), Entry("o/.wh..wh..opq"), Entry("n", b"new"), Entry("h", kind=HARD, link="n"))
    stack = stacked(lower, upper)
    made = layers.changes(stack, 1, keep=lambda path: path == "h", progress=quiet)
    assert data_of(made.found) == {"h": b"new", "n": None}
    assert made.found["h"].sha256 == made.found["n"].sha256
    assert (made.removed, made.emptied) == (frozenset({"d/x"}), frozenset({"o"}))
    assert 0 not in stack.read


# archives that lie


@pytest.mark.parametrize(
    "entry",
    [
        Entry("../x"),
        Entry("a/../../x"),
        Entry("x" * 5000),
        Entry("d/.wh..."),
        Entry("d/.wh."),
        Entry("d/.wh..", b""),
    ],
)
def test_a_name_that_leaves_the_image_is_damage(entry: Entry) -> None:
    with pytest.raises(Damaged):
        everything(stacked((Entry("a", b"A"), entry)))


def test_a_file_in_what_is_no_folder_is_damage() -> None:
    with pytest.raises(Damaged, match="in what is no folder"):
        everything(stacked((Entry("a", kind=LINK, link="/etc"), Entry("a/passwd", b"evil"))))
    with pytest.raises(Damaged, match="in what is no folder"):
        layers.find(stacked((Entry("a/b", b"1"), Entry("a", b"2"))), ["a/b"], progress=quiet)
    fine = stacked((Entry("a", b"2"), Entry("a", kind=FOLDER), Entry("a/b", b"1")))
    assert data_of(layers.find(fine, ["a/b"], progress=quiet)) == {"a/b": b"1"}


def header(**changes: Any) -> bytes:
    member = tarfile.TarInfo("a")
    for name, value in changes.items():
        setattr(member, name, value)
    return member.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)
A_FILE = tar(Entry("a", b"A"))[:1024]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"no tar at all" * 100, id="no tar"),
        pytest.param(A_FILE[:700], id="cut in a file"),
        pytest.param(A_FILE + b"x" * 100, id="cut in a header"),
        pytest.param(A_FILE + b"x" * 512 + END, id="a broken header in the middle"),
        pytest.param(A_FILE + bytes(512) + A_FILE + END, id="more after a block of zeros"),
        pytest.param(A_FILE + END + b"x", id="more after the end"),
        pytest.param(header(size=1 << 40) + END, id="larger than the archive"),
        pytest.param(header(size=-1 << 40) + END, id="of negative size"),
        pytest.param(header(size=1 << 40, type=tarfile.XHDTYPE) + END, id="an extended header without end"),
        pytest.param(header(size=1 << 40, type=tarfile.GNUTYPE_LONGNAME) + END, id="a name without end"),
        pytest.param(header(size=4, type=tarfile.XHDTYPE) + b"xxxx".ljust(512, b"\0"), id="a header for nothing"),
        pytest.param(header(type=tarfile.XHDTYPE) * 2000 + A_FILE + END, id="headers on headers"),
        pytest.param(header(type=tarfile.GNUTYPE_SPARSE) + END, id="a sparse file"),
        pytest.param(b"\0" * 156 + b"S" + b"\xff" * 3000, id="noise"),
    ],
)
def test_an_archive_that_is_none_is_damage(data: bytes) -> None:
    with pytest.raises(Damaged):
        everything(Stack((data,)), keep=True)


@pytest.mark.parametrize("data", [b"", bytes(512), END, bytes(10240), A_FILE, A_FILE + END])
def test_an_archive_may_be_empty_or_without_its_end(data: bytes) -> None:
    assert set(everything(Stack((data,)))) <= {"a"}


def test_a_long_name_and_a_large_number_are_read() -> None:
    deep = "/".join(["d" * 50] * 10)
    assert list(everything(stacked((Entry(deep, b"x"), Entry("ä", b"y"))))) == [deep, "ä"]


# blobs that lie


@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
@pytest.mark.parametrize("place", [0, 700, -700, -1])
def test_one_byte_changed_is_damage_before_anything_is_returned(kind: str, place: int) -> None:
    stack = stacked((Entry("a", b"A" * 600), Entry("b", bytes(range(256)) * 40)), kind=kind)
    blob = bytearray(stack.blob(0))
    blob[place if abs(place) < len(blob) else 5] ^= 1
    stack.broken[0] = bytes(blob)
    with pytest.raises(Damaged):
        layers.find(stack, ["a"], progress=quiet)


@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
def test_a_layer_that_is_cut_or_longer_is_damage(kind: str) -> None:
    stack = stacked((Entry("a", bytes(5000)),), kind=kind)
    for blob in (stack.blob(0)[:-1], stack.blob(0) + b"\0", stack.blob(0) * 2, b""):
        stack.broken[0] = blob
        with pytest.raises(Damaged):
            layers.find(stack, ["a"], progress=quiet)


def test_another_diff_id_is_damage() -> None:
    stack = stacked(BASE, kind="+gzip")
    stack.wrong_id = 0
    with pytest.raises(Damaged, match="the image's config says"):
        layers.find(stack, ["etc/passwd"], progress=quiet)


def unpacked(blob: bytes, content: bytes, kind: str = "+gzip") -> list[str]:
    named = records.describe(blob, f"{LAYER}{kind}")
    pieces = verified(iter([blob]), named, "x")
    layer = archive.Layer(pieces, named, digest(content), "x")
    return [member.name for member in layer.members()]


def test_a_layer_of_several_compressed_members_is_read_whole() -> None:
    content = tar(Entry("a", b"A" * 100), Entry("b", b"B" * 100))
    halves = content[:1000], content[1000:]
    assert unpacked(b"".join(map(zipped, halves)), content) == ["a", "b"]
    zstd = zstandard.ZstdCompressor()
    assert unpacked(b"".join(map(zstd.compress, halves)), content, "+zstd") == ["a", "b"]


def test_what_follows_the_compressed_content_is_damage() -> None:
    content = tar(Entry("a", b"A"))
    for kind, blob in (("+gzip", zipped(content)), ("+zstd", zstandard.compress(content)), ("", content)):
        with pytest.raises(Damaged):
            unpacked(blob + b"evil", content, kind)


def test_a_layer_of_another_compression_than_its_kind_is_damage() -> None:
    content = tar(Entry("a", b"A"))
    for kind, blob in (("+gzip", content), ("+zstd", zipped(content)), ("", zipped(content)), ("+xz", content)):
        with pytest.raises(Damaged):
            unpacked(blob, content, kind)


def test_a_layer_that_unpacks_to_far_too_much_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "_ALWAYS_ALLOWED", 1 << 20)
    content = tar(Entry("a", bytes(8 << 20)))
    for kind, blob in (("+gzip", zlib.compress(content, wbits=31)), ("+zstd", zstandard.compress(content))):
        with pytest.raises(Damaged, match="unpacks to more than"):
            unpacked(blob, content, kind)


def test_a_window_that_takes_all_memory_is_refused() -> None:
    content = tar(Entry("a", b"A"))
    options = zstandard.ZstdCompressionParameters(window_log=30)
    blob = zstandard.ZstdCompressor(compression_params=options).compressobj().compress(content)
    with pytest.raises(Damaged):
        unpacked(blob or b"\x28\xb5\x2f\xfd\x00\xa0", content, "+zstd")


def test_too_many_entries_and_too_many_bytes_are_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = stacked(BASE)
    monkeypatch.setattr(contents, "_MAX_KEPT_BYTES", 100)
    assert everything(stack)
    with pytest.raises(Damaged, match="keeps"):
        everything(stack, keep=True)
    monkeypatch.setattr(contents, "_MAX_MEMBERS", 3)
    with pytest.raises(Damaged, match="entries"):
        everything(stack)


@pytest.mark.parametrize("path", ["/etc/passwd", "etc/", "./etc", "a//b", "", "../x"])
def test_a_path_that_is_asked_for_in_another_way_is_refused(path: str) -> None:
    with pytest.raises(errors.KilnError):
        layers.find(stacked(BASE), [path], progress=quiet)


def test_progress_names_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_TELL_EVERY", 20_000)
    told: list[str] = []
    stack = stacked(BASE, (Entry("a", b"A"),))
    layers.scan(stack, lambda _: True, layers=None, progress=told.append)
    assert told[0] == "layer 2 of 2: 0.0 MB"
    assert told[1].startswith("layer 1 of 2: ")
    assert len(told) > 2


# what `docker save` writes


def layout(top: dict[str, Any], *blobs: bytes) -> dict[str, bytes]:
    index = {"schemaVersion": 2, "manifests": [top]}
    named = {f"blobs/sha256/{digest(blob).removeprefix('sha256:')}": blob for blob in blobs}
    return {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": json.dumps(index).encode(), **named}


def saved_files(**changes: Any) -> dict[str, bytes]:
    """Return the files of a layout whose index names an index that names an image for one of two platforms."""
    layer = tar(*BASE)
    config = json.dumps(
        {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [digest(layer)]}}
    ).encode()
    manifest = json.dumps(image_manifest(config, layer) | changes).encode()
    other = {"mediaType": records.OCI_MANIFEST, "digest": digest(b"not saved"), "size": 9}
    entries = [
        {**other, "platform": {"os": "linux", "architecture": "arm64"}},
        {**descriptor(manifest, records.OCI_MANIFEST), "platform": {"os": "linux", "architecture": "amd64"}},
    ]
    index = json.dumps({"schemaVersion": 2, "mediaType": records.OCI_INDEX, "manifests": entries}).encode()
    return layout(descriptor(index, records.OCI_INDEX), index, manifest, config, layer)


def write(files: dict[str, bytes], place: Path, *, packed: bool) -> Path:
    if packed:
        place.write_bytes(tar(*(Entry(name, data) for name, data in files.items())))
        return place
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


@pytest.mark.parametrize("packed", [True, False])
def test_a_saved_image_is_read_in_place(tmp_path: Path, packed: bool) -> None:  # noqa: FBT001
    place = write(saved_files(), tmp_path / "image", packed=packed)
    image = saved.open_saved(place)
    assert image.platform == "linux/amd64"
    assert image.index_digest
    assert data_of(layers.find(image, ["etc/passwd"], progress=quiet)) == {"etc/passwd": b"root"}
    with pytest.raises(errors.Missing, match="not in it"):
        saved.open_saved(place, "linux/arm64")


@pytest.mark.parametrize("packed", [True, False])
def test_a_saved_image_with_a_changed_byte_is_damage(tmp_path: Path, packed: bool) -> None:  # noqa: FBT001
    files = saved_files()
    for number, name in enumerate(name for name in files if name.startswith("blobs/")):
        changed = {**files, name: files[name].replace(b"a", b"b", 1)}
        with pytest.raises(Damaged):
            layers.find(
                saved.open_saved(write(changed, tmp_path / str(number), packed=packed)), ["etc/passwd"], progress=quiet
            )


def test_what_is_no_saved_image_is_refused(tmp_path: Path) -> None:
    several = {
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [descriptor(b"a"), descriptor(b"b")]}).encode()
    }
    with pytest.raises(errors.BadInput, match="2 images"):
        saved.open_saved(write(several, tmp_path / "several.tar", packed=True))
    with pytest.raises(errors.Missing, match=r"index\.json is not in it"):
        saved.open_saved(write({"x": b""}, tmp_path / "none.tar", packed=True))
    (tmp_path / "noise").write_bytes(b"noise" * 1000)
    with pytest.raises(errors.BadInput, match="not a tar"):
        saved.open_saved(tmp_path / "noise")
    huge = {"index.json": bytes(records.MAX_MANIFEST_BYTES + 1)}
    with pytest.raises(Damaged, match="more than"):
        saved.open_saved(write(huge, tmp_path / "huge.tar", packed=True))
    other = saved_files(config=descriptor(b"{}", "application/vnd.toy"))
    with pytest.raises(errors.BadInput, match="not an image"):
        saved.open_saved(write(other, tmp_path / "other.tar", packed=True))
