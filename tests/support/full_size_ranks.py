"""Ranks of large layouts, built by Megatron at full size on the meta device, without weights and without their peers.

    python -m tests.support.full_size_ranks '[["examples/x/prime.yaml", "model folder", 127], ...]'

Prints the parameters of each, as a JSON list. torch's fake process group stands for the others.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from prime_megatron.config.load import load_train_config
from prime_megatron.families.read import read_config
from prime_megatron.mcore import model as model_module
from prime_megatron.mcore.initialize import start_megatron
from tests.support.models import restart


def parameters(example: str, folder: str, rank: int) -> int:
    """What one rank of the example's layout holds of a model."""
    config = load_train_config(example, [])
    world = config.launch.nodes * config.launch.processes_per_node
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    topology = start_megatron(config.parallel, seed=1, backend="gloo", timeout_s=60)
    with torch.device("meta"):
        chunks = model_module.build_model(
            read_config(folder), topology, config.parallel, torch.bfloat16, wrap_ddp=False
        )
    restart()
    dist.destroy_process_group()
    return sum(param.numel() for chunk in chunks for param in chunk.parameters())


def main() -> None:
    real_group, frequencies = dist.new_group, model_module.inverse_frequencies

    def fake_group(ranks: Any = None, **options: Any) -> Any:
        return real_group(ranks, **{**options, "backend": "fake"})

    def on_cpu(family: Any) -> torch.Tensor:
        with torch.device("cpu"):
            return frequencies(family)

    dist.new_group = fake_group
    model_module.inverse_frequencies = on_cpu
    model_module.current_device = lambda: torch.device("meta")
    print(json.dumps([parameters(*case) for case in json.loads(sys.argv[1])]))


if __name__ == "__main__":
    main()
