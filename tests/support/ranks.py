"""Runs a function on several gloo ranks, each a process.

Processes come from a fork server that has imported torch and megatron once, so a run costs about a second.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from prime_megatron.run.parentage import end_with_parent

_PRELOAD = ["torch", "transformers", "tests.support.preload"]


def run_ranks(fn: Callable[..., Any], world_size: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """Calls fn(*args) on ranks 0 to world_size - 1 with torch.distributed (gloo) up; returns results by rank.

    fn is a module-level function; a result is made of tensors, numbers, strings, lists, tuples and dicts.
    Raises RuntimeError with the rank and its traceback where a rank fails (the first to fail), TimeoutError
    after timeout_s. No process outlives the call, or the caller, however that ends.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        processes = []
        pipes: dict[Connection, int] = {}
        try:
            for rank in range(world_size):
                receive, send = context.Pipe(duplex=False)
                target = (rank, world_size, str(Path(folder) / "store"), timeout_s, send, fn, args)
                process = context.Process(target=_worker, args=target)
                process.start()
                send.close()
                processes.append(process)
                pipes[receive] = rank
            results = _collect(pipes, world_size, timeout_s)
            for process in processes:
                process.join(timeout=10)
            return results
        finally:
            for process in processes:
                _end(process)
            for pipe in pipes:
                pipe.close()


def _collect(pipes: dict[Connection, int], world_size: int, timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    waiting = dict(pipes)
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError(f"ranks {sorted(waiting.values())} of {world_size} not done after {timeout_s} s")
        failures = []
        for pipe in ready:
            assert isinstance(pipe, Connection)
            rank = waiting.pop(pipe)
            try:
                message = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=True)
            except EOFError:
                failures.append((float("inf"), f"rank {rank} died without a word"))
                continue
            if "error" in message:
                failures.append((message["time"], f"rank {rank}:\n{message['error']}"))
            else:
                results[rank] = message["result"]
        if failures:
            # A failing rank takes its peers with it: the earliest failure is the cause.
            raise RuntimeError(min(failures)[1])
    return [results[rank] for rank in range(world_size)]


def _worker(
    rank: int, world_size: int, store: str, timeout_s: float, send: Connection, fn: Callable[..., Any], args: tuple
) -> None:
    os.setsid()  # so that the parent can end this process together with its children
    _end_with_caller()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), GLOO_SOCKET_IFNAME="lo")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")  # a verb within a rank asks for them
    torch.set_num_threads(1)
    try:
        torch.distributed.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        message = {"result": fn(*args)}
    except BaseException:  # everything is reported, also SystemExit
        message = {"error": traceback.format_exc(), "time": time.monotonic()}
    buffer = io.BytesIO()
    torch.save(message, buffer)
    send.send_bytes(buffer.getvalue())
    send.close()
    if "error" in message:
        os._exit(1)
    if torch.distributed.is_initialized():
        # Peers may still be reading from this rank's store and sockets.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _end_with_caller() -> None:
    """End this process and its children when the caller of `run_ranks` is gone, or the fork server."""
    end_with_parent(os.getppid())  # the fork server, which lives as long as any of its processes
    caller = multiprocessing.parent_process()
    assert caller is not None

    def wait_for_caller() -> None:
        caller.join()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait_for_caller, daemon=True).start()


def _end(process: Any) -> None:
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            process.kill()
        process.join()
