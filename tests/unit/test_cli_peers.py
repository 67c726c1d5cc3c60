"""Who is not there, and why: one line, and the exit code that says whose turn it is."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

from prime_megatron.cli.peers import allow_open_files, check_endpoint, check_place, trouble_of
from prime_megatron.errors import InputError
from prime_megatron.run.siblings import stopped_ranks

PLACE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", None, "RANK is set in the environment and WORLD_SIZE is not"),
        ("MASTER_ADDR", None, "RANK is set in the environment and MASTER_ADDR is not"),
        ("MASTER_PORT", "", "RANK is set in the environment and MASTER_PORT is not"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0' in the environment; it must be a number, 1 or more"),
        ("RANK", "2", "RANK is '2' in the environment; it must be a number, 0 to 1"),
        ("RANK", "one", "RANK is 'one'"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK is '-1'"),
        ("MASTER_PORT", "70000", "MASTER_PORT is '70000' in the environment; it must be a number, 1 to 65535"),
        ("MASTER_ADDR", "no.such.host.invalid", "MASTER_ADDR no.such.host.invalid: no such host"),
    ],
)
def test_a_place_that_makes_no_sense(name: str, value: str | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, text in (PLACE | {name: value}).items():
        if text is None:
            monkeypatch.delenv(key, raising=False)
        else:
            monkeypatch.setenv(key, text)
    with pytest.raises(InputError) as refused:
        check_place()
    assert str(refused.value).startswith(said)
    if value:
        monkeypatch.setenv(name, PLACE[name])
        check_place()


@pytest.mark.parametrize("endpoint", ["host", "host:", ":29400", "h:0", "h:65536", "h:x", "h:-1", "no.such.invalid:1"])
def test_an_endpoint_that_is_none(endpoint: str) -> None:
    with pytest.raises(InputError, match=f"^--rdzv-endpoint {endpoint}: "):
        check_endpoint(endpoint)


def test_endpoints() -> None:
    for endpoint in ("127.0.0.1:1", "localhost:65535", "[::1]:29400"):
        check_endpoint(endpoint)


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] "


@pytest.mark.parametrize(
    ("text", "said", "code", "late"),
    [
        (GLOO + "Connection closed by peer [127.0.0.1]:24681", "rank 1 lost another rank (Conn", 1, False),
        (
            "[/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 15000ms for recv operation to complete",
            "rank 1 waited for another rank as long as parallel.timeout_s allows (Timed out",
            1,
            True,
        ),
        (
            "The server socket has failed to listen on any local network address. port: 1, code: -98, name: EADDRINUSE",
            "HERE: the port is taken on this host; choose another",
            2,
            False,
        ),
        (
            "The client socket has timed out after 5000ms while trying to connect to (10.0.0.9, 29800).",
            "the others were not found at HERE: The client socket",
            1,
            True,
        ),
        (
            "Timed out after 16 seconds waiting for clients. 1/2 clients joined.",
            "the others were not found at HERE: Timed out after 16 seconds",
            1,
            True,
        ),
        (
            "[enforce fail at gloo/transport/tcp/socket.cc:24] rv != -1. socket: Too many open files",
            "too many open files: the limit is ",
            1,
            False,
        ),
    ],
)  # fmt: skip
def test_what_torch_says_of_peers(text: str, said: str, code: int, late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    kind = RuntimeError if "gloo" in text else torch.distributed.DistError
    trouble = trouble_of(kind(f"{text}\nException raised from ..."), "HERE")
    assert trouble is not None and trouble.text.startswith(said) and "\n" not in trouble.text
    assert (trouble.code, trouble.late) == (code, late)


def test_a_bug_is_no_peer() -> None:
    for error in (RuntimeError("shapes [2, 3] and [4] do not fit"), ValueError("timed out in a store"), KeyError("x")):
        assert trouble_of(error, "HERE") is None


def test_too_few_open_files() -> None:
    """In a process of its own: the limit is lowered for good."""
    code = "import sys; from prime_megatron.cli.main import main; sys.exit(main(['train', '/nowhere.yaml']))"

    def limited(hard: int) -> subprocess.CompletedProcess[str]:
        def lower() -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 64), hard))

        return subprocess.run(
            [sys.executable, "-c", code], preexec_fn=lower, capture_output=True, text=True, timeout=60, check=False
        )

    few = limited(100)
    assert few.returncode == 2
    assert few.stderr == "error: the limit of open files is 100 (ulimit -n); a run needs 256 and more\n"
    assert "nowhere.yaml" in limited(300).stderr, "a soft limit is raised"
    allow_open_files()


def test_a_stopped_rank_is_named() -> None:
    process = subprocess.Popen(["sleep", "60"], env=os.environ | {"RANK": "5"})
    try:
        asked = [sys.executable, "-c", "from prime_megatron.run.siblings import stopped_ranks; print(stopped_ranks())"]
        running = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        stopped = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout
    finally:
        process.kill()
        process.wait()
    assert running == "\n"
    assert stopped == f"; rank 5 (process {process.pid}) is stopped by a signal\n"
    assert stopped_ranks() == ""


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    """The launcher of the first node, with torch's own store."""
    code = (
        "import sys; from prime_megatron.cli.launch import Rendezvous, start; "
        "from prime_megatron.config import LaunchConfig; "
        "sys.exit(start(['true'], int, LaunchConfig(nodes=2, processes_per_node=1), "
        "Rendezvous(sys.argv[1], 0, 'x', 5), stop_signal='USR1'))"
    )
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run(
            [sys.executable, "-c", code, endpoint], capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said == [f"error: --rdzv-endpoint {endpoint}: the port is taken on this host; choose another"]
    assert "Traceback" not in done.stderr


def test_a_worker_reports_a_lost_peer_as_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prime_megatron.cli.worker import ERROR_FILE, LAUNCHED, run_worker

    report = tmp_path / "report.json"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(ERROR_FILE, str(report))
    monkeypatch.setattr("prime_megatron.cli.worker.end_with_parent", lambda parent: None)
    monkeypatch.setenv(LAUNCHED, str(os.getppid()))

    def body() -> int:
        raise RuntimeError(GLOO + "Connection reset by peer")

    assert run_worker(body) == 1
    message = json.loads(report.read_text())["message"]
    assert message["message"].startswith("rank 1 lost another rank (Connection reset by peer); its own error")
    assert message["extraInfo"]["exit_code"] == 1
