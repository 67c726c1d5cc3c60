#!/usr/bin/env python3
"""An OpenAI-compatible endpoint on this machine that answers by rule. It is no model.

    python examples/eurus2_cpu/answerer.py --port 18377

It stands where a run on GPUs serves a large model: it knows the made problems alone (shelf.py), and answers what the
stages `choices` and `sft` ask about them; anything else is refused with status 400. The same request gives the same
answer. One of eight first replies about choices cannot be read, and one of 25 answers breaks the form of actions, so
that asking again and rejecting have something to do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.eurus2_cpu.shelf import Shelf, read_shelf, without_choices

UNREADABLE, FORMLESS = 1 / 8, 1 / 25


def reply(text: str, seed: int, first: bool) -> str | None:
    """What it says to a user message; None: it does not know the problem. ``first``: this was not asked before."""
    rng = random.Random(hashlib.sha256(f"{seed} {first} {text}".encode()).digest())
    shelf = read_shelf(text)
    if shelf is None:
        return None
    if "<question>" in text or "<solution>" in text or "Decision:" in text:
        if first and rng.random() < UNREADABLE:
            return "Let me think about it."
        return about_choices(text, shelf)
    answer = shelf.in_actions(rng)
    return answer.replace("Next action: ", "Then ", 1) if rng.random() < FORMLESS else answer


def about_choices(text: str, shelf: Shelf) -> str:
    """The three passes: are the choices needed, the question without them, the solution without them."""
    problem = text.rpartition("Problem:\n")[2].partition("\n\nSolution:")[0]
    if "Decision:" in text:
        if "(A) odd" in problem:
            return "Decision: no\nReason: the choices are the answer"
        return "Decision: yes\nReason: the choices are numbers"
    if "<question>" in text:
        return f"<question>{without_choices(problem)}</question>"
    return f"<solution>{shelf.solution()}</solution>"


class Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Whether it is there."""
        self._send(200, {"ready": True})

    def do_POST(self) -> None:
        """Answer a chat."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = reply(body["messages"][-1]["content"], body.get("seed", 0), body.get("temperature", 0) == 0)
        if said is None:
            self._send(400, {"error": "not one of the made problems"})
        else:
            self._send(200, {"choices": [{"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]})

    def _send(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """On loopback."""

    request_queue_size = 64
    daemon_threads = True


def main() -> None:
    parser = argparse.ArgumentParser(description="Answer by rule on an OpenAI-compatible endpoint on 127.0.0.1.")
    parser.add_argument("--port", type=int, default=18377)
    options = parser.parse_args()
    with Server(("127.0.0.1", options.port), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
