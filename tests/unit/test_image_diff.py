"""What differs between two images, read out of OCI layouts made here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kiln import process
from kiln.image.diff import compare as diff
from kiln.image.diff.compare import Change, Diff, Entry, FileChange
from kiln.registry import saved
from kiln.registry.records import Damaged
from kiln.tasks.show_image import show_diff

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kiln.registry.saved import SavedImage

    Files = Mapping[str, bytes | str]

SOURCE = Path(__file__).resolve().parents[2] / "src"
SITE = "usr/lib/python3.12/dist-packages"
LEDGER = "opt/kiln/ledger.json"
PINS = "opt/kiln/pins.json"
STATUS = "var/lib/dpkg/status"
BASE: dict[str, bytes | str] = {
    "etc/shared": b"the same in both",
    f"{SITE}/quark-0.11.dist-info/METADATA": b"Name: quark\nVersion: 0.11\n",
    STATUS: b"Package: bash\nStatus: install ok installed\nVersion: 5.2\n\n",
}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def tar(files: Files) -> bytes:
    """Return a layer: text is where a link leads, a name with a slash at its end is a folder."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            if isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
            elif name.endswith("/"):
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            else:
                member.size, member.mode = len(content), 0o755 if name.endswith(".sh") else 0o644
            archive.addfile(member, io.BytesIO(content) if member.isreg() and isinstance(content, bytes) else None)
    return out.getvalue()


def image(folder: Path, layers: Sequence[Files], *, level: int = 9, **config: Any) -> SavedImage:
    """Return an image of these layers, written as an OCI layout."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        (blobs / sha256(data)).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    tars = [tar(files) for files in layers]
    kind = "application/vnd.oci.image."
    rows = [blob(gzip.compress(data, level, mtime=0), f"{kind}layer.v1.tar+gzip") for data in tars]
    settings = {
        "os": "linux",
        "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(data)}" for data in tars]},
        "history": [{"created_by": f"step {number}"} for number in range(len(tars))],
        "config": config,
    }
    named = blob(json.dumps(settings).encode(), f"{kind}config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": f"{kind}manifest.v1+json", "config": named, "layers": rows}
    top = blob(json.dumps(manifest).encode(), f"{kind}manifest.v1+json")
    index = {"schemaVersion": 2, "mediaType": f"{kind}index.v1+json", "manifests": [top]}
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return saved.open_saved(folder)


class Compare:
    """Compares two images given by their layers, and keeps what was said of the progress."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.said, self.count = folder, list[str](), 0

    def __call__(self, a: Sequence[Files], b: Sequence[Files], **config: Any) -> Diff:
        return self.images(self.image(a), self.image(b, **config))

    def image(self, layers: Sequence[Files], **config: Any) -> SavedImage:
        self.count += 1
        return image(self.folder / str(self.count), layers, **config)

    def images(self, a: SavedImage, b: SavedImage) -> Diff:
        return diff.compare(("one", "other"), a, b, progress=self.said.append)


@pytest.fixture
def compare(tmp_path: Path) -> Compare:
    return Compare(tmp_path)


def entry(data: bytes, mode: str = "0644") -> Entry:
    return Entry(kind="file", size=len(data), mode=mode, sha256=sha256(data), link="")


# layers


def test_an_image_differs_in_nothing_from_itself(compare: Compare) -> None:
    found = compare([BASE, {"a": b"1"}], [BASE, {"a": b"1"}])
    assert found.shared_layers == 2
    assert found.a.layers == found.b.layers == ()
    assert (found.pins, found.patches, found.python, found.debian, found.files) == ((), (), (), (), ())
    assert compare.said == []


def test_layers_that_both_have_are_not_read_however_they_are_compressed(compare: Compare) -> None:
    fast, small = compare.image([BASE, {"a": b"1"}], level=1), compare.image([BASE, {"a": b"2"}], level=9)
    assert fast.layers[0].digest != small.layers[0].digest
    (compare.folder / "1/blobs/sha256" / fast.layers[0].digest.removeprefix("sha256:")).unlink()
    found = compare.images(fast, small)
    assert (found.shared_layers, found.shared_bytes) == (1, fast.layers[0].size)
    assert [layer.number for layer in found.b.layers] == [2]
    assert [layer.made_by for layer in found.b.layers] == ["step 1"]
    assert found.b.size == sum(layer.size for layer in small.layers)
    assert found.files == (FileChange(path="a", how="changed", a=entry(b"1"), b=entry(b"2")),)
    assert len(compare.said) == 2


def test_a_layer_that_is_not_what_its_digest_says_is_refused(compare: Compare) -> None:
    one, other = compare.image([BASE]), compare.image([{"a": b"1"}])
    path = compare.folder / "2/blobs/sha256" / other.layers[0].digest.removeprefix("sha256:")
    path.write_bytes(gzip.compress(tar({"a": b"2"}), mtime=0))
    with pytest.raises(Damaged):
        compare.images(one, other)


# files


def test_files_of_images_that_share_no_layer(compare: Compare) -> None:
    a: Files = {"same": b"s", "gone": b"g", "other": b"1", "run.sh": b"r", "link": "there", "folder/": b""}
    b: Files = {"same": b"s", "new": b"n", "other": b"2", "link": "elsewhere", "folder/": b"", "more/": b""}
    found = compare([a], [b, {"run.sh": b"r", ".wh.never": b""}])
    assert [(each.path, each.how) for each in found.files] == [
        ("gone", "removed"),
        ("link", "changed"),
        ("new", "added"),
        ("other", "changed"),
    ]
    assert found.files[1].b == Entry(kind="link", size=0, mode="0644", sha256="", link="elsewhere")


def test_files_above_shared_layers_are_said_to_be_written_or_deleted(compare: Compare) -> None:
    a = {"new": b"n", "taken": b"t", "etc/sub/deep": b"d"}
    b = {".wh.taken": b"", "etc/.wh.sub": b"", "etc/.wh.shared": b"", "var/.wh..wh..opq": b"", "b": b"b"}
    found = compare([BASE, a], [BASE, b])
    assert [(each.path, each.how) for each in found.files] == [
        ("b", "written by B"),
        ("etc/sub/deep", "removed"),
        ("new", "written by A"),
        ("taken", "removed"),
        ("etc/shared", "deleted by B"),
        ("etc/sub", "deleted by B"),
        ("var", "emptied by B"),
    ]


def test_what_both_delete_is_no_difference(compare: Compare) -> None:
    gone = {"etc/.wh.shared": b""}
    assert compare([BASE, gone | {"a": b"1"}], [BASE, {"a": b"1"}, gone]).files == ()


def test_the_top_layer_decides(compare: Compare) -> None:
    found = compare([BASE, {"a": b"1"}, {"a": b"2"}], [BASE, {"a": b"2"}])
    assert found.files == ()


# what an image says of itself


def test_pins_by_their_keys(compare: Compare) -> None:
    pins = {"pins": {"aiter": "v1", "triton": None}, "kind": "rocm", "series": [{"id": "p"}], "serve": {"x": 1}}
    other = {"pins": {"aiter": "v2", "flags": ["a", 1]}, "kind": "rocm"}
    found = compare([BASE, {PINS: json.dumps(pins).encode()}], [BASE, {PINS: json.dumps(other).encode()}])
    assert found.pins == (
        Change(what="pins.aiter", a="v1", b="v2"),
        Change(what="pins.flags", a=None, b='["a", 1]'),
    )


def test_patches_by_their_editions(compare: Compare) -> None:
    def ledger(**editions: str) -> bytes:
        rows = [{"id": name, "edition_sha256": sha256, "files": {"f": {}}} for name, sha256 in editions.items()]
        return json.dumps({"patches": rows}).encode()

    found = compare([BASE, {LEDGER: ledger(x="aa" * 32, y="bb" * 32)}], [BASE, {LEDGER: ledger(x="cc" * 32)}])
    assert found.patches == (
        Change(what="x", a="aaaaaaaaaaaa, 1 file", b="cccccccccccc, 1 file"),
        Change(what="y", a="bbbbbbbbbbbb, 1 file", b=None),
    )


def test_what_is_no_json_is_said(compare: Compare) -> None:
    with pytest.raises(Damaged, match=r"opt/kiln/pins\.json: not JSON"):
        compare([BASE, {PINS: b"{"}], [BASE])


def test_a_distribution_that_replaces_one_of_the_shared_layers(compare: Compare) -> None:
    upgraded = {
        f"{SITE}/.wh.quark-0.11.dist-info": b"",
        f"{SITE}/quark-0.12.dist-info/METADATA": b"Metadata-Version: 2.4\nName: Quark\nVersion: 0.12\n\nVersion: 9\n",
        f"{SITE}/my_pkg-1.dist-info/METADATA": b"Name: my.pkg\nVersion: 1\n",
    }
    found = compare([BASE], [BASE, upgraded])
    assert found.python == (Change(what="my-pkg", a=None, b="1"), Change(what="quark", a="0.11", b="0.12"))
    assert compare([BASE, upgraded], [BASE]).python[1] == Change(what="quark", a="0.12", b="0.11")
    assert compare([BASE, upgraded], [BASE, upgraded, {"x": b""}]).python == ()


def test_a_distribution_that_lies_in_two_folders(compare: Compare) -> None:
    twice = {
        f"{SITE}/x-1.dist-info/METADATA": b"Name: x\nVersion: 1\n",
        "opt/venv/lib/x-2.dist-info/METADATA": b"Name: x\nVersion: 2\n",
    }
    assert compare([BASE], [BASE, twice]).python == (
        Change(what="x in opt/venv/lib", a=None, b="2"),
        Change(what=f"x in {SITE}", a=None, b="1"),
    )


def test_debian_packages_of_a_list_that_one_image_rewrote(compare: Compare) -> None:
    """Only then the list is looked for in shared layers."""
    more = BASE[STATUS]
    assert isinstance(more, bytes)
    status = more + b"Package: curl\nStatus: install ok installed\nVersion: 8.1\nDepends: a,\n b: c\n\n"
    status += b"Package: left\nStatus: deinstall ok config-files\nVersion: 1\n\n"
    found = compare([BASE, {"x": b""}], [BASE, {STATUS: status}])
    assert found.debian == (Change(what="curl", a=None, b="8.1"),)
    parts = {
        "var/lib/dpkg/status.d/tzdata": b"Package: tzdata\nVersion: 2026a\n",
        "var/lib/dpkg/status.d/t.md5sums": b"",
    }
    assert compare([parts], [{"x": b""}]).debian == (Change(what="tzdata", a="2026a", b=None),)


def test_how_a_container_is_started(compare: Compare) -> None:
    found = compare(
        [BASE],
        [BASE],
        Env=["A=1", "B=x=y"],
        Entrypoint=["vllm", "serve"],
        WorkingDir="/app",
        Labels={"ai.kiln.kind": "rocm"},
    )
    assert found.environment == (Change(what="A", a=None, b="1"), Change(what="B", a=None, b="x=y"))
    assert found.settings == (
        Change(what="Entrypoint", a=None, b='["vllm", "serve"]'),
        Change(what="WorkingDir", a=None, b="/app"),
    )
    assert found.labels == (Change(what="ai.kiln.kind", a=None, b="rocm"),)


@pytest.mark.parametrize("config", [{"Env": "A=1"}, {"Env": [1, None]}, {"Entrypoint": {"a": 1}}])
def test_a_config_of_another_form_does_no_harm(compare: Compare, config: dict[str, Any]) -> None:
    assert compare([BASE], [BASE], **config).environment == ()


# as a person types and sees it


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("UPPER", "b:1"), "✗ 'library/UPPER': not the name of a repository; upper case is not allowed\n"),
        (("--files", "a", "b:1", "--json"), "✗ a: neither a tag nor a digest\n"),
        (("--to", "b:1", "a"), "✗ a: neither a tag nor a digest\n"),
        (("a:1",), "✗ two images are compared\n"),
        (("a:1", "b:1", "c:1"), "✗ unknown task 'c:1'"),
    ],
)
def test_two_names_and_nothing_else(catalog_copy: Path, words: tuple[str, ...], said: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "KILN_ROOT": str(catalog_copy)}
    found = process.run(process.python("-m", "kiln", "image.diff", *words), env=environment)
    assert (found.code, found.stdout) == (2, "")
    assert found.stderr.startswith(said)


def test_long_lists_are_folded_and_counted(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    many = {f"f{number:03}": b"x" for number in range(30)}
    found = compare([BASE], [BASE, many], Env=[f"E{number}=1" for number in range(25)])
    show_diff(found, files=False, json=False)
    said = capsys.readouterr().out
    assert "f001" not in said
    assert "files: 30 written by B\n" in said
    assert "and 5 more environment: the same command with --files\n" in said
    assert said.endswith("each of them: the same command with --files\n")
    show_diff(found, files=True, json=False)
    whole = capsys.readouterr().out
    assert "f029  written by B  -  " in whole
    assert "--files" not in whole


def test_nothing_in_an_image_is_a_command_to_a_terminal(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = {"a\x1b[2J": b"", f"{SITE}/x-1.dist-info/METADATA": b"Name: x\nVersion: 1\x1b[31m\n"}
    show_diff(compare([BASE], [BASE, hostile], Env=["A=\x1b]0;x\x07"]), files=True, json=False)
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "\x07" not in said
    assert "a?[2J" in said


def test_as_json(compare: Compare, capsys: pytest.CaptureFixture[str]) -> None:
    show_diff(compare([BASE], [BASE, {"a": b"1"}]), files=False, json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["shared_layers"] == 1
    assert found["files"] == [
        {
            "path": "a",
            "how": "written by B",
            "a": None,
            "b": {"kind": "file", "size": 1, "mode": "0644", "sha256": sha256(b"1"), "link": ""},
        }
    ]
