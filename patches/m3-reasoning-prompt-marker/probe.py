"""Red when think tags of an earlier turn of the prompt decide where a MiniMax-M3 stream puts its reasoning.

Streams answers through the release's own reasoning and tool parsers, called as the chat endpoint calls them, after
prompts that hold a pair of think tags as an example, a quotation or history. Prompts that open or close reasoning in
the turn being generated must go on deciding. The turns of the made-up template end in the tokenizer's EOS token.
Needs an importable vllm.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.parser.abstract_parser import Parser
    from vllm.reasoning import ReasoningParser

NAMESPACE = "]<]minimax[>["
CALL = (
    f'{NAMESPACE}<tool_call>\n{NAMESPACE}<invoke name="get_weather">{NAMESPACE}<city>Oslo{NAMESPACE}</city>'
    f"{NAMESPACE}</invoke>\n{NAMESPACE}</tool_call>"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
EOS = "<|end|>"


class Said(NamedTuple):
    """What a client gets of an answer."""

    reasoning: str | None
    content: str | None
    calls: list[tuple[str, dict[str, object]]]


class Case(NamedTuple):
    """An answer after a prompt."""

    prompt: str
    mode: str | None
    """The thinking_mode in the request's chat_template_kwargs."""
    answer: str
    said: Said
    ended: bool = False
    """Whether the prompt leaves the turn being generated after its reasoning."""


def turns(*spoken: str, last: str = "") -> str:
    """Return closed turns, each "role: text", and an open turn of the assistant that begins with `last`."""
    return "".join(f"{text}{EOS}\n" for text in spoken) + "assistant: " + last


PAIR = "<mm:think></mm:think>"
EXAMPLE = turns(f"system: Put your thoughts in {PAIR} first.", "user: 2+2?")
QUOTED = turns("user: What does <mm:think>so</mm:think> do?")
TOOL_TURN = turns("user: Weather?", f"assistant: <mm:think>I ask.</mm:think>{CALL}", "tool: 3 degrees")
THINKS = "<mm:think>Two and two.</mm:think>It is 4 < 5."
THOUGHT = Said("Two and two.", "It is 4 < 5.", [])
CASES = {
    "an empty pair as an example": Case(EXAMPLE, None, THINKS, THOUGHT),
    "a pair with text, quoted by the user": Case(QUOTED, None, THINKS, THOUGHT),
    "reasoning of an earlier turn, then a tool's result": Case(
        TOOL_TURN,
        None,
        f"<mm:think>Ask again.</mm:think>{CALL}",
        Said("Ask again.", None, [("get_weather", {"city": "Oslo"})]),
    ),
    "a pair earlier; the model skips thinking": Case(EXAMPLE, None, "</mm:think>It is 4.", Said(None, "It is 4.", [])),
    "a pair earlier; thinking always on, no opening tag in the prompt": Case(
        TOOL_TURN, "enabled", "Two.</mm:think>4", Said("Two.", "4", [])
    ),
    "a pair earlier; the prompt opens reasoning": Case(
        EXAMPLE + "<mm:think>", "enabled", "Two and two.</mm:think>4", Said("Two and two.", "4", [])
    ),
    "the prompt closes reasoning by a pair at its end": Case(
        EXAMPLE + PAIR, "disabled", "It is 4.", Said(None, "It is 4.", []), ended=True
    ),
    "the prompt closes reasoning by a lone tag at its end": Case(
        QUOTED + "</mm:think>", "disabled", "It is 4.", Said(None, "It is 4.", []), ended=True
    ),
    "the prompt ends inside an answer whose reasoning is closed": Case(
        turns("user: 2+2?", last="<mm:think>Two.</mm:think>It "),
        "enabled",
        "is 4.",
        Said(None, "is 4.", []),
        ended=True,
    ),
}


def parser_class(tokenizer: PreTrainedTokenizerFast) -> type[Parser]:
    """Return the combined parser class; the signature of the factory moves between releases."""
    from vllm.parser.parser_manager import ParserManager

    options = {
        "tool_parser_name": "minimax_m3",
        "reasoning_parser_name": "minimax_m3",
        "enable_auto_tools": True,
        "tokenizer": tokenizer,
    }
    known = inspect.signature(ParserManager.get_parser).parameters
    return ParserManager.get_parser(**{name: value for name, value in options.items() if name in known})


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer in which every byte and every tag is a token, and EOS the only special one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens([AddedToken(tag, normalized=False) for tag in ("<mm:think>", "</mm:think>", NAMESPACE)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=EOS)


def make_parser(
    combined: type[Parser], tokenizer: PreTrainedTokenizerFast, mode: str | None
) -> tuple[Parser, ChatCompletionRequest]:
    """Return (parser, request) as the chat endpoint makes them."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    kwargs = {} if mode is None else {"thinking_mode": mode}
    request = ChatCompletionRequest(
        model="m",
        messages=[{"role": "user", "content": "x"}],
        tools=[TOOL],
        tool_choice="auto",
        chat_template_kwargs=kwargs,
    )
    parser = combined(tokenizer, request.tools, chat_template_kwargs=kwargs)
    return parser, parser.adjust_request(request)


def deltas(tokenizer: PreTrainedTokenizerFast, answer: str, size: int) -> list[tuple[str, list[int]]]:
    """Return the answer as (text, tokens), `size` tokens each."""
    tokens = tokenizer.encode(answer, add_special_tokens=False)
    parts = [tokens[start : start + size] for start in range(0, len(tokens), size)]
    return [(tokenizer.decode(part), part) for part in parts]


def streamed(
    parser: Parser, request: ChatCompletionRequest, prompt: list[int], parts: list[tuple[str, list[int]]]
) -> Said:
    """Feed the deltas as the chat endpoint does and add up what comes out."""
    reasoning, content, calls = "", "", {}
    for index, (text, tokens) in enumerate(parts):
        message = parser.parse_delta(
            delta_text=text,
            delta_token_ids=tokens,
            request=request,
            prompt_token_ids=prompt,
            finished=index == len(parts) - 1,
        )
        if message is None:
            continue
        reasoning += message.reasoning or ""
        content += message.content or ""
        for call in message.tool_calls or []:
            name, arguments = calls.get(call.index, ("", ""))
            calls[call.index] = (name + (call.function.name or ""), arguments + (call.function.arguments or ""))
    parsed = [(name, json.loads(arguments or "null")) for _, (name, arguments) in sorted(calls.items())]
    return Said(reasoning or None, content or None, parsed)


def constrained_from(reasoner: ReasoningParser, prompt: list[int], answer: list[int]) -> int:
    """Return how many tokens of the answer are free of a structured output's grammar, as the engine asks for it."""
    if reasoner.is_reasoning_end(prompt):
        return 0
    for count in range(1, len(answer) + 1):
        if reasoner.is_reasoning_end_streaming(prompt + answer[:count], answer[count - 1 : count]):
            return count
    return len(answer)


def faults(combined: type[Parser], tokenizer: PreTrainedTokenizerFast, case: Case) -> Iterator[str]:
    """Yield what is wrong, as text."""
    prompt = tokenizer.encode(case.prompt, add_special_tokens=False)
    parser, _ = make_parser(combined, tokenizer, case.mode)
    if parser.is_reasoning_end(prompt) is not case.ended:
        yield f"the prompt is taken to {'leave reasoning open' if case.ended else 'have ended reasoning'}"
    answer = tokenizer.encode(case.answer, add_special_tokens=False)
    closer = tokenizer.convert_tokens_to_ids("</mm:think>")
    if closer in answer and constrained_from(parser.reasoning_parser, prompt, answer) <= answer.index(closer):
        yield "a structured output's grammar would constrain the reasoning"
    for size in (1, 2, 5, len(case.answer)):
        parser, request = make_parser(combined, tokenizer, case.mode)
        said = streamed(parser, request, prompt, deltas(tokenizer, case.answer, size))
        if said != case.said:
            yield f"{size} tokens per delta: streamed {tuple(said)}, expected {tuple(case.said)}"


def main() -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    tokenizer, red = make_tokenizer(), 0
    combined = parser_class(tokenizer)
    for name, case in CASES.items():
        found = list(faults(combined, tokenizer, case))
        if found:
            red += 1
            print(f"red: {name}: {'; '.join(found[:3])}")
    if red:
        return 1
    print(f"green: {len(CASES)} prompts, each decides by the turn being generated alone")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.exit(main())
