"""Stop signals are heard at once, whatever the main thread is in, by the innermost block alone, never by a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import prime_megatron
from prime_megatron.run.signals import STOP_SIGNALS, heard

ROOT = Path(prime_megatron.__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_blocks_nest_and_leave_no_trace() -> None:
    told: list[tuple[str, signal.Signals]] = []
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with heard(STOP_SIGNALS, lambda number: told.append(("outer", number))):
        os.kill(os.getpid(), signal.SIGUSR1)
        until(lambda: bool(told))
        with heard([signal.SIGUSR1], lambda number: told.append(("inner", number))):
            os.kill(os.getpid(), signal.SIGUSR1)
            until(lambda: ("inner", signal.SIGUSR1) in told)
        os.kill(os.getpid(), signal.SIGTERM)
        until(lambda: ("outer", signal.SIGTERM) in told)
    assert set(told) == {("outer", signal.SIGUSR1), ("inner", signal.SIGUSR1), ("outer", signal.SIGTERM)}
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_forked_child_is_deaf_and_lives_on() -> None:
    told: list[signal.Signals] = []
    with heard([signal.SIGTERM], told.append):
        child = os.fork()
        if child == 0:
            time.sleep(1.0)
            os._exit(7 if not told else 8)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7 and told == []


IN_C = """
import os, signal, sys
from prime_megatron.run.signals import heard
with heard([signal.SIGUSR1], lambda number: os._exit(85)):
    import torch.distributed as dist
    print("waiting", flush=True)
    dist.TCPStore("127.0.0.1", int(sys.argv[1]), is_master=False)  # nobody listens: minutes in C++
"""


def test_heard_while_the_main_thread_waits_outside_of_python() -> None:
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        port = str(silent.getsockname()[1])
        process = subprocess.Popen([sys.executable, "-c", IN_C, port], stdout=-1, text=True, env=ENVIRONMENT)
        try:
            assert process.stdout is not None and process.stdout.readline() == "waiting\n"
            time.sleep(1.0)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(timeout=20) == 85
        finally:
            process.kill()


@pytest.mark.parametrize("verb", ["train", "sft"])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_from_the_first_line_of_the_command(verb: str, number: signal.Signals, tmp_path: Path) -> None:
    """Held in its config, a pipe that nobody writes: it has read and written nothing."""
    pipe = tmp_path / "run.yaml"
    os.mkfifo(pipe)
    process = subprocess.Popen([sys.executable, "-m", "prime_megatron", verb, str(pipe)], env=ENVIRONMENT)
    try:
        status = Path(f"/proc/{process.pid}/status")
        bit = 1 << (number - 1)
        until(lambda: int(status.read_text().partition("SigCgt:")[2].split()[0], 16) & bit != 0)
        process.send_signal(number)
        assert process.wait(timeout=30) == 85
    finally:
        process.kill()
