"""Before the models are built: what a node's ranks keep in host memory against what is free there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from prime_megatron import device
from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.run.host_memory import check_host_memory
from tests.support.public_models import PARAMETERS, make_folder


@pytest.fixture
def world() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_node_that_bears_its_models_or_not(world: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A 7B trio keeps 30 bytes for each parameter."""
    folder = make_folder(tmp_path, "Qwen2.5-Math-7B")
    values = {"run": {"output_dir": "o", "steps": 1}, "models": {"policy": {"path": folder}}, "data": {"train": ["x"]}}
    needed = 30 * PARAMETERS["Qwen2.5-Math-7B"]
    for available, modes in ((needed + 1, ()), (needed - 1, ("generation", "phases"))):
        monkeypatch.setattr(device, "host_memory_available_bytes", lambda available=available: available)
        for mode in ("none", "generation", "phases"):
            config = TrainConfig.model_validate_json(json.dumps(values | {"parallel": {"offload": mode}}))
            if mode not in modes:
                check_host_memory(config)
                continue
            with pytest.raises(InputError, match=r"^parallel.offload: 1 ranks of \S+ keep 212.8 GiB of models in host"):
                check_host_memory(config)


def test_what_is_available_is_at_most_what_the_machine_has() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    total = next(int(line.split()[1]) for line in lines if line.startswith("MemTotal"))
    assert 0 < device.host_memory_available_bytes() <= 1024 * total
