"""The checks of tier serve: each asks a running server and yields what is wrong with its answers."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import openai
import requests

from kiln.errors import Finding
from kiln.smoke.records import CheckResult
from kiln.smoke.talk import MAX_TOKENS, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from kiln.smoke.records import Status
    from kiln.smoke.talk import Answer, Talk
    from kiln.smoke.transcript import Transcript

_CALLERS = 8
_PIECE_TRIES = 4
_REPEATS = 3
# everything that a server can bring about in the clients or in the reading of its answers
_CRASHES = (openai.OpenAIError, requests.RequestException, OSError, ValueError, LookupError, TypeError, AttributeError)
_SEE_PARSERS = "see --tool-call-parser and --reasoning-parser, and the patches on them"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a check asks: the server, what its puppet means by each transcript, and texts that may never leak."""

    talk: Talk
    means: Mapping[str, Transcript]
    markers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Check:
    name: str
    ask: Callable[[Subject], Iterator[Finding]]


def run(check: Check, subject: Subject) -> CheckResult:
    """Run one check; an exception of the client is a finding like any other."""
    start = time.monotonic()
    findings: list[Finding] = []
    try:
        findings.extend(check.ask(subject))
    except _CRASHES as error:
        findings.append(Finding(where=check.name, problem=f"{type(error).__name__}: {error}"))
    status: Status = "failed" if findings else "passed"
    seconds = round(time.monotonic() - start, 3)
    return CheckResult(tier="serve", name=check.name, status=status, findings=tuple(findings), seconds=seconds)


def same_json(one: Any, other: Any) -> bool:
    """Say whether two values are equal as JSON, types included: 3 is not 3.0, nor "3", and true is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def check_health(subject: Subject) -> Iterator[Finding]:
    status = subject.talk.get("/health").status_code
    if status != HTTPStatus.OK:
        yield Finding(where="/health", problem=f"answered {status}")


def check_models(subject: Subject) -> Iterator[Finding]:
    served = subject.talk.models()
    if subject.talk.model not in served:
        yield Finding(where="/v1/models", problem=f"{subject.talk.model!r} is not among {list(served)}")


def check_whole(name: str) -> Check:
    """Return the check that a transcript's answer, not streamed, is what the model means."""

    def ask(subject: Subject) -> Iterator[Finding]:
        answer = subject.talk.whole(Request(name=name))
        yield from _differences(name, answer, subject.means[name])

    return Check(name=name, ask=ask)


def check_streamed(name: str) -> Check:
    """Return the check that a stream comes in pieces, and adds up to the whole answer and to the meaning."""

    def ask(subject: Subject) -> Iterator[Finding]:
        whole = subject.talk.whole(Request(name=name))
        stream = subject.talk.streamed(Request(name=name))
        changes = list(_changes(f"{name}, streamed", stream, whole, than="not streamed"))
        yield from changes or _differences(f"{name}, streamed", stream, subject.means[name])
        # on a busy machine the server puts together what its client is slow to take
        again = (subject.talk.streamed(Request(name=name)).deltas for _ in range(_PIECE_TRIES))
        if stream.deltas <= 1 and max(again) <= 1:
            yield Finding(where=f"{name}, streamed", problem=f"came in {stream.deltas} piece, not bit by bit")

    return Check(name=f"{name}-stream", ask=ask)


def check_first_delta(name: str) -> Check:
    """Return the check that nothing of the very first token is lost; asked again, as a server may merge tokens."""

    def ask(subject: Subject) -> Iterator[Finding]:
        whole = subject.talk.whole(Request(name=name))
        yield from _differences(name, whole, subject.means[name])
        for _ in range(_REPEATS):
            stream = subject.talk.streamed(Request(name=name))
            if findings := list(_changes(f"{name}, streamed", stream, whole, than="not streamed")):
                yield from findings
                return

    return Check(name=name, ask=ask)


def check_tool_result(subject: Subject) -> Iterator[Finding]:
    answer = subject.talk.whole(Request(name="tool-call", after_result=True))
    yield from _differences("tool-call+1", answer, subject.means["tool-call+1"])


def check_greedy(subject: Subject) -> Iterator[Finding]:
    """The same tokens at any temperature, as many as the puppet has: the answers are the puppet's and decoded whole."""
    cold = subject.talk.whole(Request(name="chat"))
    hot = subject.talk.whole(Request(name="chat", temperature=1.0))
    if cold.content != hot.content:
        problem = f"temperature 0 gives {cold.content!r}, temperature 1 gives {hot.content!r}"
        yield Finding(where="chat", problem=problem, hint="the server does not decode the puppet's weights")
    said = len(subject.means["chat"].pieces)
    if cold.tokens not in {said, said + 1}:  # with or without the token that ends the answer
        yield Finding(where="chat", problem=f"usage counts {cold.tokens} completion tokens, the model said {said}")


def check_length(subject: Subject) -> Iterator[Finding]:
    """An answer that is cut off by max_tokens says so."""
    for ask in (subject.talk.whole, subject.talk.streamed):
        answer = ask(Request(name="chat", max_tokens=2))
        if answer.finish != "length":
            problem = f"finish_reason is {answer.finish!r} after max_tokens, not 'length'"
            yield Finding(where=f"chat, {ask.__name__}", problem=problem)


def check_wire(subject: Subject) -> Iterator[Finding]:
    """The stream itself is server-sent events that end with [DONE], which the official client does not insist on."""
    talk = subject.talk
    messages = [{"role": "user", "content": "script:chat"}]
    body = {"model": talk.model, "messages": messages, "stream": True, "max_tokens": 50}
    answer = talk.post("/v1/chat/completions", json.dumps(body).encode())
    kind = answer.headers.get("Content-Type", "")
    if not kind.startswith("text/event-stream"):
        yield Finding(where="chat, raw stream", problem=f"Content-Type is {kind!r}, not text/event-stream")
    events = [line for line in answer.text.splitlines() if line]
    if not events or events[-1] != "data: [DONE]":
        yield Finding(where="chat, raw stream", problem=f"ends with {events[-1:]}, not with [DONE]")


def check_bad_requests(subject: Subject) -> Iterator[Finding]:
    """What is wrong with a request is answered with 4xx, and the server still serves after that."""
    talk = subject.talk
    messages = [{"role": "user", "content": "script:chat"}]
    bad: dict[str, bytes] = {
        "a body that is not JSON": b'{"model": ',
        "an unknown model": json.dumps({"model": "no-such-model", "messages": messages}).encode(),
        "no messages": json.dumps({"model": talk.model}).encode(),
        "max_tokens of a wrong type": json.dumps(
            {"model": talk.model, "messages": messages, "max_tokens": "many"}
        ).encode(),
    }
    for what, body in bad.items():
        status = talk.post("/v1/chat/completions", body).status_code
        if not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            yield Finding(where=what, problem=f"answered {status}, not 4xx")
    yield from _still_serves(subject, "after bad requests")


def check_abort(subject: Subject) -> Iterator[Finding]:
    """A client that hangs up in mid-stream harms nobody else."""
    subject.talk.abandon(Request(name="tool-call"))
    yield from _still_serves(subject, "after a client hung up")


def check_concurrent(subject: Subject) -> Iterator[Finding]:
    """Requests at the same time get the answers that each gets alone."""
    requests_of = [Request(name=name) for name in ("chat", "reasoning", "tool-call", "two-calls", "unicode")]
    asks = [(ask, request) for ask in (subject.talk.whole, subject.talk.streamed) for request in requests_of]
    alone = [ask(request) for ask, request in asks]
    with ThreadPoolExecutor(_CALLERS) as pool:
        together = pool.map(lambda work: work[0](work[1]), asks * _REPEATS)
        for index, answer in enumerate(together):
            ask, request = asks[index % len(asks)]
            where = f"{request.name}, {ask.__name__}, {_CALLERS} at a time"
            yield from _changes(where, answer, alone[index % len(asks)], than="alone")


def check_finish(subject: Subject) -> Iterator[Finding]:
    """Every full answer heard so far ended for the right reason."""
    for heard in subject.talk.heard:
        if heard.request.max_tokens < MAX_TOKENS:
            continue
        right = "tool_calls" if heard.answer.calls else "stop"
        if heard.answer.finish != right:
            yield Finding(where=heard.where, problem=f"finish_reason is {heard.answer.finish!r}, not {right!r}")
    if not subject.talk.heard:
        yield Finding(where="finish_reason", problem="no answer was heard at all")


def check_leak(subject: Subject) -> Iterator[Finding]:
    """No answer heard so far shows a piece of a marker to the user."""
    for heard in subject.talk.heard:
        shown = {"content": heard.answer.content, "reasoning": heard.answer.reasoning}
        shown |= {f"arguments of {call.name}": call.arguments for call in heard.answer.calls}
        for field, text in shown.items():
            if leaked := [marker for marker in subject.markers if marker in text]:
                problem = f"{field} shows {leaked}: {text!r}"
                yield Finding(where=heard.where, problem=problem, hint=_SEE_PARSERS)
    if not subject.talk.heard:
        yield Finding(where="leak", problem="no answer was heard at all")


def _still_serves(subject: Subject, when: str) -> Iterator[Finding]:
    if not subject.talk.whole(Request(name="chat")).content:
        yield Finding(where=f"chat, {when}", problem="the answer is empty")


def _differences(where: str, answer: Answer, means: Transcript) -> Iterator[Finding]:
    """Yield where an answer is not what the model means."""
    for field, heard, meant in (
        ("reasoning", answer.reasoning, means.reasoning),
        ("content", answer.content, means.content),
    ):
        if heard != meant:
            yield Finding(where=where, problem=f"{field} is {heard!r}, meant is {meant!r}", hint=_SEE_PARSERS)
    names = [call.name for call in answer.calls]
    if names != [call.name for call in means.calls]:
        problem = f"calls are {names}, meant are {[call.name for call in means.calls]}"
        yield Finding(where=where, problem=problem, hint=_SEE_PARSERS)
        return
    for heard_call, meant_call in zip(answer.calls, means.calls, strict=True):
        if not same_json(heard_call.parsed(), meant_call.arguments):
            meant_text = json.dumps(meant_call.arguments, ensure_ascii=False)
            problem = f"arguments of {meant_call.name} are {heard_call.arguments}, meant are {meant_text}"
            yield Finding(where=where, problem=problem, hint=_SEE_PARSERS)


def _changes(where: str, one: Answer, other: Answer, *, than: str) -> Iterator[Finding]:
    """Yield where an answer is not the answer that was given another way."""
    for field, here, there in (
        ("reasoning", one.reasoning, other.reasoning),
        ("content", one.content, other.content),
        ("calls", [call.name for call in one.calls], [call.name for call in other.calls]),
    ):
        if here != there:
            yield Finding(where=where, problem=f"{field} is {here!r}, {than} it is {there!r}", hint=_SEE_PARSERS)
    for call, twin in zip(one.calls, other.calls, strict=False):
        if not same_json(call.parsed(), twin.parsed()):
            problem = f"arguments are {call.arguments}, {than} they are {twin.arguments}"
            yield Finding(where=where, problem=problem, hint=_SEE_PARSERS)


_TRANSCRIPTS = ("chat", "markup", "reasoning", "tool-call", "two-calls", "unicode")

# finish and leak come last: they judge every answer that the others heard
SERVE: tuple[Check, ...] = (
    Check(name="health", ask=check_health),
    Check(name="models", ask=check_models),
    *(check for name in _TRANSCRIPTS for check in (check_whole(name), check_streamed(name))),
    Check(name="tool-result", ask=check_tool_result),
    check_first_delta("first-delta"),
    check_first_delta("first-delta-call"),
    Check(name="greedy", ask=check_greedy),
    Check(name="length", ask=check_length),
    Check(name="wire", ask=check_wire),
    Check(name="bad-requests", ask=check_bad_requests),
    Check(name="abort", ask=check_abort),
    Check(name="concurrent", ask=check_concurrent),
    Check(name="finish", ask=check_finish),
    Check(name="leak", ask=check_leak),
)
