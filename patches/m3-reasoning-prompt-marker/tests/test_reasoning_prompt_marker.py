"""What a MiniMax-M3 prompt decides about reasoning, through the release's own parsers, called as the endpoint does.

The template is made up; all it shares with a real one is that turns end in the tokenizer's EOS token.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from transformers import PreTrainedTokenizerFast
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.abstract_parser import Parser

    Said = tuple[str | None, str | None, list[tuple[str, dict[str, object]]]]  # reasoning, content, calls
    Delta = tuple[str, list[int]]  # text, tokens

START, END, PAIR = "<mm:think>", "</mm:think>", "<mm:think></mm:think>"
THINKS = "<mm:think>Two and two.</mm:think>It is 4 < 5."
SKIPS = "</mm:think>It is 4."
SEED = 20260102
HISTORIES = {
    "empty pair in the system turn": (f"system: Think in {PAIR}.", "user: 2+2?"),
    "whole pair in the system turn": ("system: Write <mm:think>thoughts</mm:think> first.", "user: 2+2?"),
    "pair quoted by the user": (f"user: What does {PAIR} mean?",),
    "pair at the very end of the user's turn": (f"user: {PAIR}",),
    "lone closing tag quoted by the user": ("user: What is </mm:think>?",),
    "reasoning of an earlier turn": ("user: 1+1?", "assistant: <mm:think>One.</mm:think>2", "user: 2+2?"),
    "reasoning before a tool's result": ("user: 2+2?", "assistant: <mm:think>I ask.</mm:think>add(2, 2)", "tool: 4"),
}


@pytest.fixture(scope="session")
def probe() -> ModuleType:
    """Return the patch's probe, whose parts the tests use."""
    path = Path(__file__).parents[1] / "probe.py"
    spec = importlib.util.spec_from_file_location("reasoning_prompt_marker_probe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Endpoint:
    """The parsers of one server."""

    def __init__(self, probe: ModuleType, tokenizer: PreTrainedTokenizerFast) -> None:
        self.probe = probe
        self.tokenizer = tokenizer
        self.combined = probe.parser_class(tokenizer)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def parser(self, mode: str | None) -> tuple[Parser, ChatCompletionRequest]:
        return self.probe.make_parser(self.combined, self.tokenizer, mode)

    def ended(self, prompt: str, mode: str | None = None) -> bool:
        """Return whether the prompt is taken to have ended reasoning."""
        return self.parser(mode)[0].is_reasoning_end(self.ids(prompt))

    def stream(self, prompt: str, parts: list[Delta], mode: str | None = None) -> Said:
        """Return (reasoning, content, calls) of an answer that arrives as these (text, tokens)."""
        parser, request = self.parser(mode)
        return self.probe.streamed(parser, request, self.ids(prompt), parts)

    def sized(self, prompt: str, answer: str, size: int, mode: str | None = None) -> Said:
        return self.stream(prompt, self.probe.deltas(self.tokenizer, answer, size), mode)

    def whole(self, answer: str, mode: str | None = None) -> Said:
        """Return (reasoning, content, calls) of the answer without streaming."""
        parser, request = self.parser(mode)
        reasoning, content, calls = parser.parse(answer, request, enable_auto_tools=True)
        return reasoning or None, content or None, [(call.name, json.loads(call.arguments)) for call in calls or []]

    def constrained_from(self, prompt: str, answer: str, mode: str | None = None) -> int:
        """Return how many tokens of the answer come before a structured output's grammar."""
        reasoner = self.parser(mode)[0].reasoning_parser
        return self.probe.constrained_from(reasoner, self.ids(prompt), self.ids(answer))


@pytest.fixture(scope="session")
def endpoint(probe: ModuleType) -> Endpoint:
    return Endpoint(probe, probe.make_tokenizer())


@pytest.fixture(params=list(HISTORIES))
def asked(probe: ModuleType, request: pytest.FixtureRequest) -> str:
    """Return a prompt that holds think tags in its earlier turns and ends where the assistant begins."""
    return probe.turns(*HISTORIES[request.param])


@pytest.mark.rule("E4.2-1")
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_reasoning_streams_as_reasoning_whatever_earlier_turns_hold(endpoint: Endpoint, asked: str, size: int) -> None:
    assert endpoint.sized(asked, THINKS, size) == ("Two and two.", "It is 4 < 5.", [])


@pytest.mark.rule("E4.2-1")
def test_a_closing_tag_that_skips_thinking_is_dropped_whatever_earlier_turns_hold(
    endpoint: Endpoint, asked: str
) -> None:
    for size in (1, 2, 100):
        assert endpoint.sized(asked, SKIPS, size) == (None, "It is 4.", [])


@pytest.mark.rule("E4.2-1")
@pytest.mark.parametrize("opened", ["", START])
def test_thinking_always_on_streams_reasoning_whatever_earlier_turns_hold(
    endpoint: Endpoint, asked: str, opened: str
) -> None:
    for size in (1, 2, 100):
        assert endpoint.sized(asked + opened, "Two.</mm:think>4", size, "enabled") == ("Two.", "4", [])
    assert not endpoint.ended(asked, "enabled")


@pytest.mark.rule("E4.2-2")
def test_a_stream_equals_its_whole_answer_after_any_earlier_turns(endpoint: Endpoint, probe: ModuleType) -> None:
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    pieces = ["a", " b", "1 < 2", ".", "\n", "<b>"]
    for _ in range(120):
        history = HISTORIES[rng.choice(list(HISTORIES))]
        thought, said = ("".join(rng.choices(pieces, k=rng.randint(1, 6))) + "." for _ in range(2))
        mode = rng.choice([None, "adaptive", "enabled"])
        opened = mode == "enabled"
        prompt = probe.turns(*history, last=START if opened else "")
        answer = ("" if opened else START) + thought + END + said + rng.choice(["", probe.CALL])
        for size in (1, rng.randint(2, 20), len(answer)):
            assert endpoint.sized(prompt, answer, size, mode) == endpoint.whole(answer, mode), (prompt, answer, size)


@pytest.mark.rule("E4.2-3")
def test_the_prompt_decides_by_the_turn_being_generated_alone(endpoint: Endpoint, probe: ModuleType) -> None:
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    pieces = [START, END, PAIR, "text", " ", "\n", probe.EOS]
    for _ in range(400):
        prompt = "".join(rng.choices(pieces, k=rng.randint(0, 8)))
        turn = prompt.rpartition(probe.EOS)[2]
        assert endpoint.ended(prompt) is (turn.rfind(END) > turn.rfind(START)), prompt


@pytest.mark.rule("E4.2-4")
def test_a_structured_output_begins_after_the_reasoning_of_its_own_turn(endpoint: Endpoint, asked: str) -> None:
    tokens = endpoint.ids(THINKS)
    reasoned = tokens.index(endpoint.tokenizer.convert_tokens_to_ids(END)) + 1
    assert endpoint.constrained_from(asked, THINKS) == reasoned
    assert endpoint.constrained_from(asked, SKIPS) == 1


@pytest.mark.rule("E4.2-5")
def test_a_special_token_inside_the_answer_does_not_cut_its_turn(probe: ModuleType) -> None:
    tokenizer = probe.make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|quoted|>"]})
    endpoint = Endpoint(probe, tokenizer)
    prompt = probe.turns(*HISTORIES["pair quoted by the user"])
    answer = "<mm:think>The marker is <|quoted|>, two and two.</mm:think>It is 4."
    tokens = endpoint.ids(answer)
    assert tokenizer.convert_tokens_to_ids("<|quoted|>") in tokens
    reasoned = tokens.index(tokenizer.convert_tokens_to_ids(END)) + 1
    assert endpoint.constrained_from(prompt, answer) == reasoned
    for size in (1, 3, 100):
        assert endpoint.sized(prompt, answer, size) == endpoint.whole(answer)


@pytest.mark.rule("E4.2-3")
@pytest.mark.parametrize("length", [4094, 4095, 4096, 4097, 8191, 8192, 8193])
def test_the_turn_is_found_behind_a_long_text(endpoint: Endpoint, probe: ModuleType, length: int) -> None:
    prompt = probe.turns(*HISTORIES["pair quoted by the user"])
    assert not endpoint.ended(prompt + "x" * length)
    assert endpoint.ended(prompt + PAIR + "x" * length)


@pytest.mark.rule("E4.2-5")
@pytest.mark.parametrize("added", [[START, END], ["<|turn|>"]])
def test_other_special_tokens_change_nothing(probe: ModuleType, added: list[str]) -> None:
    tokenizer = probe.make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    endpoint = Endpoint(probe, tokenizer)
    assert set(added) <= set(tokenizer.all_special_tokens)
    prompt = probe.turns(*HISTORIES["pair quoted by the user"])
    assert endpoint.sized(prompt, THINKS, 2) == ("Two and two.", "It is 4 < 5.", [])
    assert endpoint.ended(prompt + PAIR)
    assert not endpoint.ended(prompt + START)


@pytest.mark.parametrize("closed", [PAIR, END, PAIR + "\n\n", END + "\n", "<mm:think>\n</mm:think>"])
def test_reasoning_that_the_prompt_closes_at_its_end_stays_closed(endpoint: Endpoint, asked: str, closed: str) -> None:
    prompt = asked + closed
    assert endpoint.ended(prompt, "disabled")
    for size in (1, 2, 100):
        assert endpoint.sized(prompt, "It is <4>.", size, "disabled") == (None, "It is <4>.", [])
    assert endpoint.constrained_from(prompt, "{}", "disabled") == 0


def test_thinking_switched_off_without_a_tag_streams_content(endpoint: Endpoint, asked: str) -> None:
    for size in (1, 100):
        assert endpoint.sized(asked, "It is 4.", size, "disabled") == (None, "It is 4.", [])


@pytest.mark.parametrize("mode", [None, "adaptive", "enabled", "disabled"])
def test_an_answer_that_goes_on_after_its_reasoning_stays_content(
    endpoint: Endpoint, asked: str, mode: str | None
) -> None:
    prompt = asked + "<mm:think>Two and two.</mm:think>It is"
    assert endpoint.ended(prompt, mode)
    assert endpoint.sized(prompt, " 4.", 1, mode) == (None, " 4.", [])


def test_an_opening_tag_in_an_earlier_turn_leaves_it_to_the_answer(endpoint: Endpoint, probe: ModuleType) -> None:
    prompt = probe.turns("user: What is <mm:think>?")
    assert endpoint.sized(prompt, THINKS, 2) == ("Two and two.", "It is 4 < 5.", [])
    assert endpoint.sized(prompt, "It is 4.", 2) == (None, "It is 4.", [])


@pytest.mark.parametrize("answer", [THINKS, SKIPS, "It is 4."])
def test_an_eos_token_at_the_end_of_the_answer_changes_nothing(
    endpoint: Endpoint, probe: ModuleType, answer: str
) -> None:
    eos = endpoint.tokenizer.eos_token_id
    prompt = probe.turns("user: 2+2?")
    for size in (1, 2, 100):
        parts = probe.deltas(endpoint.tokenizer, answer, size)
        text, tokens = parts[-1]
        expected = endpoint.whole(answer)
        assert endpoint.stream(prompt, [*parts[:-1], (text, [*tokens, eos])]) == expected
        assert endpoint.stream(prompt, [*parts, ("", [eos])]) == expected


def test_a_prompt_without_eos_is_one_turn(endpoint: Endpoint) -> None:
    assert endpoint.ended(f"Think in {PAIR}. 2+2?")
    assert not endpoint.ended("2+2?")
    assert not endpoint.ended("")
