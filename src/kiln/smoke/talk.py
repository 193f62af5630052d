"""Talks to a server as its users do, through the official client, and keeps what it heard."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import openai
import requests

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from openai.types.chat import (
        ChatCompletionChunk,
        ChatCompletionFunctionToolParam,
        ChatCompletionMessageParam,
    )

    from kiln.smoke.transcript import Tool

MAX_TOKENS = 1500


@dataclass(frozen=True, kw_only=True)
class HeardCall:
    """A tool call as the server sent it: `arguments` is its JSON text."""

    name: str
    arguments: str

    def parsed(self) -> Any:
        """Return the arguments' value. Raises ValueError that shows a text that is not JSON."""
        try:
            return json.loads(self.arguments)
        except ValueError as error:
            raise ValueError(f"{self.name}: arguments are not JSON: {self.arguments!r}") from error


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, whole or put together from a stream of `deltas` pieces."""

    content: str
    reasoning: str
    calls: tuple[HeardCall, ...]
    finish: str | None
    tokens: int | None
    deltas: int = 1


@dataclass(frozen=True, kw_only=True)
class Request:
    """One chat request for a transcript by name; `after_result` puts a finished tool call before it."""

    name: str
    max_tokens: int = MAX_TOKENS
    temperature: float = 0.0
    after_result: bool = False


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One answer, the request it is the answer to, and how it came."""

    request: Request
    streamed: bool
    answer: Answer

    @property
    def where(self) -> str:
        return f"{self.request.name}, {'streamed' if self.streamed else 'whole'}"


class Talk:
    """A connection to one server, past any proxy, without retries and with a limit on every wait."""

    def __init__(self, url: str, model: str, tools: Sequence[Tool], *, timeout_s: float = 30) -> None:
        self.url = url
        self.model = model
        self.heard: list[Heard] = []
        self._timeout_s = timeout_s
        self._tools = [_offer(tool) for tool in tools]
        self._http = requests.Session()
        self._http.trust_env = False
        self._openai = openai.OpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            max_retries=0,
            timeout=timeout_s,
            http_client=openai.DefaultHttpxClient(trust_env=False, timeout=timeout_s),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._openai.close()
        self._http.close()

    def get(self, path: str) -> requests.Response:
        return self._http.get(self.url + path, timeout=self._timeout_s)

    def post(self, path: str, body: bytes) -> requests.Response:
        """Post raw bytes as JSON, which the official client would not send if they are not."""
        headers = {"Content-Type": "application/json"}
        return self._http.post(self.url + path, data=body, headers=headers, timeout=self._timeout_s)

    def models(self) -> tuple[str, ...]:
        return tuple(model.id for model in self._openai.models.list())

    def whole(self, request: Request) -> Answer:
        """Ask for an answer in one piece."""
        completion = self._openai.chat.completions.create(
            model=self.model,
            messages=_messages(request),
            tools=self._tools,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
        )
        choice = completion.choices[0]
        calls = [call for call in choice.message.tool_calls or () if call.type == "function"]
        answer = Answer(
            content=choice.message.content or "",
            reasoning=_reasoning(choice.message),
            calls=tuple(HeardCall(name=c.function.name, arguments=c.function.arguments) for c in calls),
            finish=choice.finish_reason,
            tokens=completion.usage.completion_tokens if completion.usage else None,
        )
        self.heard.append(Heard(request=request, streamed=False, answer=answer))
        return answer

    def streamed(self, request: Request) -> Answer:
        """Ask for a stream and put it together. Raises TimeoutError for one that does not end."""
        parts = _Parts()
        for chunk in self._chunks(request):
            parts.add(chunk)
        answer = parts.answer()
        self.heard.append(Heard(request=request, streamed=True, answer=answer))
        return answer

    def abandon(self, request: Request) -> None:
        """Ask for a stream and hang up after its first piece."""
        with contextlib.closing(self._chunks(request)) as chunks:
            next(chunks)

    def _chunks(self, request: Request) -> Generator[ChatCompletionChunk]:
        deadline = time.monotonic() + self._timeout_s
        with self._openai.chat.completions.create(
            model=self.model,
            messages=_messages(request),
            tools=self._tools,
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            for chunk in stream:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the stream has not ended after {self._timeout_s:g} s")
                yield chunk


@dataclass
class _Parts:
    """Gathers the pieces of one stream."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    finish: str | None = None
    tokens: int | None = None
    deltas: int = 0

    def add(self, chunk: ChatCompletionChunk) -> None:
        if chunk.usage:
            self.tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            self.finish = choice.finish_reason or self.finish
            text, thought, calls = (
                choice.delta.content or "",
                _reasoning(choice.delta),
                choice.delta.tool_calls or (),
            )
            self.deltas += bool(text or thought or calls)
            self.content += text
            self.reasoning += thought
            for call in calls:
                name, arguments = self.calls.get(call.index, ("", ""))
                if call.function:
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
                self.calls[call.index] = (name, arguments)

    def answer(self) -> Answer:
        return Answer(
            content=self.content,
            reasoning=self.reasoning,
            calls=tuple(HeardCall(name=name, arguments=text) for _, (name, text) in sorted(self.calls.items())),
            finish=self.finish,
            tokens=self.tokens,
            deltas=self.deltas,
        )


def _reasoning(message: object) -> str:
    """Return the reasoning under the name that this server gives it; the field is no part of the official API."""
    return getattr(message, "reasoning", None) or getattr(message, "reasoning_content", None) or ""


def _offer(tool: Tool) -> ChatCompletionFunctionToolParam:
    function: Any = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def _messages(request: Request) -> list[ChatCompletionMessageParam]:
    asked: ChatCompletionMessageParam = {"role": "user", "content": f"script:{request.name}"}
    if not request.after_result:
        return [asked]
    return [
        asked,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "call-1",
                    "type": "function",
                    "function": {"name": "earlier_tool", "arguments": "{}"},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "call-1", "content": "done"},
    ]
