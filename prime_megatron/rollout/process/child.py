"""The engine process: `python -m prime_megatron.rollout.process.child FD`, started by `rollout.process`.

It reads calls from the socket FD, one JSON object each (``call``: number, ``op``: what, and its arguments), and
answers with ``ok`` or ``error``; a generation also tells every finished response and that it is alive. It ends itself
and all of its engine's processes when the trainer is gone or when one of them is.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.rollout.process.channel import Channel
from prime_megatron.rollout.process.driver import (
    INSTALL,
    BroadcastGroup,
    Driver,
    DriverSettings,
    FinishedResponse,
    UpdateRefused,
    request_from_json,
)
from prime_megatron.rollout.process.leftovers import kill_group, unlink_shared_memory
from prime_megatron.rollout.process.watch import Watch

DRIVERS = {
    "sglang": "prime_megatron.rollout.sglang.driver.SglangDriver",
    "vllm": "prime_megatron.rollout.vllm.driver.VllmDriver",
}
"""Engine -> its driver."""
LAST_WORD_S = 1.0
"""For telling the trainer why the engine ends, where it reads."""
ALIVE_EVERY_S = 1.0
"""Shortest time between two signs of life."""


class EngineChild:
    """Serves one engine over a channel."""

    def __init__(self, channel: Channel, driver: Driver) -> None:
        self._channel = channel
        self._driver = driver
        self._version = -1
        self._call = 0
        self._told = 0.0

    def serve(self) -> None:
        """Serve calls until the channel closes or an operation fails (the trainer then starts another process)."""
        operations: dict[str, Callable[..., Any]] = {
            "generate": self._generate,
            "attach": self._driver.attach,
            "load_bucket": self._driver.load_bucket,
            "load_folder": self._driver.load_folder,
            "join": lambda group: self._driver.join(BroadcastGroup(**group)),
            "receive": self._driver.receive,
            "commit": self._commit,
            "bit_sums": self._driver.bit_sums,
            "sleep": self._driver.sleep,
            "wake": self._driver.wake,
            "close": self._close,
        }
        while True:
            message = self._channel.receive()
            assert message is not None
            self._call = message.pop("call")
            operation = message.pop("op")
            try:
                self._tell(ok=operations[operation](**message))
            except UpdateRefused as error:
                self._tell(error=str(error), kind="refused")
            if operation == "close":
                return

    def _generate(self, requests: list[Any]) -> None:
        self._driver.generate([request_from_json(row) for row in requests], self._finished, self._alive)

    def _commit(self, version: int) -> None:
        self._driver.commit(version)
        self._version = version

    def _close(self) -> None:
        unlink_shared_memory(os.getpgrp())  # some of an engine's processes end without doing it themselves
        self._driver.close()

    def _finished(self, answer: FinishedResponse) -> None:
        version = self._version if answer.version is None else answer.version
        done = [answer.index, list(answer.token_ids), list(answer.logprobs), answer.finish, version]
        self._tell(done=done)

    def _alive(self) -> None:
        if time.monotonic() - self._told > ALIVE_EVERY_S:
            self._tell(alive=True)

    def _tell(self, **what: Any) -> None:
        self._told = time.monotonic()
        self._channel.send({"call": self._call, **what})


def main(arguments: list[str]) -> int:
    """Serve the engine that the first message names."""
    sock = socket.socket(fileno=int(arguments[0]))
    sock.set_inheritable(False)  # or the engine's processes would hold the line open after our death
    channel = Channel(sock)
    watch = Watch(os.getppid(), lambda why: _report(channel, why, kind="failed"))
    start = channel.receive()
    assert start is not None
    try:
        driver = _make_driver(start["engine"], DriverSettings.from_json(start["settings"]))
        watch.stands()
        channel.send({"call": start["call"], "ok": None})
        EngineChild(channel, driver).serve()
    except EOFError:
        pass  # the trainer is gone, or has had enough of us
    except ModuleNotFoundError as error:
        missing = str(error.name).split(".")[0]
        remedy = f"; {INSTALL[missing]}" if missing in INSTALL else ""
        _report(channel, f"rollout.engine: {start['engine']} cannot start: {error}{remedy}", kind="input")
    except InputError as error:
        _report(channel, str(error), kind="input")
    except Exception as error:
        traceback.print_exc()
        _report(channel, f"{type(error).__name__}: {str(error).strip()[:500]}", kind="failed")
    sys.stdout.flush()
    sys.stderr.flush()
    kill_group(os.getpgrp())  # engines leave processes and exit handlers behind that may block for ever
    return 1


def _make_driver(engine: str, settings: DriverSettings) -> Driver:
    """The driver of an engine, or of a dotted class of one's own."""
    module, _, name = DRIVERS.get(engine, engine).rpartition(".")
    driver: Driver = getattr(import_module(module), name)(settings)
    return driver


def _report(channel: Channel, text: str, kind: str) -> None:
    with suppress(EOFError, TimeoutError):
        channel.send({"error": " ".join(text.split()), "kind": kind}, LAST_WORD_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
