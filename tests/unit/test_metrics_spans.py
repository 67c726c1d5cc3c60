"""A rank's spans as a Chrome trace, and all ranks' in one file."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from prime_megatron.metrics.spans import TRACE_FILE, Spans, join_ranks


def test_spans_are_complete_events_in_microseconds_by_rank_and_thread(tmp_path: Path) -> None:
    spans = Spans(3, "rank 3: pipeline 1", zero_s=100.0)
    spans.add("inner", "model", 100.5, 100.75)
    spans.add("outer", "stage", 100.25, 101.0)
    thread = threading.Thread(target=spans.add, args=("grade", "verification", 100.3, 100.4), name="verify-0")
    thread.start()
    thread.join()
    spans.write(tmp_path)
    events = json.loads((tmp_path / "rank-00003.json").read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {3}
    spans_only = [event for event in events if event["ph"] == "X"]
    assert [(e["name"], e["cat"], e["tid"], e["ts"], e["dur"]) for e in spans_only] == [
        ("outer", "stage", 0, 250_000.0, 750_000.0),
        ("grade", "verification", 1, 300_000.0, 100_000.0),
        ("inner", "model", 0, 500_000.0, 250_000.0),
    ]
    names = {(e["name"], e["tid"]): e["args"] for e in events if e["ph"] == "M"}
    assert names["process_name", 0] == {"name": "rank 3: pipeline 1"}
    assert names["thread_name", 1] == {"name": "verify-0"}


@pytest.mark.parametrize("ranks", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_ranks_are_joined_and_the_missing_ones_named(ranks: tuple[int, ...], tmp_path: Path) -> None:
    for rank in (*ranks, 7):  # 7: left by a run of more ranks
        spans = Spans(rank, f"rank {rank}", 0.0)
        spans.add('a "quoted" name]', "stage", rank, rank + 1.0)
        spans.write(tmp_path)
    assert join_ranks(tmp_path, 3) == [rank for rank in range(3) if rank not in ranks]
    trace = json.loads((tmp_path / TRACE_FILE).read_text())
    assert [event["pid"] for event in trace["traceEvents"] if event["ph"] == "X"] == list(ranks)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}
