"""The puppet says what its transcripts mean, token by token, and is the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from kiln import errors, process
from kiln.smoke import puppet, transcript
from kiln.smoke.transcript import Piece, Transcript

if TYPE_CHECKING:
    from numpy.typing import NDArray

FAMILY = "minimax_m3"
MARK = "]<]minimax[>["


def m3_value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        body = "".join(m3_value(key, item) for key, item in value.items())
    elif isinstance(value, list):
        body = "".join(m3_value("item", item) for item in value)
    else:
        body = value if isinstance(value, str) else json.dumps(value)
    return f"{MARK}<{name}>{body}{MARK}</{name}>"


def m3_text(said: transcript.Said) -> str:
    text = f"<mm:think>{said.reasoning}</mm:think>" if said.reasoning else ""
    text += said.content
    if not said.calls:
        return text
    calls = "".join(
        f'{MARK}<invoke name="{call.name}">'
        + "".join(m3_value(key, value) for key, value in call.arguments.items())
        + f"{MARK}</invoke>\n"
        for call in said.calls
    )
    return f"{text}{MARK}<tool_call>\n{calls}{MARK}</tool_call>"


def tensors(path: Path) -> dict[str, NDArray[np.float32]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            half = np.frombuffer(data[begin:end], dtype="<u2").astype("<u4") << 16
            found[name] = half.view("<f4").reshape(entry["shape"])
    return found


def decode(path: Path, place: int, end: int) -> list[int]:
    """Decode greedily as GPT-2 does when attention and MLP add nothing: LayerNorm, then the head."""
    weights = tensors(path / "model.safetensors")
    ids: list[int] = []
    while not ids or ids[-1] != end:
        hidden = weights["transformer.wte.weight"][0] + weights["transformer.wpe.weight"][place + len(ids)]
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-5)
        logits = weights["lm_head.weight"] @ hidden
        first, second = np.sort(logits)[::-1][:2]
        assert first - second > 32
        ids.append(int(np.argmax(logits)))
    return ids[:-1]


def starts(path: Path) -> dict[str, int]:
    template = json.loads((path / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    found = re.search(r"set tape = (\{.*?\}) -%\}", template)
    assert found
    places: dict[str, int] = json.loads(found[1])
    return places


@pytest.fixture(scope="module")
def family() -> transcript.Family:
    return transcript.load(FAMILY)


@pytest.fixture(scope="module")
def built(family: transcript.Family, tmp_path_factory: pytest.TempPathFactory) -> puppet.Puppet:
    return puppet.build(tmp_path_factory.mktemp("puppet"), family.cut(), family.added_tokens)


def test_raw_texts_say_what_is_meant(family: transcript.Family) -> None:
    for said in family.transcripts:
        assert said.text == m3_text(said), said.name


def test_pieces_add_up_to_the_text(family: transcript.Family) -> None:
    for said, cut in zip(family.transcripts, family.cut(), strict=True):
        assert b"".join(piece.data for piece in cut.pieces).decode() == said.text


def test_the_puppet_says_every_transcript(built: puppet.Puppet) -> None:
    tokenizer = Tokenizer.from_file(str(built.path / "tokenizer.json"))
    end = tokenizer.token_to_id("<|end|>")
    assert end is not None
    places = starts(built.path)
    for said in built.transcripts:
        ids = decode(built.path, places[said.name], end)
        text = b"".join(piece.data for piece in said.pieces).decode()
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
        assert len(ids) == len(said.pieces)


def test_added_tokens_keep_their_ids_and_are_seen_in_text(built: puppet.Puppet) -> None:
    tokenizer = Tokenizer.from_file(str(built.path / "tokenizer.json"))
    vocabulary = json.loads((built.path / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    for token in ("<mm:think>", "</mm:think>", MARK):
        assert tokenizer.encode(token).ids == [vocabulary[token]]
    assert tokenizer.decode(tokenizer.encode("Zürich 🗼 <b>").ids) == "Zürich 🗼 <b>"


def test_first_deltas_hold_text_and_the_head_of_a_marker(family: transcript.Family) -> None:
    cut = {said.name: said.pieces for said in family.cut()}
    assert cut["first-delta"][:2] == (Piece(data=b"Compare a <"), Piece(data=b" b"))
    assert cut["first-delta-call"][:2] == (Piece(data=b"]<]minimax[>[<"), Piece(data=b"tool_call"))


def test_cuts(family: transcript.Family) -> None:
    def cut(text: str, how: str) -> tuple[Piece, ...]:
        said = transcript.Said.model_validate({"name": "x", "why": "y", "text": text, "cut": how})
        return family.model_copy(update={"transcripts": (said,)}).cut()[0].pieces

    assert [piece.data for piece in cut("a <b> ü", "words")] == [b"a", b" <", b"b", b">", " ü".encode()]
    assert [piece.data for piece in cut("ü!", "bytes")] == [b"\xc3", b"\xbc", b"!"]
    assert [piece.data for piece in cut("x<tag>y</tag>", "across")] == [b"x<t", b"ag>y</t", b"ag>"]
    assert cut("<mm:think>a", "characters") == (Piece(data=b"<mm:think>", added=True), Piece(data=b"a"))


def test_a_rebuild_writes_nothing(built: puppet.Puppet, family: transcript.Family) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.path.iterdir()}
    again = puppet.build(built.path, family.cut(), family.added_tokens)
    assert again.digest == built.digest
    assert {path: path.stat().st_mtime_ns for path in built.path.iterdir()} == before


def test_another_process_writes_the_same_bytes(built: puppet.Puppet, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kiln.smoke import puppet, transcript;"
        f"f = transcript.load({FAMILY!r}); puppet.build(Path(sys.argv[1]), f.cut(), f.added_tokens)"
    )
    source = str(Path(puppet.__file__).parents[2])
    process.ask(process.python("-c", code, str(tmp_path / "m")), env={"PYTHONPATH": source, "PYTHONHASHSEED": "7"})
    for path in built.path.iterdir():
        other = tmp_path / "m" / path.name
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(other.read_bytes()).digest()


def test_the_digest_names_the_content(tmp_path: Path) -> None:
    def digest(data: bytes) -> str:
        said = Transcript(name="a", pieces=(Piece(data=data),), reasoning="", content="", calls=())
        return puppet.build(tmp_path, [said], ()).digest

    assert digest(b"one") != digest(b"two")
    assert digest(b"one") == digest(b"one")


def test_an_added_token_cannot_be_said_as_text(tmp_path: Path) -> None:
    said = Transcript(name="a", pieces=(Piece(data=b"<t>"),), reasoning="", content="", calls=())
    with pytest.raises(errors.BadInput, match="'<t>' cannot be plain text"):
        puppet.build(tmp_path, [said], ["<t>"])
    with pytest.raises(errors.BadInput, match="at least one"):
        puppet.build(tmp_path, [], [])


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(errors.BadInput, match="did you mean 'minimax_m3'"):
        transcript.load("minimax_m4")
