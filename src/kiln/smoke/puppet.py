"""Writes a puppet: a tiny checkpoint whose greedy decoding says exactly the chosen transcript.

An untied GPT-2 with zero token embeddings, zero attention and zero MLP: the next token depends on the position alone.
The position embedding of a place is the code of the token that comes next, and the chat template pads the prompt up
to the place where the wanted transcript begins. Same inputs, same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from kiln import errors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from kiln.smoke.transcript import Piece, Transcript

_WIDTH = 64
_ROOM = 2048  # places after the tape, so that a request may ask for many tokens from its end
_END, _START, _PAD = "<|end|>", "<|start|>", "<|pad|>"
# logits are codes times codes times this: the said token leads any other by far more than bfloat16 can blur
_SHARPNESS = 4
_CLOSEST = 48

_TEMPLATE = """\
{%- set tape = TAPE -%}{%- set last = namespace(user='', results=0) -%}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{%- set last.user = message['content'] -%}{%- set last.results = 0 -%}
{%- elif message['role'] == 'tool' -%}{%- set last.results = last.results + 1 -%}{%- endif -%}
{%- endfor -%}
{%- set words = last.user.split('script:')[-1].split() -%}
{%- set name = words[0] if words else '' -%}
{%- if last.results and (name ~ '+' ~ last.results) in tape -%}{%- set name = name ~ '+' ~ last.results -%}{%- endif -%}
{%- if name not in tape -%}{%- set name = DEFAULT -%}{%- endif -%}
{{- '<|start|>' + '<|pad|>' * tape[name] -}}"""


@dataclass(frozen=True, kw_only=True)
class Puppet:
    """A written checkpoint; `digest` is the sha256 over the names and sha256 of all its files."""

    path: Path
    digest: str
    transcripts: tuple[Transcript, ...]


def build(directory: Path, transcripts: Sequence[Transcript], added_tokens: Sequence[str]) -> Puppet:
    """Write the checkpoint into `directory`; a file that is already right is left as it is."""
    if not transcripts:
        raise errors.BadInput("a puppet needs at least one transcript")
    vocabulary = _vocabulary(transcripts, added_tokens)
    end = vocabulary[_END]
    tape: list[int] = []
    starts: dict[str, int] = {}
    for transcript in transcripts:
        starts[transcript.name] = len(tape)
        tape += [*(vocabulary[_spelling(piece)] for piece in transcript.pieces), end]
    places = _round_up(len(tape) + _ROOM, 16)
    files = {
        "config.json": _json(_config(places, vocabulary)),
        "generation_config.json": _json({"eos_token_id": end}),
        "model.safetensors": _weights(tape, places, _round_up(len(vocabulary), 64)),
        "tokenizer.json": _tokenizer(vocabulary, added_tokens).encode(),
        "tokenizer_config.json": _json(_tokenizer_config(starts, places)),
    }
    directory.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        _write(directory / name, data)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    digest = f"sha256:{hashlib.sha256(sums.encode()).hexdigest()}"
    return Puppet(path=directory, digest=digest, transcripts=tuple(transcripts))


def _byte_letters() -> tuple[str, ...]:
    """Return the letter that byte-level BPE writes for each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {byte: chr(byte) for byte in shown} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    return tuple(letters[byte] for byte in range(256))


_LETTERS = _byte_letters()


def _spelling(piece: Piece) -> str:
    return piece.data.decode() if piece.added else "".join(_LETTERS[byte] for byte in piece.data)


def _vocabulary(transcripts: Sequence[Transcript], added_tokens: Sequence[str]) -> dict[str, int]:
    """Return token -> id: all bytes, the added tokens, then every token that is said, in order."""
    # added tokens are in the model's vocabulary too: tokenizers gives new ids to those that are not
    added = (_END, _START, _PAD, *added_tokens)
    vocabulary = {letter: byte for byte, letter in enumerate(_LETTERS)}
    for token in added:
        vocabulary.setdefault(token, len(vocabulary))
    for transcript in transcripts:
        for piece in transcript.pieces:
            spelling = _spelling(piece)
            if piece.added != (spelling in added):
                kind = "an added token" if piece.added else "plain text"
                raise errors.BadInput(f"{transcript.name}: {spelling!r} cannot be {kind}; cut it differently")
            vocabulary.setdefault(spelling, len(vocabulary))
    return vocabulary


def _codes(size: int) -> NDArray[np.float32]:
    """Return one code of +1 and -1 in equal number for each token id, all of them far apart."""
    seeds = (hashlib.shake_256(b"kiln-puppet-%d" % i).digest(4 * _WIDTH) for i in range(size))
    keys = np.frombuffer(b"".join(seeds), dtype="<u4").reshape(size, _WIDTH)
    ranks = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
    codes = np.where(ranks < _WIDTH // 2, np.float32(1), np.float32(-1))
    likeness = codes @ codes.T - np.float32(_WIDTH) * np.eye(size, dtype=np.float32)
    assert likeness.max() <= _CLOSEST, "two tokens have nearly the same code"
    return codes


def _weights(tape: Sequence[int], places: int, vocabulary_size: int) -> bytes:
    codes = _codes(vocabulary_size)
    # past the tape's end comes the id that ends every transcript
    said = np.full(places, tape[-1])
    said[: len(tape)] = tape
    width, inner = _WIDTH, _WIDTH
    shapes = {
        "wte.weight": (vocabulary_size, width),
        "ln_f.bias": (width,),
        "h.0.ln_1.bias": (width,),
        "h.0.ln_2.bias": (width,),
        "h.0.attn.c_attn.weight": (width, 3 * width),
        "h.0.attn.c_attn.bias": (3 * width,),
        "h.0.attn.c_proj.weight": (width, width),
        "h.0.attn.c_proj.bias": (width,),
        "h.0.mlp.c_fc.weight": (width, inner),
        "h.0.mlp.c_fc.bias": (inner,),
        "h.0.mlp.c_proj.weight": (inner, width),
        "h.0.mlp.c_proj.bias": (width,),
    }
    tensors = {f"transformer.{name}": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    for name in ("ln_f", "h.0.ln_1", "h.0.ln_2"):
        tensors[f"transformer.{name}.weight"] = np.ones(width, np.float32)
    tensors["transformer.wpe.weight"] = codes[said]
    tensors["lm_head.weight"] = codes * np.float32(_SHARPNESS)
    return _safetensors(tensors)


def _safetensors(tensors: Mapping[str, NDArray[np.float32]]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    blobs, offset = [], 0
    for name, tensor in sorted(tensors.items()):
        # bfloat16 is the upper half of a float32: exact for 0 and powers of two, which is all there is here
        blob = (tensor.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + b"".join(blobs)


def _tokenizer(vocabulary: Mapping[str, int], added_tokens: Sequence[str]) -> str:
    tokenizer = Tokenizer(models.BPE(vocab=dict(vocabulary), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (_END, _START, _PAD)])
    # tags are not special: a server that skips special tokens would hide them from its parsers
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in added_tokens])
    return tokenizer.to_str()


def _tokenizer_config(starts: Mapping[str, int], places: int) -> dict[str, Any]:
    template = _TEMPLATE.replace("\n", "").replace("TAPE", json.dumps(starts))
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _END,
        "pad_token": _PAD,
        "model_max_length": places,
        "chat_template": template.replace("DEFAULT", json.dumps(next(iter(starts)))),
    }


def _config(places: int, vocabulary: Mapping[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": _WIDTH,
        "n_head": 1,
        "n_layer": 1,
        "n_inner": _WIDTH,
        "n_positions": places,
        "n_ctx": places,
        "vocab_size": _round_up(len(vocabulary), 64),
        "activation_function": "relu",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": vocabulary[_END],
        "bos_token_id": vocabulary[_START],
        "add_cross_attention": False,
        "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False,
        "attn_pdrop": 0,
        "embd_pdrop": 0,
        "resid_pdrop": 0,
    }


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _write(path: Path, data: bytes) -> None:
    """Replace a file at once, so that a server that reads the folder meanwhile sees the old or the new one."""
    if path.is_file() and path.read_bytes() == data:
        return
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    Path(name).chmod(0o644)
    Path(name).replace(path)
