"""An OpenAI-compatible endpoint that misbehaves in every way: a real HTTP server on loopback."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from prime_megatron.data.messages import Message
from prime_megatron.errors import InputError, RunError
from prime_megatron.generate.endpoint import Asking, Endpoint, EndpointAnswerer
from prime_megatron.generate.questions import Question
from prime_megatron.verify import Answer, build_verifiers

ASKING = Asking(2, 0.7, 0.9, 16, ("STOP",), False, 0)
CHAT = Question("a", (Message("user", "1+1?"),), "f, row 1", "math", "2")
TEXT = Question("b", "1+1=", "f, row 2", "math", "2")


class Server:
    """Plays a script of replies, then says "4" for good."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.bodies.append(body | {"path": self.path})
                state.headers.append(dict(self.headers))
                reply = state.script.pop(0) if state.script else "4"
            if reply == "hang up":
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            if reply == "slow":
                time.sleep(1.0)
                reply = "4"
            status, text, more = 200, "", {}
            if isinstance(reply, tuple):
                status, text, more = reply
            elif isinstance(reply, dict):
                text = json.dumps(reply)
            else:
                text = json.dumps(completion(reply, self.path))
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text) + (50 if more.get("X-Cut") else 0)))
            self.end_headers()
            self.wfile.write(text.encode())

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def completion(text: str, path: str, finish: str = "stop") -> dict[str, Any]:
    said = {"message": {"content": text}} if "chat" in path else {"text": text}
    return {"choices": [{**said, "finish_reason": finish}]}


def answerer(url: str, asking: Asking = ASKING, **changes: Any) -> EndpointAnswerer:
    settings: dict[str, Any] = {"concurrency": 1, "retries": 3, "timeout_s": 5.0, "first_wait_s": 0.01}
    endpoint = Endpoint(url=url, model="m", key="secret", **(settings | changes))
    return EndpointAnswerer(endpoint, asking, None, lambda question, text: Answer("math", text, question.ground_truth))


def test_what_is_asked_and_what_comes_back(server: tuple[Server, str]) -> None:
    state, url = server
    state.script = [completion("one", "chat"), completion("two STOP three", "chat", "length"), "x", "y"]
    samples = answerer(url).answer([CHAT, TEXT])
    assert [(s.id, s.sample, s.response, s.truncated) for s in samples] == [
        ("a", 0, "one", False), ("a", 1, "two ", False), ("b", 0, "x", False), ("b", 1, "y", False),
    ]  # fmt: skip
    assert all(s.response_ids is None and s.outcome is None and s.logprobs is None for s in samples)
    chat, text = state.bodies[0], state.bodies[2]
    assert chat["path"] == "/v1/chat/completions"
    assert chat["messages"] == [{"role": "user", "content": "1+1?"}]
    assert text["path"] == "/v1/completions"
    assert text["prompt"] == "1+1="
    for body in state.bodies:
        assert (body["model"], body["n"], body["temperature"], body["top_p"]) == ("m", 1, 0.7, 0.9)
        assert (body["max_tokens"], body["stop"]) == (16, ["STOP"])
    assert len({body["seed"] for body in state.bodies}) == 4
    assert all(headers["Authorization"] == "Bearer secret" for headers in state.headers)


@pytest.mark.parametrize(
    "trouble",
    [
        (500, "boom", {}),
        (429, "slow down", {"Retry-After": "0"}),
        (503, "", {}),
        (200, "<html>", {}),
        (200, '{"choices": []}', {}),
        (200, '{"choices": [{"message": {"content": 3}, "finish_reason": "stop"}]}', {}),
        (200, '{"choices": [{"message"', {"X-Cut": "1"}),
        "hang up",
    ],
    ids=str,
)
def test_trouble_that_passes_is_asked_again(server: tuple[Server, str], trouble: Any) -> None:
    state, url = server
    state.script = [trouble, trouble]
    samples = answerer(url).answer([CHAT])
    assert [sample.response for sample in samples] == ["4", "4"]
    assert len(state.bodies) == 4


def test_a_silent_server_is_not_waited_for(server: tuple[Server, str]) -> None:
    state, url = server
    state.script = ["slow"]
    samples = answerer(url, timeout_s=0.3).answer([CHAT])
    assert [sample.response for sample in samples] == ["4", "4"]


def test_retries_end(server: tuple[Server, str]) -> None:
    state, url = server
    state.script = [(500, "boom", {})] * 9
    with pytest.raises(RunError, match="failed 4 times, the last time with status 500: boom"):
        answerer(url).answer([CHAT])
    assert len(state.bodies) <= 8


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_ends_at_once(server: tuple[Server, str], status: int) -> None:
    state, url = server
    state.script = [(status, "no\nsuch model", {})]
    with pytest.raises(InputError, match=f"refuses the request, status {status}: no such model") as refused:
        answerer(url).answer([CHAT])
    assert "\n" not in str(refused.value)


def test_a_redirect_does_not_carry_the_key_away(server: tuple[Server, str]) -> None:
    state, url = server
    state.script = [(302, "", {"Location": url})]
    with pytest.raises(InputError, match="status 302"):
        answerer(url).answer([CHAT])


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(RunError, match=r"failed 2 times"):
        answerer(f"http://127.0.0.1:{port}/v1", retries=1).answer([CHAT])


def test_logprobs_that_were_asked_for(server: tuple[Server, str]) -> None:
    state, url = server
    asking = Asking(1, 1.0, 1.0, 16, (), True, 0)
    chat = completion("x", "chat")
    chat["choices"][0]["logprobs"] = {"content": [{"logprob": -0.5}, {"logprob": -1}]}
    text = completion("x", "")
    text["choices"][0]["logprobs"] = {"token_logprobs": [-0.25]}
    state.script = [completion("x", "chat"), chat, text]  # the first has none, and is asked again
    samples = answerer(url, asking).answer([CHAT, TEXT])
    assert [sample.logprobs for sample in samples] == [(-0.5, -1.0), (-0.25,)]
    assert [body["logprobs"] for body in state.bodies] == [True, True, 0]


def test_answers_are_graded(server: tuple[Server, str]) -> None:
    state, url = server
    state.script = ["so \\boxed{2}", "so \\boxed{3}"]
    with build_verifiers() as verifiers:
        graded = EndpointAnswerer(
            Endpoint(url, "m", "", 1, 0, 5.0), ASKING, verifiers, lambda q, text: Answer("math", text, q.ground_truth)
        )
        samples = graded.answer([CHAT])
    assert [(sample.outcome, sample.verdict) for sample in samples] == [(1.0, "correct"), (0.0, "wrong")]
