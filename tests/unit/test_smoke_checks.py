"""Every check goes red on a lying server, and only the checks that the lie is about."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from kiln.smoke import checks, transcript
from kiln.smoke.talk import Talk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from kiln.smoke.records import CheckResult

FAMILY = transcript.load("minimax_m3")
MEANS = {said.name: said for said in FAMILY.cut()}
MODEL = "kiln-puppet"
BOTH = (False, True)


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What the server is about to answer to one chat request."""

    name: str
    stream: bool
    temperature: float
    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    finish: str
    tokens: int
    crowd: int
    piece: int = 5
    hangs: bool = False
    rambles: bool = False
    breaks: bool = False
    error: str = ""


def unchanged(reply: Reply) -> Reply:
    return reply


@dataclass(frozen=True, kw_only=True)
class Lie:
    """How a server departs from the truth; without a change it is honest."""

    reply: Callable[[Reply], Reply] = unchanged
    health: int = 200
    models: tuple[str, ...] = (MODEL,)
    bad_request: int = 400
    done: bytes = b"data: [DONE]\n\n"
    stream_type: str = "text/event-stream; charset=utf-8"
    field: str = "reasoning"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, lie: Lie) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lie = lie
        self.crowd = 0
        self.lock = threading.Lock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients hang up on purpose here."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.send(self.server.lie.health, {})
        else:
            models = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in self.server.lie.models]
            self.send(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            asked = json.loads(body)
            known = asked["model"] == MODEL and isinstance(asked.get("max_tokens", 1), int) and asked["messages"]
        except (ValueError, KeyError):
            known = False
        if not known:
            self.send(self.server.lie.bad_request, {"error": {"message": "bad"}})
            return
        with self.server.lock:
            self.server.crowd += 1
        try:
            time.sleep(0.002)
            reply = self.server.lie.reply(self.truth(asked))
        finally:
            with self.server.lock:  # before the answer: who has it may ask again at once, and is no crowd
                self.server.crowd -= 1
        self.answer(reply)

    def truth(self, asked: dict[str, Any]) -> Reply:
        user = [message for message in asked["messages"] if message["role"] == "user"][-1]
        name = user["content"].removeprefix("script:")
        name += "+1" * (asked["messages"][-1]["role"] == "tool")
        said = MEANS[name]
        calls = tuple((c.name, json.dumps(c.arguments, ensure_ascii=False)) for c in said.calls)
        short = asked.get("max_tokens", 1500) < len(said.pieces)
        return Reply(
            name=name,
            stream=asked.get("stream", False),
            temperature=asked.get("temperature", 1.0),
            content=said.content,
            reasoning=said.reasoning,
            calls=() if short else calls,
            finish="length" if short else "tool_calls" if calls else "stop",
            tokens=len(said.pieces) + 1,
            crowd=self.server.crowd,
        )

    def answer(self, reply: Reply) -> None:
        if reply.breaks:
            return
        if reply.error:
            self.send(500, {"error": {"message": reply.error}})
        elif reply.stream:
            self.stream(reply)
        else:
            self.send(200, self.whole(reply))

    def whole(self, reply: Reply) -> dict[str, Any]:
        calls = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": arguments}}
            for i, (name, arguments) in enumerate(reply.calls)
        ]
        message = {
            "role": "assistant",
            "content": reply.content or None,
            self.server.lie.field: reply.reasoning or None,
            "tool_calls": calls,
        }
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": MODEL,
            "choices": [{"index": 0, "message": message, "finish_reason": reply.finish}],
            "usage": {"prompt_tokens": 1, "completion_tokens": reply.tokens, "total_tokens": reply.tokens + 1},
        }

    def stream(self, reply: Reply) -> None:
        self.send_response(200)
        self.send_header("Content-Type", self.server.lie.stream_type)
        self.end_headers()
        for delta in self.deltas(reply):
            self.event([{"index": 0, "delta": delta, "finish_reason": None}])
        while reply.rambles:
            self.event([{"index": 0, "delta": {"content": ""}, "finish_reason": None}])
            time.sleep(0.02)
        if reply.hangs:
            time.sleep(2)
        self.event([{"index": 0, "delta": {}, "finish_reason": reply.finish}])
        self.event([], {"prompt_tokens": 1, "completion_tokens": reply.tokens, "total_tokens": reply.tokens + 1})
        self.wfile.write(self.server.lie.done)

    def deltas(self, reply: Reply) -> Iterator[dict[str, Any]]:
        for name, text in ((self.server.lie.field, reply.reasoning), ("content", reply.content)):
            for part in cut(text, reply):
                yield {name: part}
        for index, (name, arguments) in enumerate(reply.calls):
            yield {"tool_calls": [{"index": index, "id": "c", "type": "function", "function": {"name": name}}]}
            for part in cut(arguments, reply):
                yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}

    def event(self, choices: list[Any], usage: Any = None) -> None:
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": choices}
        self.wfile.write(b"data: " + json.dumps(chunk | ({"usage": usage} if usage else {})).encode() + b"\n\n")
        self.wfile.flush()


def cut(text: str, reply: Reply) -> list[str]:
    return [text[i : i + reply.piece] for i in range(0, len(text), reply.piece)]


@contextlib.contextmanager
def serving(lie: Lie) -> Iterator[str]:
    server = Server(lie)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def results(lie: Lie, *, timeout_s: float = 5, crowded: bool = True) -> dict[str, CheckResult]:
    with serving(lie) as url, Talk(url, MODEL, FAMILY.tools, timeout_s=timeout_s) as talk:
        subject = checks.Subject(talk=talk, means=MEANS, markers=FAMILY.markers)
        asked = [check for check in checks.SERVE if crowded or check.name != "concurrent"]
        return {check.name: checks.run(check, subject) for check in asked}


def about(*names: str, stream: tuple[bool, ...] = BOTH, **changes: Any) -> Lie:
    """Return the lie that changes the replies to these transcripts; a callable change gets the reply."""

    def reply(true: Reply) -> Reply:
        if true.name not in names or true.stream not in stream:
            return true
        return replace(true, **{k: v(true) if callable(v) else v for k, v in changes.items()})

    return Lie(reply=reply)


@dataclass(frozen=True, kw_only=True)
class Case:
    lie: Lie
    red: set[str]
    says: str = ""
    timeout_s: float = 5


STREAM = (True,)
WHOLE = (False,)


def without_last(reply: Reply) -> str:
    return reply.content[:-1]


def days_as_text(reply: Reply) -> tuple[tuple[str, str], ...]:
    return tuple((name, text.replace('"parcels": 3', '"parcels": "3"')) for name, text in reply.calls)


def call_as_content(reply: Reply) -> str:
    return b"".join(piece.data for piece in MEANS[reply.name].pieces).decode()


CASES = {
    "a streamed character is dropped": Case(
        lie=about("markup", stream=STREAM, content=without_last), red={"markup-stream"}, says="not streamed it is"
    ),
    "a character is dropped, not streamed": Case(
        lie=about("markup", stream=WHOLE, content=without_last), red={"markup", "markup-stream"}
    ),
    "a stream comes in one piece": Case(
        lie=about("markup", stream=STREAM, piece=10_000), red={"markup-stream"}, says="came in 1 piece"
    ),
    "a marker leaks": Case(
        lie=about("markup", content=lambda r: r.content + "</mm:think>"),
        red={"markup", "markup-stream", "leak"},
        says="mm:think",
    ),
    "an integer is sent as text": Case(
        lie=about("tool-call", calls=days_as_text), red={"tool-call", "tool-call-stream"}, says='"3"'
    ),
    "an integer is streamed as text": Case(
        lie=about("tool-call", stream=STREAM, calls=days_as_text), red={"tool-call-stream"}
    ),
    "true is sent as 1": Case(
        lie=about("tool-call", calls=lambda r: tuple((n, t.replace("true", "1")) for n, t in r.calls)),
        red={"tool-call", "tool-call-stream"},
    ),
    "arguments are not JSON": Case(
        lie=about("tool-call", stream=STREAM, calls=lambda r: tuple((n, t[:-1]) for n, t in r.calls)),
        red={"tool-call-stream", "concurrent"},
        says="not JSON",
    ),
    "the second call is missing": Case(
        lie=about("two-calls", calls=lambda r: r.calls[:1]), red={"two-calls", "two-calls-stream"}
    ),
    "the second call is missing in the stream": Case(
        lie=about("two-calls", stream=STREAM, calls=lambda r: r.calls[:1]), red={"two-calls-stream"}
    ),
    "a character is broken": Case(
        lie=about("unicode", reasoning=lambda r: r.reasoning.replace("Ü", "\ufffd")), red={"unicode", "unicode-stream"}
    ),
    "the reasoning is in the content": Case(
        lie=about("reasoning", content=lambda r: r.reasoning + r.content, reasoning=""),
        red={"reasoning", "reasoning-stream"},
    ),
    "the reasoning is in the content of the stream": Case(
        lie=about("reasoning", stream=STREAM, content=lambda r: r.reasoning + r.content, reasoning=""),
        red={"reasoning-stream"},
    ),
    "the first delta's tail is lost": Case(
        lie=about("first-delta", stream=STREAM, content="Compare a  b and c."), red={"first-delta"}
    ),
    "the first delta's tail is lost, and the call with it": Case(
        lie=about("first-delta-call", stream=STREAM, content=call_as_content, calls=(), finish="stop"),
        red={"first-delta-call", "leak"},
    ),
    "the answer to a result is the call again": Case(
        lie=about("tool-call+1", content="", calls=(("create_order", "{}"),), finish="tool_calls"), red={"tool-result"}
    ),
    "a call ends with stop": Case(lie=about("two-calls", finish="stop"), red={"finish"}, says="not 'tool_calls'"),
    "content ends with length": Case(lie=about("markup", stream=STREAM, finish="length"), red={"finish"}),
    "a cut answer ends with stop": Case(
        lie=Lie(reply=lambda r: replace(r, finish="stop") if r.finish == "length" else r), red={"length"}
    ),
    "a stream rambles on": Case(
        lie=about("markup", stream=STREAM, rambles=True), red={"markup-stream"}, says="not ended", timeout_s=0.5
    ),
    "a stream falls silent": Case(
        lie=about("markup", stream=STREAM, hangs=True), red={"markup-stream"}, says="timed out", timeout_s=0.5
    ),
    "a stream has no end mark": Case(lie=Lie(done=b""), red={"wire"}, says="DONE"),
    "a stream is not called one": Case(lie=Lie(stream_type="text/plain"), red={"wire"}),
    "the connection breaks": Case(
        lie=about("markup", breaks=True), red={"markup", "markup-stream"}, says="APIConnectionError"
    ),
    "the server fails": Case(
        lie=about("markup", stream=WHOLE, error="boom"), red={"markup", "markup-stream"}, says="boom"
    ),
    "the model is missing": Case(lie=Lie(models=("other",)), red={"models"}, says="not among"),
    "health is bad": Case(lie=Lie(health=503), red={"health"}, says="503"),
    "a bad request fails the server": Case(lie=Lie(bad_request=500), red={"bad-requests"}, says="answered 500"),
    "a bad request is welcome": Case(lie=Lie(bad_request=200), red={"bad-requests"}, says="answered 200"),
    "heat changes the answer": Case(
        lie=Lie(reply=lambda r: replace(r, content="hot") if r.temperature else r), red={"greedy"}
    ),
    "tokens are not counted": Case(lie=about("chat", tokens=3), red={"greedy"}, says="counts 3"),
    "answers are mixed up in a crowd": Case(
        lie=Lie(reply=lambda r: replace(r, content="yours") if r.crowd > 1 else r), red={"concurrent"}
    ),
}


def red(found: dict[str, CheckResult]) -> set[str]:
    return {name for name, result in found.items() if result.status != "passed"}


@pytest.mark.parametrize("lie", [Lie(), Lie(field="reasoning_content")], ids=["reasoning", "reasoning_content"])
def test_an_honest_server_passes_every_check(lie: Lie) -> None:
    found = results(lie)
    assert {name: result.findings for name, result in found.items() if result.findings} == {}
    assert len(found) == len(checks.SERVE)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_lie_is_found_by_its_check(case: Case) -> None:
    # 40 requests that only matter where the lie is about them
    crowded = "concurrent" in case.red
    found = results(case.lie, timeout_s=case.timeout_s, crowded=crowded)
    assert red(found) == case.red
    problems = "\n".join(f.problem for result in found.values() for f in result.findings)
    assert case.says in problems


def test_a_dead_server_fails_every_check() -> None:
    with serving(Lie()) as url:
        pass
    with Talk(url, MODEL, FAMILY.tools, timeout_s=1) as talk:
        subject = checks.Subject(talk=talk, means=MEANS, markers=FAMILY.markers)
        found = {check.name: checks.run(check, subject) for check in checks.SERVE}
    assert red(found) == set(found)


def test_a_proxy_does_not_see_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert red(results(Lie())) == set()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (3, 3, True),
        (3, 3.0, False),
        (3, "3", False),
        (1, True, False),
        (None, "null", False),
        ({"a": [1, {"b": 2.5}], "c": None}, {"c": None, "a": [1, {"b": 2.5}]}, True),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2.0}]}, False),
        ([1, 2], [2, 1], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"a": 1, "b": 2}, False),
    ],
)
def test_json_equality_knows_types(*, one: Any, other: Any, same: bool) -> None:
    assert checks.same_json(one, other) is same
