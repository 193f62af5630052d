"""What a puppet says: each transcript's meaning, the raw text of it, and how that is cut into tokens."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import JsonValue, StringConstraints, model_validator

from kiln import errors
from kiln.catalog import records
from kiln.catalog.load import read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_FOLDER = Path(__file__).parent / "transcripts"
_WORDS = re.compile(r"\s*[^\s<>]+|\s*[<>]|\s+")
_TAGS = re.compile(r"</?[^<>\s]{2,}[^<>]*>")

_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+(\+1)?$")]


class Tool(records.Record):
    name: records.Text
    description: records.Text
    parameters: dict[str, JsonValue]


class Call(records.Record):
    """One tool call as the model means it."""

    name: records.Text
    arguments: dict[str, JsonValue]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One generated token; `added` when it is an added token of the tokenizer, which a parser can see by its id."""

    data: bytes
    added: bool = False


@dataclass(frozen=True, kw_only=True)
class Transcript:
    name: str
    pieces: tuple[Piece, ...]
    reasoning: str
    content: str
    calls: tuple[Call, ...]


class Said(records.Record):
    """One transcript as its data file holds it; `first` is the text of the very first token."""

    name: _Name
    why: records.Text
    reasoning: str = ""
    content: str = ""
    calls: tuple[Call, ...] = ()
    text: records.Text
    first: str = ""
    cut: Literal["words", "characters", "bytes", "across"] = "words"

    @model_validator(mode="after")
    def _first_begins_text(self) -> Self:
        if not self.text.startswith(self.first):
            raise ValueError(f"text does not begin with first: {self.first!r}")
        return self


class Family(records.Record):
    """Everything one model family's puppet says, with the tools it is offered."""

    added_tokens: tuple[records.Text, ...]
    markers: tuple[records.Text, ...]
    tools: tuple[Tool, ...]
    transcripts: tuple[Said, ...]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [said.name for said in self.transcripts]
        if len(set(names)) != len(names):
            raise ValueError("two transcripts have one name")
        return self

    def cut(self) -> tuple[Transcript, ...]:
        """Return the transcripts with their text cut into tokens."""
        return tuple(
            Transcript(
                name=said.name,
                pieces=tuple(_pieces(said, self.added_tokens)),
                reasoning=said.reasoning,
                content=said.content,
                calls=said.calls,
            )
            for said in self.transcripts
        )


def families() -> tuple[str, ...]:
    """Return the names of all families that have transcripts."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def load(family: str) -> Family:
    """Read one family's transcripts. Raises BadInput for an unknown family or a wrong file."""
    if family not in families():
        raise errors.BadInput(errors.unknown("transcripts", family, families()))
    return read(Family, _FOLDER / f"{family}.yaml", root=_FOLDER.parent)


def _pieces(said: Said, added: Sequence[str]) -> Iterator[Piece]:
    if said.first:
        yield Piece(data=said.first.encode(), added=said.first in added)
    rest = said.text[len(said.first) :]
    longest_first = sorted(added, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", rest) if added else [rest]
    for part in parts:
        if part in added:
            yield Piece(data=part.encode(), added=True)
        else:
            yield from (Piece(data=data) for data in _cut(part, said.cut))


def _cut(text: str, how: Literal["words", "characters", "bytes", "across"]) -> list[bytes]:
    match how:
        case "words":
            return [word.encode() for word in _WORDS.findall(text)]
        case "characters":
            return [character.encode() for character in text]
        case "bytes":
            return [bytes([byte]) for byte in text.encode()]
        case "across":
            middles = [(tag.start() + tag.end()) // 2 for tag in _TAGS.finditer(text)]
            edges = [0, *middles, len(text)]
            return [text[a:b].encode() for a, b in itertools.pairwise(edges) if a < b]
