"""Models that leave the device while the engine generates come back as they were; saves and exports find them there."""

from __future__ import annotations

import json
from pathlib import Path

from prime_megatron.colocation import Colocation
from tests.distributed.spawn import run_ranks
from tests.e2e import toy
from tests.e2e.runs import TIMINGS, differences, read_lines, train_all


def test_offload_changes_no_number_and_is_saved(tmp_path: Path) -> None:
    model, prompts = toy.make_model(tmp_path / "model"), toy.make_prompts(tmp_path / "prompts.jsonl")
    runs = [
        toy.settings(
            model, prompts, tmp_path / name, parallel={"offload": offload},
            checkpoint={"every": 2, "save_final": True, "export_final": True},
        )
        for name, offload in (("stay", False), ("move", True))
    ]  # fmt: skip
    assert run_ranks(train_all, 1, json.dumps(runs), timeout_s=240.0) == [[0, 0]]
    stay, move = (read_lines(settings, "metrics.jsonl") for settings in runs)
    assert {key: gap for key, gap in differences(stay, move, TIMINGS).items() if gap} == {}
    exported = [tmp_path / name / "policy" / "model.safetensors" for name in ("stay", "move")]
    assert exported[0].read_bytes() == exported[1].read_bytes()
    assert "memory/asleep_host_bytes" in read_lines(runs[1], "memory.jsonl")[-1]


class Log:
    """An engine, a sync and models that write down what is asked of them."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name, self.seen = name, seen

    def sleep(self, level: int) -> None:
        self.seen.append("sleep")

    def wake(self, tags: set[str]) -> None:
        self.seen.append(f"wake {min(tags)}")

    def publish(self, version: int) -> None:
        self.seen.append(f"sync {version}")

    def offload(self, *, gradients: bool = True) -> int:
        self.seen.append(f"{self.name} away")
        return 0

    def onload(self) -> int:
        self.seen.append(f"{self.name} back")
        return 0


def test_the_order_around_generation() -> None:
    seen: list[str] = []
    colocation = Colocation(Log("", seen), Log("", seen), Log("policy", seen), [Log("prm", seen)])
    publishes = ["prm away", "wake weights", "sync 4", "policy away", "wake kv_cache"]
    trains = ["sleep", "prm back", "policy back"]
    colocation.publish(4)
    assert seen == publishes
    colocation.train()
    assert seen == publishes + trains
    edges = colocation.lap()
    assert [key.split("/")[1] for key in edges] == [
        f"{edge}_host_bytes" for edge in ("trained", "weights_awake", "synced", "cache_awake", "generated", "asleep")
    ]
    assert all(value > 0 for value in edges.values())
    assert colocation.lap() == {}
    seen.clear()
    with colocation.saving(due=False):
        assert seen == []
    with colocation.saving(due=True):
        assert seen == trains
    assert seen == trains + publishes
    seen.clear()
    colocation.publish_again()
    assert seen == trains + publishes
