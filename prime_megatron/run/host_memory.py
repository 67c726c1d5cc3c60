"""Before the models are built: does every node's memory bear what its ranks will keep there?"""

from __future__ import annotations

import socket
from collections import Counter

import torch.distributed as dist

from prime_megatron import device
from prime_megatron.config import Offload, TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.parallel.collectives import gather_all
from prime_megatron.plan.fit import read_families
from prime_megatron.plan.memory import plan_memory


def check_host_memory(config: TrainConfig) -> None:
    """Refuse a run whose models' copies in host memory are more than what a node has left. Collective over the world.

    Raises:
        InputError: on every rank; names the node.
    """
    families = read_families(config)
    if config.parallel.offload is Offload.none or isinstance(families, str):
        return
    each = plan_memory(config, families, dist.get_world_size(), None).host.copies
    nodes = gather_all((socket.gethostname(), device.host_memory_available_bytes()))
    ranks = Counter(node for node, _ in nodes)
    for node, available in nodes:
        if each * ranks[node] > available:
            raise InputError(
                f"parallel.offload: {ranks[node]} ranks of {node} keep {each / 2**30:.1f} GiB of models in host memory "
                f"each, and {available / 2**30:.1f} GiB are available there; use fewer ranks a node, or set "
                "parallel.offload to none"
            )
