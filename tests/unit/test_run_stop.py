"""The stop flag and the watchdog, without a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prime_megatron.config import CheckpointConfig
from prime_megatron.errors import ExitCode
from prime_megatron.run.stop import Stop
from prime_megatron.run.watchdog import Watchdog


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_signals_only_set_a_flag() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR2):
        now = Hand()
        stop = Stop(CheckpointConfig(signal="USR2"), now)
        before = signal.getsignal(number)
        with stop.installed():
            assert not stop.requested() and stop.waiting_s() == 0.0
            os.kill(os.getpid(), number)
            now.time += 5.0
            os.kill(os.getpid(), number)  # a second one does not restart the grace time
            now.time += 2.0
            assert stop.requested() and stop.waiting_s() == 7.0
            assert number.name in stop.reason
        assert signal.getsignal(number) is before


def test_wall_limit() -> None:
    now = Hand()
    stop = Stop(CheckpointConfig(wall_limit_s=60.0), now)
    now.time += 59.9
    assert not stop.requested()
    now.time += 0.1
    assert stop.requested() and "60 s" in stop.reason
    assert stop.waiting_s() == 0.0, "the grace time belongs to signals"


def watch(folder: Path, stop: Stop, *, stall_timeout_s: float, grace_s: float, ended: list[int]) -> Watchdog:
    return Watchdog(folder, 0, 1, stall_timeout_s=stall_timeout_s, grace_s=grace_s, stop=stop, end=ended.append)


def wait_for(ended: list[int]) -> None:
    deadline = time.monotonic() + 60.0
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_stall_is_written_down(tmp_path: Path) -> None:
    ended: list[int] = []
    watchdog = watch(tmp_path / "stalls", Stop(CheckpointConfig()), stall_timeout_s=0.2, grace_s=100.0, ended=ended)
    with watchdog.watching():
        watchdog.beat("policy")
        wait_for(ended)
    assert ended == [ExitCode.FAILED]
    text = (tmp_path / "stalls" / "rank-00000.txt").read_text()
    assert "stage policy" in text and "in wait_for" in text


def test_beats_keep_it_quiet(tmp_path: Path) -> None:
    ended: list[int] = []
    watchdog = watch(tmp_path, Stop(CheckpointConfig()), stall_timeout_s=30.0, grace_s=100.0, ended=ended)
    with watchdog.watching():
        for _ in range(5):
            watchdog.beat("policy")
            time.sleep(0.02)
    assert ended == []


def test_grace_time_runs_out_unless_the_save_began(tmp_path: Path) -> None:
    for saving, expected in ((False, [ExitCode.REQUEUE]), (True, [])):
        now, ended = Hand(), []
        stop = Stop(CheckpointConfig(), now)
        watchdog = watch(tmp_path, stop, stall_timeout_s=1000.0, grace_s=0.4, ended=ended)
        with stop.installed():
            os.kill(os.getpid(), signal.SIGTERM)
            if saving:
                watchdog.saving()
            now.time += 1.0
            with watchdog.watching():
                if not saving:
                    wait_for(ended)
                else:
                    time.sleep(0.5)
        assert ended == expected


SUSPENDED = """
import signal, sys, time
from pathlib import Path
from prime_megatron.config import CheckpointConfig
from prime_megatron.run.stop import Stop
from prime_megatron.run.watchdog import Watchdog

stop = Stop(CheckpointConfig())
watchdog = Watchdog(Path(sys.argv[1]), 0, 1, stall_timeout_s=6.0, grace_s=6.0, stop=stop)
with stop.installed(), watchdog.watching():
    watchdog.beat("rollout")
    print("begun", flush=True)
    time.sleep(3)
    time.sleep(1.5)  # the first ended while the process was stopped
    print("goes on", stop.requested(), stop.waiting_s() < 6.0, flush=True)
    if not stop.requested():
        time.sleep(60)
"""


@pytest.mark.parametrize("signalled", [False, True])
def test_a_suspended_process_is_neither_stalled_nor_late(tmp_path: Path, signalled: bool) -> None:
    """As `scontrol suspend` does: stopped for longer than both limits, then continued. A later stall still ends it."""
    process = subprocess.Popen([sys.executable, "-c", SUSPENDED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        if signalled:
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.5)
        process.send_signal(signal.SIGSTOP)
        time.sleep(9)
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == f"goes on {signalled} True\n"
        assert process.wait(timeout=60) == (0 if signalled else 1)
    finally:
        process.kill()
    assert (tmp_path / "rank-00000.txt").exists() != signalled
