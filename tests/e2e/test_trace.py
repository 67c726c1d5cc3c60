"""The trace of a window of steps on two pipeline ranks: every stage of both, and nothing left behind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests.support.ranks import run_ranks
from tests.support.runs import read_lines, train_rank
from tests.support.toy import make_model, make_prompts, merge, settings

STAGES = {"rollout", "score", "prm", "advantage", "policy", "reshard", "save"}
Spans = dict[tuple[int, str], list[dict[str, Any]]]


def traced_rank(text: str) -> list[str]:
    """A run on this rank; returns which of torch's calls are not torch's own afterwards."""
    before = dict(vars(dist.ProcessGroup)), dict(vars(dist.Work))
    assert train_rank(text) == 0
    after = dict(vars(dist.ProcessGroup)), dict(vars(dist.Work))
    return [name for old, new in zip(before, after, strict=True) for name in old if old[name] is not new[name]]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run whose steps 2 and 3 of 4 are traced."""
    folder = tmp_path_factory.mktemp("trace")
    base = settings(
        make_model(folder / "model"),
        make_prompts(folder / "prompts.jsonl"),
        folder / "out",
        run={"steps": 4},
        parallel={"pipeline": 2},
        packing={"max_sequences": 5},
        log={"trace_steps": [2, 3], "trace_detail": "operators"},
    )
    assert run_ranks(traced_rank, 2, json.dumps(base)) == [[], []]
    return folder / "out"


@pytest.fixture(scope="module")
def spans(traced: Path) -> Spans:
    """Spans by rank and category, in order of time."""
    events = json.loads((traced / "trace" / "trace.json").read_text())["traceEvents"]
    found: Spans = {}
    for event in sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"]):
        found.setdefault((event["pid"], event["cat"]), []).append(event)
    return found


def names(spans: Spans, rank: int, category: str) -> list[str]:
    return [event["name"] for event in spans[rank, category]]


@pytest.mark.parametrize("rank", [0, 1])
def test_every_stage_of_both_steps_is_there(rank: int, spans: Spans) -> None:
    steps = spans[rank, "step"]
    assert [step["name"] for step in steps] == ["step 2", "step 3"]
    for step in steps:
        within = [
            stage["name"]
            for stage in spans[rank, "stage"]
            if step["ts"] <= stage["ts"] and stage["ts"] + stage["dur"] <= step["ts"] + step["dur"]
        ]
        assert set(within) == STAGES and len(within) == len(STAGES)


@pytest.mark.parametrize("rank", [0, 1])
def test_micro_batches_communication_engine_and_verification_are_there(rank: int, spans: Spans) -> None:
    # 20 sequences in 4 micro-batches; a step's reference scores them, PRM and policy learn them.
    micro = names(spans, rank, "micro-batch")
    assert [micro.count(f"forward {index}") for index in range(5)] == [6, 6, 6, 6, 0]
    assert micro.count("backward") == 16
    assert {"reference reads", "prm learns", "policy learns", "optimizer step"} <= set(names(spans, rank, "model"))
    assert {"send", "recv", "wait", "allgather", "broadcast"} <= set(names(spans, rank, "communication"))
    assert {"generate", "weight sync", "sleep", "wake"} <= set(names(spans, rank, "engine"))
    assert "submit an answer" in names(spans, rank, "verification")


def test_one_clock_for_both_ranks(spans: Spans) -> None:
    """In these stages each rank waits for something of the other's, so they are in them at the same time."""
    for first, second in zip(spans[0, "stage"], spans[1, "stage"], strict=True):
        assert first["name"] == second["name"]
        if first["name"] in ("rollout", "score", "prm", "policy"):
            assert first["ts"] < second["ts"] + second["dur"] and second["ts"] < first["ts"] + first["dur"]


def test_operators_lie_beside_it(traced: Path) -> None:
    for rank in (0, 1):
        profile = gzip.decompress((traced / "trace" / f"operators-{rank:05d}.json.gz").read_bytes())
        assert b'"aten::mm"' in profile and b'"[memory]"' in profile


def test_the_run_says_where_it_is_and_what_bound_each_step(traced: Path) -> None:
    base = merge({"run": {}}, {"run": {"output_dir": str(traced)}})
    told = [row["text"] for row in read_lines(base, "events.jsonl")]
    assert f"trace: {traced / 'trace' / 'trace.json'}; open it in https://ui.perfetto.dev" in told
    for row in read_lines(base, "metrics.jsonl")[1:]:
        times = {key[5:-2]: value for key, value in row.items() if key.startswith("time/") and key.endswith("_s")}
        lead, step = times.pop("bound_lead"), times.pop("step")
        times["(between stages)"] = max(0.0, step - sum(times.values()))
        first, second = sorted(times, key=lambda name: -times[name])[:2]
        assert row["time/bound_stage"] == first
        assert lead == pytest.approx(times[first] - times[second])
        assert row["time/bound_share"] == pytest.approx(times[first] / step)
