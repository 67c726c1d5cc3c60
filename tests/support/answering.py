"""An OpenAI-compatible server on loopback whose answers a function gives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | tuple[int, str] | None
"""Text of an answer; status and body; None: nothing for a long time."""


@contextmanager
def answering(reply: Callable[[str, dict[str, Any]], Reply]) -> Iterator[str]:
    """The URL of a server; ``reply`` is given the last user message and the whole request."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said = reply(body["messages"][-1]["content"], body)
            if said is None:
                time.sleep(20)
                return
            status, text = said if isinstance(said, tuple) else (200, "")
            if isinstance(said, str):
                text = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]})
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
