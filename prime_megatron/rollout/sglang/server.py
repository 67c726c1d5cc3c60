"""SGLang's HTTP server as a process below the engine process, on loopback, with a key made for this run.

`python -m prime_megatron.rollout.sglang.server` is that server: it reads its arguments from standard input, so that
the key stands in no process list and in no file.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import aiohttp

ADDRESS = "127.0.0.1"
POLL_S = 0.5
REFUSED = 400
"""Status of an update that was not taken."""


class ServerBackend:
    """See `sglang.SglangBackend`; every call is a POST.

    Raises:
        RuntimeError: the server does not come up in time.
    """

    def __init__(self, arguments: Mapping[str, Any], start_timeout_s: float) -> None:
        self._key = secrets.token_urlsafe(32)
        self._tensor = int(arguments["tp_size"])
        self._port = _free_port()
        self._timeout_s = start_timeout_s
        command = [sys.executable, "-m", "prime_megatron.rollout.sglang.server"]
        # In the process group of the engine process, which ends when the server does.
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE)
        own = {"host": ADDRESS, "port": self._port, "api_key": self._key, "skip_server_warmup": True}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({**arguments, **own}).encode())
        self._server.stdin.close()
        self._loop = asyncio.new_event_loop()
        self._wait(start_timeout_s)
        self._session = self._loop.run_until_complete(self._open())

    def run(self, task: Awaitable[None]) -> None:
        """See `SglangBackend.run`."""
        self._loop.run_until_complete(task)

    async def generate(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """See `SglangBackend.generate`."""
        answer: dict[str, Any] = await self._post("generate", body)
        return answer

    async def ping(self) -> None:
        """See `SglangBackend.ping`."""
        async with self._session.get("/server_info") as response:
            await self._read(response)

    def update(self, operation: str, **arguments: Any) -> tuple[bool, str]:
        """See `SglangBackend.update`."""
        if "payloads" in arguments:
            payloads = [base64.b64encode(payload).decode() for payload in arguments.pop("payloads")]
            arguments = {"flush_cache": False, "serialized_named_tensors": payloads} | arguments
        if operation == "update_weights_from_disk":
            arguments["load_format"] = "auto"
        answer = self._loop.run_until_complete(self._post(operation, arguments, accept=(200, REFUSED)))
        return bool(answer["success"]), str(answer["message"])

    def settle(self, timeout_s: float) -> None:
        """See `SglangBackend.settle`."""
        self._loop.run_until_complete(self._post(f"flush_cache?timeout={timeout_s:g}", {}))

    def occupy(self, operation: str, tags: Sequence[str]) -> None:
        """See `SglangBackend.occupy`."""
        self._loop.run_until_complete(self._post(operation, {"tags": list(tags)}))

    def close(self) -> None:
        """See `SglangBackend.close`."""
        self._loop.run_until_complete(self._session.close())
        self._server.terminate()

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            f"http://{ADDRESS}:{self._port}",
            headers={"Authorization": f"Bearer {self._key}"},
            timeout=aiohttp.ClientTimeout(total=None),  # the trainer watches over the engine process
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def _post(self, route: str, body: Mapping[str, Any], accept: Sequence[int] = (200,)) -> Any:
        async with self._session.post(f"/{route}", json=dict(body)) as response:
            return await self._read(response, accept)

    async def _read(self, response: aiohttp.ClientResponse, accept: Sequence[int] = (200,)) -> Any:
        text = await response.text()
        if response.status not in accept:
            raise RuntimeError(f"SGLang's server answered {response.status}: {text[:300]}")
        return json.loads(text) if text[:1] in ("{", "[") else text

    def _wait(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                raise RuntimeError(f"SGLang's server ended with code {self._server.returncode}")
            try:
                with urlopen(f"http://{ADDRESS}:{self._port}/ready", timeout=5.0) as response:
                    if response.status == 200:
                        return
            except (URLError, OSError):
                pass
            time.sleep(POLL_S)
        raise RuntimeError(f"SGLang's server is not ready after {timeout_s:g} s")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind((ADDRESS, 0))
        port: int = sock.getsockname()[1]
        return port


def main() -> None:
    """Serve until terminated."""
    from sglang.srt.entrypoints.http_server import launch_server
    from sglang.srt.server_args import ServerArgs

    arguments = ServerArgs(**json.load(sys.stdin))
    arguments.resolve_once()
    launch_server(arguments)


if __name__ == "__main__":
    main()
