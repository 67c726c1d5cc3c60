"""The trainer's handle on an engine process: it may die or hang, and the trainer goes on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prime_megatron.errors import EngineDied, InputError, RunError
from prime_megatron.rollout.process.channel import Channel
from prime_megatron.rollout.process.driver import DriverSettings
from prime_megatron.rollout.process.leftovers import kill_group, wait_for_end

LAUNCHER_PREFIXES = ("TORCHELASTIC", "MASTER_", "LOCAL_", "GROUP_", "ROLE_")
LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "PYTHONDONTWRITEBYTECODE", "LD_PRELOAD", "CUDA_DEVICE_MAX_CONNECTIONS")
"""The last is Megatron's: it keeps the order of a trainer's kernels, and an engine's need not wait for each other."""
ALLOCATOR_NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
CLOSE_TIMEOUT_S = 10.0
KILL_TIMEOUT_S = 30.0
"""Of killed processes to end; one that a device driver holds does not."""
SEND_TIMEOUT_S = 60.0
"""Of a child that waits for a call; one that has stopped reads nothing."""


class EngineProcess:
    """A running engine in a process group and session of its own.

    Args:
        engine: "sglang", "vllm", or the dotted class of another driver.
        settings: how to start it.
        env: variables of the child on top of this process's own (torchrun's are hidden from it).
        log_path: takes the engine's output.
    Raises:
        InputError: the engine is not installed.
        EngineDied: it did not come up.
    """

    def __init__(self, engine: str, settings: DriverSettings, env: Mapping[str, str], log_path: Path) -> None:
        self._log_path = log_path
        self._calls = 0
        self._operation = "start"
        """What is waited for."""
        ours, theirs = socket.socketpair()
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log, theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "prime_megatron.rollout.process.child", str(theirs.fileno())],
                env=child_environment(env),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._channel = Channel(ours)
        try:
            self._calls += 1
            self._send({"call": self._calls, "engine": engine, "settings": settings.as_json()})
            self._answer(settings.start_timeout_s, settings.start_timeout_s, lambda done: None)
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        """Process id; also that of its process group."""
        return self._popen.pid

    def post(self, operation: str, **arguments: Any) -> None:
        """Have the child do something, without waiting for its answer: one at a time. Raises EngineDied."""
        self._calls += 1
        self._operation = operation
        self._send({"call": self._calls, "op": operation, **arguments})

    def wait(self, timeout_s: float) -> Any:
        """The answer to what was posted. Raises as ``call``."""
        return self._answer(timeout_s, timeout_s, lambda done: None)

    def check_alive(self) -> None:
        """Raise EngineDied, as ``wait`` does, where the process has ended."""
        if self._popen.poll() is not None:
            self.wait(CLOSE_TIMEOUT_S)
            raise EngineDied(self._how_it_ended())

    def call(
        self,
        operation: str,
        *,
        timeout_s: float,
        alive_timeout_s: float | None = None,
        on_done: Callable[[list[Any]], None] = lambda done: None,
        **arguments: Any,
    ) -> Any:
        """Have the child do something and return its answer.

        Args:
            timeout_s: for the whole of it.
            alive_timeout_s: longest silence on the way; None: as the whole.
            on_done: hears of every finished response of a generation.
        Raises:
            EngineDied: it is gone, silent for too long, or failed.
            RunError: the engine lives and refused a weight update.
        """
        self.post(operation, **arguments)
        return self._answer(timeout_s, timeout_s if alive_timeout_s is None else alive_timeout_s, on_done)

    def close(self) -> None:
        """Let the engine end in order, then make sure of it."""
        with suppress(EngineDied):
            self.call("close", timeout_s=CLOSE_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the engine's processes at once; returns when their memory is free, or says whose is not."""
        with suppress(ProcessLookupError):
            kill_group(self._popen.pid)
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(KILL_TIMEOUT_S)
        living = wait_for_end(self._popen.pid, KILL_TIMEOUT_S)
        if living:
            print(
                f"warning: processes {living} of a rollout engine were killed {KILL_TIMEOUT_S:g} s ago and have not "
                "ended; they keep what memory they have",
                file=sys.stderr,
                flush=True,
            )
        self._channel.close()

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send(message, SEND_TIMEOUT_S)
        except TimeoutError:
            raise EngineDied(f"it has read nothing for {SEND_TIMEOUT_S:g} s ({self._operation})") from None
        except EOFError:
            raise EngineDied(self._last_word()) from None

    def _answer(self, timeout_s: float, alive_timeout_s: float, on_done: Callable[[list[Any]], None]) -> Any:
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            try:
                message = self._channel.receive(max(0.0, min(left, alive_timeout_s)))
            except EOFError:
                raise EngineDied(self._how_it_ended()) from None
            if message is None:
                raise EngineDied(f"no sign of life for {min(timeout_s, alive_timeout_s):g} s ({self._operation})")
            if message.get("call", self._calls) != self._calls:
                continue  # of a call that this side left by an exception
            if "error" in message:
                if message["kind"] == "input":
                    raise InputError(message["error"])
                if message["kind"] == "refused":
                    raise RunError(f"weight sync: {message['error']}")
                raise EngineDied(message["error"])
            if "ok" in message:
                return message["ok"]
            if "done" in message:
                on_done(message["done"])

    def _last_word(self) -> str:
        """The error that the child told before it ended, if it did."""
        with suppress(EOFError):
            while (message := self._channel.receive(0.0)) is not None:
                if "error" in message:
                    return str(message["error"])
        return self._how_it_ended()

    def _how_it_ended(self) -> str:
        try:
            code = self._popen.wait(timeout=CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "it closed the line"
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"the process ended ({how}; {self._log_path} has its output)"


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """This process's variables without the launcher's, which would make an engine join the trainer's world, and without
    expandable segments, which engines that sleep refuse (torch_memory_saver, vLLM's memory pool)."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHER_NAMES and not name.startswith(LAUNCHER_PREFIXES)
    }
    for name in ALLOCATOR_NAMES:
        if name in env:
            options = [option for option in env[name].split(",") if "expandable_segments" not in option]
            env[name] = ",".join(options)
    root = str(Path(__file__).resolve().parents[3])
    paths = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    env["PYTHONPATH"] = os.pathsep.join([root, *paths])
    env.setdefault("PYTHONWARNINGS", "ignore")  # the engines' own deprecations drown their errors
    return env | dict(extra)
