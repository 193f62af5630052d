"""Streams and whole answers of MiniMax-M3 through the release's own parsers, called as the chat endpoint calls them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType

    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.abstract_parser import Parser

    Said = tuple[str | None, str | None, list[tuple[str, dict[str, object]]]]  # reasoning, content, calls

START, END = "<mm:think>", "</mm:think>"
SEED = 20260101


@pytest.fixture(scope="session")
def probe() -> ModuleType:
    """Return the patch's probe, whose parts the tests use."""
    spec = importlib.util.spec_from_file_location("stream_first_delta_probe", Path(__file__).parents[1] / "probe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Endpoint:
    """The parsers of one server."""

    def __init__(self, probe: ModuleType) -> None:
        self.probe = probe
        self.tokenizer = probe.make_tokenizer()
        self.combined = probe.parser_class(self.tokenizer)

    def parser(self) -> tuple[Parser, ChatCompletionRequest]:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        request = ChatCompletionRequest(
            model="m", messages=[{"role": "user", "content": "x"}], tools=[self.probe.TOOL], tool_choice="auto"
        )
        parser = self.combined(self.tokenizer, request.tools, chat_template_kwargs={})
        return parser, parser.adjust_request(request)

    def stream(self, deltas: list[str]) -> Said:
        """Return (reasoning, content, calls) of an answer that arrives as these deltas."""
        parser, request = self.parser()
        return self.probe.streamed(parser, request, self.tokenizer, deltas)

    def whole(self, text: str) -> Said:
        """Return (reasoning, content, calls) of the same answer in one piece, without streaming."""
        parser, request = self.parser()
        reasoning, content, calls = parser.parse(text, request, enable_auto_tools=True)
        return reasoning or None, content or None, [(call.name, json.loads(call.arguments)) for call in calls or []]


@pytest.fixture(scope="session")
def endpoint(probe: ModuleType) -> Endpoint:
    return Endpoint(probe)


def cuts(text: str, places: Iterable[int]) -> list[str]:
    """Return the text cut before these places."""
    ends = [0, *sorted(places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(ends) if a < b]


@pytest.mark.rule("E4.1-1")
@pytest.mark.parametrize("length", range(1, len(START)))
@pytest.mark.parametrize("following", [" and so on", "x", "<"])
def test_text_that_looks_like_the_start_of_a_think_tag_is_kept(endpoint: Endpoint, length: int, following: str) -> None:
    first = "so a " + START[:length]
    assert endpoint.stream([first, following, "."]) == (None, first + following + ".", [])


@pytest.mark.rule("E4.1-1")
def test_text_held_back_in_the_last_delta_is_kept(endpoint: Endpoint) -> None:
    assert endpoint.stream(["a <"]) == (None, "a <", [])


@pytest.mark.rule("E4.1-2")
@pytest.mark.parametrize("before", ["", "Let me look. ", "1 < 2. "])
def test_a_tool_call_whose_first_tag_is_cut_is_a_call(endpoint: Endpoint, probe: ModuleType, before: str) -> None:
    text = before + probe.CALL
    called = [("get_weather", probe.ARGUMENTS)]
    for place in range(1, len(text)):
        assert endpoint.stream(cuts(text, [place])) == (None, before or None, called), text[:place]


@pytest.mark.rule("E4.1-3")
@pytest.mark.parametrize("length", range(1, len(START)))
def test_text_after_a_stray_closing_tag_is_kept(endpoint: Endpoint, length: int) -> None:
    held = START[:length]
    assert endpoint.stream([END + held, " b"]) == (None, held + " b", [])
    assert endpoint.stream([END + "a " + held, " b"]) == (None, "a " + held + " b", [])


@pytest.mark.rule("E4.1-3")
def test_a_tool_call_after_a_stray_closing_tag_is_a_call(endpoint: Endpoint, probe: ModuleType) -> None:
    text = END + probe.CALL
    for place in range(1, len(text)):
        assert endpoint.stream(cuts(text, [place])) == (None, None, [("get_weather", probe.ARGUMENTS)]), text[:place]


def answers(rng: random.Random, call: str, *, thinks: bool) -> Iterator[str]:
    """Yield answers as M3 forms them: perhaps reasoning or a stray closing tag, then text and perhaps a call.

    No text ends in a part of a tag: releases differ, with and without the patch, in what a stream makes of it.
    """
    pieces = ["a", " b", "<", ">", "</b", "<m", "<mm:", "mm:think", "]", "]<]", "\n", "<b>", "1 < 2"]
    while True:
        thought, said = ("".join(rng.choices(pieces, k=rng.randint(1, 6))) + "." for _ in range(2))
        lead = START + thought + END if thinks else rng.choice(["", "", END])
        if START not in thought + said:
            yield lead + said + rng.choice(["", call])


def chunkings(rng: random.Random, text: str) -> Iterator[list[str]]:
    """Yield ways to cut the text: one, two and five characters per delta, all in one, and at random."""
    for size in (1, 2, 5, len(text)):
        yield cuts(text, range(size, len(text), size))
    for _ in range(6):
        yield cuts(text, rng.sample(range(1, len(text)), min(len(text) - 1, rng.randint(1, 8))))


@pytest.mark.rule("E4.1-4")
def test_a_stream_without_reasoning_equals_its_whole_answer(endpoint: Endpoint, probe: ModuleType) -> None:
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    for text in itertools.islice(answers(rng, probe.CALL, thinks=False), 120):
        whole = endpoint.whole(text)
        for deltas in chunkings(rng, text):
            assert endpoint.stream(deltas) == whole, deltas


def test_a_stream_with_reasoning_equals_its_whole_answer(endpoint: Endpoint, probe: ModuleType) -> None:
    rng = random.Random(SEED + 1)  # noqa: S311 - repeatable, not secret
    for text in itertools.islice(answers(rng, probe.CALL, thinks=True), 60):
        whole = endpoint.whole(text)
        assert whole[0]
        for deltas in chunkings(rng, text):
            assert endpoint.stream(deltas) == whole, deltas


@pytest.mark.parametrize("place", range(1, len(START)))
def test_an_opening_tag_cut_anywhere_still_opens_reasoning(endpoint: Endpoint, place: int) -> None:
    deltas = [START[:place], START[place:] + "why", END, "so"]
    assert endpoint.stream(deltas) == ("why", "so", [])


@pytest.mark.parametrize("place", range(1, len(END)))
def test_a_stray_closing_tag_cut_anywhere_is_dropped(endpoint: Endpoint, place: int) -> None:
    assert endpoint.stream([END[:place], END[place:], "so"]) == (None, "so", [])
