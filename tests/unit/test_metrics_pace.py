"""Time left, the line an hour, and what a run leaves for those who look from outside."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from prime_megatron.metrics.columns import Column
from prime_megatron.metrics.pace import WINDOW, Pace, duration
from prime_megatron.metrics.sinks import ConsoleSink
from prime_megatron.metrics.status import StatusSink

COLUMNS = (Column("rollout/outcome", "outcome", ".2f"),)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (3540, "59 min"),
        (3600, "1 h 00 min"),
        (11_100, "3 h 05 min"),
        (532_000, "6 d 4 h"),
    ],
)
def test_durations_as_one_reads_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_pace_is_the_mean_of_the_last_steps() -> None:
    pace = Pace(100)
    pace.add(0, {})
    assert pace.left_s is None
    for step in range(1, 51):
        pace.add(step, {"time/step_s": float(step)})
    last = range(51 - WINDOW, 51)
    assert pace.step_s == sum(last) / WINDOW
    assert pace.left_s == 50 * sum(last) / WINDOW
    pace.add(100, {"time/step_s": 1.0})
    assert pace.left_s == 0.0


def row(outcome: float, bound: str) -> dict[str, Any]:
    return {
        "rollout/outcome": outcome, "time/step_s": 1200.0,
        "time/bound_stage": bound, "time/bound_share": 0.5, "time/bound_lead_s": 1.0,
    }  # fmt: skip


def test_a_log_has_a_line_an_hour_and_says_when_nothing_was_finished() -> None:
    now = [0.0]
    out = io.StringIO()
    sink = ConsoleSink(40, COLUMNS, Console(file=out, width=200), now=lambda: now[0])
    for step, bound in ((1, "rollout"), (2, "rollout"), (3, "policy")):
        now[0] += 1200
        sink.log(step, row(0.1 * step, bound))
    now[0] += 3599
    sink.stage("rollout")
    now[0] += 1
    sink.stage("score")
    sink.stage("prm")
    hours = [line.split(" ", 1)[1] for line in out.getvalue().splitlines() if " last " in line]
    assert hours == [
        "last 1 h 00 min: 3 steps finished  3/40 (7.5 %)  outcome 0.20  bound by rollout in 2  12 h 20 min left",
        "last 1 h 00 min: no steps finished  3/40 (7.5 %)  12 h 20 min left",
    ]


def test_a_terminal_has_no_line_an_hour() -> None:
    now = [0.0]
    out = io.StringIO()
    sink = ConsoleSink(40, COLUMNS, Console(file=out, width=200, force_terminal=True), now=lambda: now[0])
    now[0] = 4000.0
    sink.log(1, row(0.1, "rollout"))
    assert " last " not in out.getvalue()


def test_status_and_events_say_where_a_run_stands(tmp_path: Path) -> None:
    sink = StatusSink(tmp_path, "name", 40, {"rollout/outcome": "outcome"}, now=lambda: 5.0)
    sink.message("embedded engine")
    sink.restore(7)
    sink.stage("rollout")
    sink.stage("")
    sink.log(8, {})
    sink.message("warning: step 8: it is odd")
    sink.close()
    assert json.loads((tmp_path / "status.json").read_text()) == {
        "name": "name", "steps": 40, "columns": {"rollout/outcome": "outcome"}, "step": 7,
        "stage": "rollout", "since": 5.0,
    }  # fmt: skip
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["step"], event["kind"], event["text"]) for event in events] == [
        (0, "message", "embedded engine"),
        (7, "start", "goes on after step 7"),
        (8, "warning", "step 8: it is odd"),
    ]


def test_a_status_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where the folder should be")
    sink = StatusSink(tmp_path / "out", "name", 40, {})
    sink.restore(-1)
    sink.stage("rollout")
    sink.message("hello")
    sink.close()
    assert (tmp_path / "out").read_text() == "a file where the folder should be"
