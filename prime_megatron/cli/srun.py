"""A command that srun started: several tasks are ranks, or one launcher a node; anything else is refused."""

from __future__ import annotations

import os
import subprocess

from prime_megatron.config import LaunchConfig
from prime_megatron.errors import InputError


def place_of_rank(launch: LaunchConfig, rdzv_endpoint: str | None) -> dict[str, str] | None:
    """The environment of a rank, where srun started one task for each of the run's processes; else None.

    None means: start the node's processes, as without srun. That is so for one task, and for a task a node that was
    given --rdzv-endpoint.

    Args:
        launch: nodes and processes a node.
        rdzv_endpoint: --rdzv-endpoint.

    Raises:
        InputError: srun started another number of tasks.
    """
    if "SLURM_STEP_NUM_TASKS" not in os.environ:
        return None
    tasks, nodes = int(os.environ["SLURM_STEP_NUM_TASKS"]), int(os.environ["SLURM_STEP_NUM_NODES"])
    world = launch.nodes * launch.processes_per_node
    if tasks == 1 or (tasks == nodes == launch.nodes and rdzv_endpoint is not None):
        return None
    if tasks != world or nodes != launch.nodes:
        raise InputError(
            f"srun started {tasks} tasks on {nodes} nodes, and the config asks for launch.nodes {launch.nodes} x "
            f"launch.processes_per_node {launch.processes_per_node}; start {world} tasks (a rank each), or one task a "
            "node with --rdzv-endpoint, or write a job script with `prime-megatron slurm`"
        )
    place = {
        "RANK": os.environ["SLURM_PROCID"],
        "LOCAL_RANK": os.environ["SLURM_LOCALID"],
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(launch.processes_per_node),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1" if nodes == 1 else _first_host(os.environ["SLURM_STEP_NODELIST"]),
        "MASTER_PORT": str(20000 + (7 * int(os.environ["SLURM_JOB_ID"]) + int(os.environ["SLURM_STEP_ID"])) % 20000),
    }
    # The user's own address, port and threads win.
    own = {key for key in ("MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS") if key in os.environ}
    return {key: value for key, value in place.items() if key not in own}


def node_rank() -> int | None:
    """This node's number in a step of one task a node: SLURM's order; None outside of such a step."""
    names = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_NODEID")
    if any(name not in os.environ for name in names) or os.environ[names[0]] != os.environ[names[1]]:
        return None
    return int(os.environ["SLURM_NODEID"])


def _first_host(nodes: str) -> str:
    try:
        said = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        raise InputError(
            f"scontrol cannot name the hosts of {nodes}; set MASTER_ADDR to the first one's name"
        ) from None
    return said.stdout.split()[0]
