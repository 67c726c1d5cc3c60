"""The way of the weights, and the line that says what it costs: whoever makes a second copy says so."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from prime_megatron import device
from prime_megatron.config import TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.run.transport import describe_engine, transport_of


def config(parallel: dict[str, Any] | None = None, **rollout: Any) -> TrainConfig:
    values = {
        "run": {"output_dir": "runs/here", "steps": 1},
        "models": {"policy": {"path": "m"}},
        "data": {"train": ["a.jsonl"]},
        "rollout": {"engine": "vllm", **rollout},
        "parallel": parallel or {},
    }
    return TrainConfig.model_validate_json(json.dumps(values))


BESIDE = {"vllm": {"in_process": True}}


@pytest.mark.parametrize(
    ("asked", "way", "says"),
    [
        (config(), "live", "vllm engine on CPU, tensor 1; weights by live, .* no second copy, no buckets$"),
        (config({"pipeline": 2}, bucket_bytes=2**20), "live", "no second copy, 1 MiB a rank for what other ranks hold"),
        (config(transport="bucket"), "bucket", r"two buffers of 256 MiB .*\(shared memory\); no second copy"),
        (config(transport="broadcast"), "broadcast", "over gloo through the host, two buffers"),
        (config(transport="disk"), "disk", "a second whole copy of the weights, one a replica, stays in runs/here"),
        (config(engine="sglang", sglang={"server": True}, tensor=2, expert=2), "live", "server .* tensor 2, expert 2"),
        (config(**BESIDE), "live", "vllm in the trainer's processes on CPU"),
        (config(**BESIDE, transport="bucket"), "bucket", "256 MiB .* a process during an update, reloaded in place"),
    ],
)
def test_the_way_and_its_cost(asked: TrainConfig, way: str, says: str) -> None:
    assert transport_of(asked) == way
    assert re.search(says, describe_engine(asked)), describe_engine(asked)


def test_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    assert transport_of(config()) == "bucket"
    assert "CUDA IPC" in describe_engine(config())
    with pytest.raises(InputError, match=r"rollout\.transport: live reaches an engine on a CPU only"):
        transport_of(config(transport="live"))
