"""The number of engines' restarts in a step's row: of all replicas, on every rank, over every attempt of a run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from prime_megatron.run.reporter import Reporter
from tests.support.echo_driver import DIE
from tests.support.ranks import run_ranks
from tests.unit.test_rollout_process import WEIGHT, live, publish, requests, start


def reporter(engine: Any, rows: list[dict[str, float]]) -> Reporter:
    """One that neither evaluates nor writes."""
    log = SimpleNamespace(log=lambda step, figures: rows.append(figures))
    times = SimpleNamespace(wall_s=0.0, stage_s={}, metrics=dict)
    clock = SimpleNamespace(lap=lambda: times, total_s={}, total_wall_s=0.0, restore=lambda stage_s, wall_s: None)
    fields = dict.fromkeys(("topology", "plan", "speed", "recorder", "inputs"))
    return Reporter(
        config=SimpleNamespace(run=SimpleNamespace(steps=1)),
        evaluator=SimpleNamespace(due=lambda index, steps: False),
        clock=clock,
        log=log,
        samples=SimpleNamespace(num_bytes=0),
        memory=dict,
        restarts=lambda: engine.num_restarts,
        verification=lambda: None,
        **fields,
    )


def two_attempts(folder: str) -> list[float]:
    rank = dist.get_rank()
    own = Path(folder) / str(rank)
    own.mkdir()
    rows: list[dict[str, float]] = []
    engine = start(own, live(), {})
    first = reporter(engine, rows)
    first.step(0, None)
    publish(engine, WEIGHT, 0)
    engine.generate(requests(2, DIE if rank == 1 else 3))
    assert engine.num_restarts == rank, "the second replica's died"
    first.step(0, None)
    saved = first.state()
    engine.close()
    (own / "once").unlink(missing_ok=True)
    engine = start(own, live(), {})
    second = reporter(engine, rows)
    second.restore(saved)
    second.step(0, None)
    publish(engine, WEIGHT, 0)
    engine.generate(requests(2, DIE))
    second.step(0, None)
    engine.close()
    assert second.progress.num_restarts == rows[-1]["engine/restarts"]
    return [row["engine/restarts"] for row in rows]


def test_restarts_of_all_replicas_are_told_on_every_rank_and_go_on_in_the_next_attempt(tmp_path: Path) -> None:
    assert run_ranks(two_attempts, 2, str(tmp_path), timeout_s=300.0) == [[0, 1, 1, 3]] * 2
