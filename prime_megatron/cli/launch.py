"""Start a run's processes on this node and pass their verdict on."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from prime_megatron.cli.peers import check_endpoint, trouble_of
from prime_megatron.cli.srun import node_rank
from prime_megatron.cli.worker import LAUNCHED, as_error
from prime_megatron.config import LaunchConfig
from prime_megatron.errors import ExitCode, InputError
from prime_megatron.run.signals import heard


@dataclass(frozen=True)
class Rendezvous:
    """Where the nodes of a job meet; nothing is needed for one node."""

    endpoint: str | None
    """HOST:PORT of the first node."""
    node_rank: int | None
    """This node's number; none: the nodes number themselves."""
    run_id: str
    """The same on all nodes, different from other jobs at the same endpoint."""
    timeout_s: int
    """Longest wait for the other nodes."""


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """The options of a job over many nodes."""
    group = parser.add_argument_group(
        "many nodes (launch.nodes > 1)", "Run the same command on every node; under torchrun or srun leave these out."
    )
    group.add_argument("--rdzv-endpoint", metavar="HOST:PORT", help="a free port of the first node")
    group.add_argument(
        "--node-rank", type=int, metavar="N", help="number of this node (default: srun's, or they agree on it)"
    )
    group.add_argument("--rdzv-id", default="prime", metavar="ID", help="name of the job (default: %(default)s)")
    group.add_argument(
        "--rdzv-timeout-s", type=int, default=900, metavar="S", help="wait for the other nodes (default: %(default)s)"
    )


def rendezvous_of(args: argparse.Namespace, launch: LaunchConfig) -> Rendezvous:
    """The options as a value.

    Raises:
        InputError: an option is missing or out of range for launch.nodes.
    """
    number = args.node_rank
    if number is None and launch.nodes > 1:
        number = node_rank()
    if args.rdzv_endpoint is not None:
        check_endpoint(args.rdzv_endpoint)
    if args.rdzv_timeout_s < 1:
        raise InputError(f"--rdzv-timeout-s {args.rdzv_timeout_s}: give seconds, 1 or more")
    rendezvous = Rendezvous(args.rdzv_endpoint, number, args.rdzv_id, args.rdzv_timeout_s)
    if launch.nodes > 1 and rendezvous.endpoint is None:
        raise InputError(f"launch.nodes is {launch.nodes}: give --rdzv-endpoint HOST:PORT, the same on every node")
    if rendezvous.node_rank is not None and not 0 <= rendezvous.node_rank < launch.nodes:
        raise InputError(f"--node-rank {rendezvous.node_rank}: launch.nodes is {launch.nodes}; count from 0")
    return rendezvous


def start(
    command: list[str], in_process: Callable[[], int], launch: LaunchConfig, rendezvous: Rendezvous, *, stop_signal: str
) -> int:
    """Run a job's processes of this node to their end; returns the exit code.

    One process is run here, without an agent. More are started by torch's elastic agent, without restarts: when one
    fails, the others are ended, and the failure that came first decides the exit code and is the one printed. SIGTERM
    and `stop_signal` are handed to the workers, which save and end with the requeue code; Ctrl-C ends everything.

    Args:
        command: a worker's command line.
        in_process: the worker's part as a function, for a job of one process.
        launch: nodes and processes per node.
        rendezvous: where the nodes meet.
        stop_signal: checkpoint.signal, such as "USR1".
    """
    # More threads than cores only fight; a GPU run needs few. The user's own setting wins.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Megatron overlaps communication with matrix products: kernels must start in the order in which they were queued.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    if launch.nodes * launch.processes_per_node == 1:
        port = str(_free_port())
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        return in_process()
    os.environ[LAUNCHED] = str(os.getpid())
    if launch.nodes == 1 and sys.platform == "linux":
        # gloo finds its address through the host's name, which need not resolve; one node needs no more than this.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    signals = (signal.SIGTERM, signal.Signals[f"SIG{stop_signal}"])
    with tempfile.TemporaryDirectory(prefix="prime-megatron-") as logs:
        stop = _StopForwarder(Path(logs))
        with heard(signals, stop), _quiet_agent():
            return _run_agent(command, launch, rendezvous, logs, stop)


class _StopForwarder:
    """Hands signals to the workers; before there are any, ends the launcher with the requeue code.

    Args:
        logs: the agent's folder, removed before the launcher ends.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._had_workers = False
        self.seen = False

    def __call__(self, number: signal.Signals) -> None:
        self.seen = True
        workers = [child for child in psutil.Process().children() if _is_rank(child)]
        if workers:
            self._had_workers = True
            for worker in workers:
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.send_signal(number)
        elif not self._had_workers:
            shutil.rmtree(self._logs, ignore_errors=True)
            os._exit(ExitCode.REQUEUE)


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "RANK" in process.environ()
    except psutil.Error:
        return False


@contextlib.contextmanager
def _quiet_agent() -> Iterator[None]:
    """Silence this process's log: the agent's warnings and its failure report repeat what we say in one line."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _run_agent(
    command: list[str], launch: LaunchConfig, rendezvous: Rendezvous, logs: str, stop: _StopForwarder
) -> int:
    # Imported here: the launcher answers a config error before torch is loaded.
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig as AgentConfig
    from torch.distributed.launcher.api import launch_agent

    one_node = launch.nodes == 1
    static = not one_node and rendezvous.node_rank is not None
    # "timeout" is the static rendezvous's key, the other two are c10d's.
    seconds = rendezvous.timeout_s
    meeting: dict[str, Any] = {"timeout": seconds, "join_timeout": seconds, "read_timeout": seconds}
    if static:
        meeting["rank"] = rendezvous.node_rank
    config = AgentConfig(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=launch.processes_per_node,
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        run_id=rendezvous.run_id,
        rdzv_backend="static" if static else "c10d",
        rdzv_endpoint="127.0.0.1:0" if one_node else str(rendezvous.endpoint),
        rdzv_configs=meeting,
        max_restarts=0,
        local_addr="127.0.0.1" if one_node else None,
        # TERM and the stop signal are ours (forwarded, so that the workers can save).
        signals_to_handle="SIGINT,SIGHUP,SIGQUIT",
    )
    try:
        launch_agent(config, command[0], command[1:])
    except ChildFailedError as error:
        return verdict(dict(error.failures), stop.seen)
    except SignalException as error:
        return 128 + int(error.sigval)
    except RendezvousError as error:
        if stop.seen:
            return ExitCode.REQUEUE
        # The agents talk through the first node for as long as they run; workers' logs tell that all had met.
        met = any(Path(logs).iterdir())
        what = "another node was lost" if met else f"the nodes did not meet at {rendezvous.endpoint}"
        print(as_error(f"{what}: {error}"), file=sys.stderr)
        return ExitCode.FAILED
    except (RuntimeError, OSError) as error:  # of the agents' own store
        trouble = trouble_of(error, f"--rdzv-endpoint {rendezvous.endpoint}")
        if stop.seen:
            return ExitCode.REQUEUE
        if trouble is None:
            raise
        print(as_error(trouble.text), file=sys.stderr)
        return trouble.code
    return ExitCode.DONE


def verdict(failures: dict[int, Any], stop_seen: bool) -> int:
    """Print the failure that came first and return its exit code.

    Args:
        failures: rank -> torch's ProcessFailure.
        stop_seen: the launcher handed a stop signal on.
    """
    rank = first_failure(failures)
    failure = failures[rank]
    code, report = int(failure.exitcode), _report_of(failure)
    if report is not None and report.exit_code is not None and code == -signal.SIGTERM:
        code = report.exit_code  # the agent ended it, as another one had ended, before it could end so
    if code == ExitCode.REQUEUE or (stop_seen and code < 0):
        return ExitCode.REQUEUE
    if report is not None:
        print(as_error(report.text), file=sys.stderr)
    if code not in (ExitCode.BAD_INPUT, ExitCode.GAVE_UP):
        end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        print(as_error(f"rank {rank} (process {failure.pid}) {end}; the run is over"), file=sys.stderr)
    sys.stderr.flush()
    return code if code in (ExitCode.BAD_INPUT, ExitCode.GAVE_UP) else ExitCode.FAILED


def first_failure(failures: dict[int, Any]) -> int:
    """The rank whose failure made the others fail.

    A process killed from outside leaves no report, and the others report a lost connection: it comes first. SIGTERM
    is how the agent ends the others, so it comes last: SIGKILL, too, once a rank has waited for one that does not
    answer. Reports come by their time.
    """
    reports = [report for failure in failures.values() if (report := _report_of(failure)) is not None]
    waited = any(report.late for report in reports)

    def order(rank: int) -> tuple[int, float]:
        failure = failures[rank]
        if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM and not waited:
            return (0, 0.0)
        report = _report_of(failure)
        if report is not None:
            return (1, report.time_s)
        return (3 if failure.exitcode in (-signal.SIGTERM, -signal.SIGKILL) else 2, float(failure.timestamp))

    return min(sorted(failures), key=order)


@dataclass(frozen=True)
class _Report:
    """What a worker left."""

    time_s: float
    text: str
    exit_code: int | None
    """The one that it was about to end with; None in the agent's own reports."""
    late: bool
    """It waited for others in vain: what ended them ended them later."""


def _report_of(failure: Any) -> _Report | None:
    """The worker's report, if it left one."""
    path = Path(failure.error_file)
    if not path.is_file():
        return None
    message = json.loads(path.read_text(encoding="utf-8"))["message"]
    extra, text = message["extraInfo"], str(message["message"])
    if "time_s" not in extra:
        return _Report(float(extra["timestamp"]), text, None, late=False)
    return _Report(float(extra["time_s"]), text, int(extra["exit_code"]), bool(extra["late"]))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
