"""Red when a MiniMax-M3 stream differs from the same answer in one piece, for first deltas that end in part of a tag.

Runs the release's own reasoning and tool parsers, called as the chat endpoint calls them. Needs an importable vllm.

Usage: python3 probe.py ROOT   (the folder that holds vllm/)
"""

from __future__ import annotations

import inspect
import json
import os
import sys

NAMESPACE = "]<]minimax[>["
ARGUMENTS = {"city": "Paris", "days": 3}
CALL = (
    f'{NAMESPACE}<tool_call>\n{NAMESPACE}<invoke name="get_weather">{NAMESPACE}<city>Paris{NAMESPACE}</city>'
    f"{NAMESPACE}<days>3{NAMESPACE}</days>{NAMESPACE}</invoke>\n{NAMESPACE}</tool_call>"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
    },
}
# the stream as its deltas -> (reasoning, content, calls)
STREAMS: dict[tuple[str, ...], tuple[str | None, str | None, list[tuple[str, dict[str, object]]]]] = {
    ("a <", " b and c"): (None, "a < b and c", []),
    ("1 <", "mm"): (None, "1 <mm", []),
    ("x<mm:", "thin", " air"): (None, "x<mm:thin air", []),
    ("</mm:think>", "a <", " b"): (None, "a < b", []),
    ("</mm:think><", " b"): (None, "< b", []),
    (CALL[:14], CALL[14:]): (None, None, [("get_weather", ARGUMENTS)]),
    ("Let me look. " + CALL[:14], CALL[14:40], CALL[40:]): (None, "Let me look. ", [("get_weather", ARGUMENTS)]),
    ("<", "b>bold</b>"): (None, "<b>bold</b>", []),
    ("<mm:", "think>why</mm:", "think>so"): ("why", "so", []),
    ("</mm", ":think>", "so"): (None, "so", []),
}


def parser_class(tokenizer):  # noqa: ANN001, ANN201 - vllm's types are not importable where this file is checked
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


def make_tokenizer():  # noqa: ANN201
    """Return a tokenizer in which every byte is a token, so that any text can be a delta."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens([AddedToken(tag, normalized=False) for tag in ("<mm:think>", "</mm:think>", NAMESPACE)])
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def streamed(parser, request, tokenizer, deltas):  # noqa: ANN001, ANN201
    """Feed the deltas as the chat endpoint does and add up what comes out: (reasoning, content, calls)."""
    reasoning, content, calls = "", "", {}
    for index, text in enumerate(deltas):
        message = parser.parse_delta(
            delta_text=text,
            delta_token_ids=tokenizer.encode(text, add_special_tokens=False),
            request=request,
            prompt_token_ids=[0],
            finished=index == len(deltas) - 1,
        )
        if message is None:
            continue
        reasoning += message.reasoning or ""
        content += message.content or ""
        for call in message.tool_calls or []:
            name, arguments = calls.get(call.index, ("", ""))
            function = call.function
            calls[call.index] = (name + (function.name or ""), arguments + (function.arguments or ""))
    parsed = [(name, json.loads(arguments or "null")) for _, (name, arguments) in sorted(calls.items())]
    return reasoning or None, content or None, parsed


def main() -> int:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    tokenizer, red = make_tokenizer(), 0
    combined = parser_class(tokenizer)
    for deltas, expected in STREAMS.items():
        request = ChatCompletionRequest(
            model="m", messages=[{"role": "user", "content": "x"}], tools=[TOOL], tool_choice="auto"
        )
        parser = combined(tokenizer, request.tools, chat_template_kwargs={})
        found = streamed(parser, parser.adjust_request(request), tokenizer, deltas)
        if found != expected:
            red += 1
            print(f"red: {list(deltas)}: streamed {found}, expected {expected}")
    if red:
        return 1
    print(f"green: {len(STREAMS)} streams equal their whole answer")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    sys.exit(main())
