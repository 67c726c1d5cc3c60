"""Clock, metrics.jsonl, samples.jsonl, sinks, summary, FLOPs."""

from __future__ import annotations

import io
import json
import math
import struct
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from prime_megatron.config import LogConfig, TrainLogConfig
from prime_megatron.errors import InputError
from prime_megatron.metrics import (
    TRAIN_COLUMNS,
    Clock,
    MetricsLog,
    Summary,
    credits_of,
    measure_peak_flops,
    model_flops,
    open_metrics_log,
    open_samples_log,
    print_summary,
    read_jsonl,
    sample_rows,
    truncate_jsonl,
    write_summary,
)
from prime_megatron.metrics.clock import StepTimes
from prime_megatron.metrics.jsonl import format_line
from prime_megatron.metrics.slurm import SlurmCommentSink
from prime_megatron.types import Advantages, Group, Prompt, RolloutBatch, Sample


class FakeTime:
    """A clock that moves only when told."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def test_clock_charges_inner_time_to_the_inner_stage_only() -> None:
    time = FakeTime()
    clock = Clock(now=time)
    time.pass_s(1)
    with clock("outer"):
        time.pass_s(2)
        with clock("inner"):
            time.pass_s(4)
        time.pass_s(8)
    time.pass_s(16)
    with clock("outer"):
        time.pass_s(32)
    times = clock.lap()
    assert times.stage_s == {"outer": 2.0 + 8.0 + 32.0, "inner": 4.0}
    assert times.wall_s == 63.0
    assert times.metrics() == {
        "time/outer_s": 42.0, "time/inner_s": 4.0, "time/step_s": 63.0,
        "time/bound_stage": "outer", "time/bound_share": 42 / 63, "time/bound_lead_s": 42.0 - 17.0,
    }  # fmt: skip


def test_clock_laps_start_anew_and_totals_add_up_over_a_restore() -> None:
    time = FakeTime()
    clock = Clock(now=time)
    for seconds in (1.0, 2.0):
        with clock("rollout"):
            time.pass_s(seconds)
        assert clock.lap().stage_s == {"rollout": seconds}
    assert clock.total_s == {"rollout": 3.0}
    clock.restore({"rollout": 10.0, "save": 1.0}, 20.0)
    assert clock.total_s == {"rollout": 13.0, "save": 1.0}
    assert clock.total_wall_s == 23.0


def test_clock_names_the_time_between_stages_where_it_is_the_longest() -> None:
    time = FakeTime()
    clock = Clock(now=time)
    assert clock.lap().metrics() == {"time/step_s": 0.0}
    with clock("a"):
        time.pass_s(3)
    time.pass_s(5)
    assert clock.lap().bound() == {
        "time/bound_stage": "(between stages)", "time/bound_share": 5 / 8, "time/bound_lead_s": 2.0
    }  # fmt: skip


def test_clock_tells_each_stage_from_end_to_end() -> None:
    time, spans = FakeTime(), []
    clock = Clock(on_span=lambda *span: spans.append(span), now=time)
    with clock("outer"):
        time.pass_s(2)
        with clock("inner"):
            time.pass_s(4)
        time.pass_s(8)
    assert spans == [("inner", 102.0, 106.0), ("outer", 100.0, 114.0)]


def test_clock_stage_nested_in_itself_counts_once() -> None:
    time = FakeTime()
    clock = Clock(now=time)
    with clock("a"), clock("a"):
        time.pass_s(3)
    assert clock.lap().stage_s == {"a": 3.0}


def test_clock_ends_a_stage_after_an_exception_and_reports_stages() -> None:
    time, seen = FakeTime(), []
    clock = Clock(on_stage=seen.append, now=time)
    with pytest.raises(KeyError), clock("outer"), clock("inner"):
        time.pass_s(5)
        raise KeyError
    assert seen == ["outer", "inner", "outer", ""]
    assert clock.stage == ""
    assert clock.lap().stage_s == {"inner": 5.0, "outer": 0.0}


def test_clock_waits_for_the_device_before_it_reads_the_time() -> None:
    time = FakeTime()
    clock = Clock(synchronize=lambda: time.pass_s(7), now=time)
    with clock("kernel"):
        pass
    # The wait at the end belongs to the stage; the one at the start to what was queued before it.
    assert clock.lap().stage_s == {"kernel": 7.0}


def same_bits(a: float, b: float) -> bool:
    return struct.pack("<d", a) == struct.pack("<d", b) or (math.isnan(a) and math.isnan(b))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=20))
def test_floats_survive_a_line_bit_by_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    line = format_line(3, {f"v{i}": value for i, value in enumerate(values)} | {"list": values})
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    path = tmp_path_factory.mktemp("line") / "m.jsonl"
    path.write_text(line)
    row = read_jsonl(path)[0]
    assert all(same_bits(row[f"v{i}"], value) for i, value in enumerate(values))
    assert all(same_bits(a, b) for a, b in zip(row["list"], values, strict=True))


def test_line_has_step_first_then_sorted_keys_and_plain_numbers() -> None:
    line = format_line(2, {"b": torch.tensor(1.5), "a": np.float32(0.5), "c": None, "d": True, "e": np.int64(4)})
    assert line == '{"step": 2, "a": 0.5, "b": 1.5, "c": null, "d": true, "e": 4}\n'
    with pytest.raises(TypeError, match=r"loss: .*dict"):
        format_line(0, {"loss": {}})


def test_text_that_spells_a_number_stays_text(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text(format_line(1, {"response": "NaN", "outcome": math.nan}))
    row = read_jsonl(tmp_path / "s.jsonl")[0]
    assert row["response"] == "NaN"
    assert math.isnan(row["outcome"])


def opened(
    tmp_path: Path, rank: int = 0, console: Console | None = None, slurm_comment: bool = False, **log: object
) -> MetricsLog:
    return open_metrics_log(
        tmp_path,
        LogConfig(**{"tensorboard": False} | log),
        rank=rank,
        name="test",
        num_steps=10,
        columns=TRAIN_COLUMNS,
        run_config={},
        slurm_comment=slurm_comment,
        console=Console(file=io.StringIO()) if console is None else console,
    )


def test_log_writes_a_flushed_line_a_step(tmp_path: Path) -> None:
    log = opened(tmp_path)
    log.log(0, {"eval/accuracy": 0.5})
    log.log(1, {"policy/loss": 0.25})
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 0, "eval/accuracy": 0.5},
        {"step": 1, "policy/loss": 0.25},
    ]
    with pytest.raises(AssertionError, match="step 1 after step 1"):
        log.log(1, {})
    log.close()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with opened(tmp_path, rank=3) as log:
        log.stage("rollout")
        log.message("hello")
        log.log(1, {"a": 1.0})
        log.restore(1)
    samples = open_samples_log(tmp_path, TrainLogConfig(), rank=3)
    samples.write(1, [])
    samples.restore(0)
    samples.close()
    assert list(tmp_path.iterdir()) == []


def test_restore_drops_later_steps_and_a_torn_line(tmp_path: Path) -> None:
    with opened(tmp_path) as log:
        for step in range(5):
            log.log(step, {"x": step * 0.1})
    path = tmp_path / "metrics.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(before) + b'{"step": 5, "x"')
    with opened(tmp_path) as log:
        log.restore(2)
        log.log(3, {"x": -1.0})
    assert path.read_bytes() == b"".join(before[:3]) + b'{"step": 3, "x": -1.0}\n'


@pytest.mark.parametrize("torn", [b'{"step": 2, "x": 0.', b"\x00\x00\x00\n", b"[1]\n", b'"step"\n'])
def test_truncate_stops_at_a_damaged_line(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "m.jsonl"
    good = format_line(1, {"x": 1}).encode()
    path.write_bytes(good + torn)
    truncate_jsonl(path, 9)
    assert path.read_bytes() == good
    truncate_jsonl(tmp_path / "absent.jsonl", 1)


@given(st.lists(st.integers(0, 4), max_size=12), st.integers(-1, 5))
def test_truncate_keeps_exactly_the_steps_up_to_the_restored_one(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[int], step: int
) -> None:
    steps = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    path = tmp_path_factory.mktemp("m") / "m.jsonl"
    path.write_text("".join(format_line(s, {"i": i}) for i, s in enumerate(steps)))
    truncate_jsonl(path, step)
    assert [row["step"] for row in read_jsonl(path)] == [s for s in steps if s <= step]


def test_tensorboard_holds_the_finite_numbers_and_a_resumed_run_replaces_later_steps(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened(tmp_path, tensorboard=True) as log:
        for step in range(4):
            log.log(step, {"loss": float(step), "bad": math.nan, "name": "text", "none": None})
    with opened(tmp_path, tensorboard=True) as log:
        log.restore(1)
        log.log(2, {"loss": 20.0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 1.0), (2, 20.0)]


@pytest.mark.parametrize(
    ("package", "module", "config"),
    [
        ("wandb", "wandb", {"wandb_project": "p"}),
        ("tensorboard", "torch.utils.tensorboard", {"tensorboard": True}),
        ("mlflow-skinny", "mlflow", {"mlflow_experiment": "e"}),
    ],
)
def test_missing_package_is_one_line_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, module: str, config: dict
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"pip install {package}") as caught:
        opened(tmp_path, **config)
    assert "\n" not in str(caught.value)
    assert list(config)[0] in str(caught.value)


class FakeWandb:
    """As much of wandb as the sink uses."""

    def __init__(self) -> None:
        self.inits: list[dict] = []
        self.logged: list[dict] = []
        self.util = self
        self.finished = 0

    def generate_id(self) -> str:
        return f"id{len(self.inits)}"

    def init(self, **kwargs: object) -> FakeWandb:
        self.inits.append(kwargs)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished += 1


def test_wandb_run_is_continued_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with opened(tmp_path, wandb_project="p") as log:
        log.log(1, {"a": 1.0, "text": "x"})
    with opened(tmp_path, wandb_project="p") as log:
        log.restore(0)
        log.log(1, {"a": 2.0})
    assert [init["id"] for init in fake.inits] == ["id0", "id0"]
    assert fake.inits[0]["project"] == "p"
    assert fake.logged == [{"step": 1, "a": 1.0}, {"step": 1, "a": 2.0}]
    assert fake.finished == 2


def test_console_prints_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    with opened(tmp_path, console=Console(file=out, width=60)) as log:
        log.stage("rollout")
        log.log(
            3, {"rollout/outcome": 0.51234, "prm/accuracy": None, "speed/tokens_per_s": 12345.6, "time/step_s": 2.0}
        )
        times = StepTimes({"rollout": 3.0, "policy": 1.0}, 6.0)
        log.log(4, times.metrics())
        log.warn("[red] brackets are text " + "x" * 60)
    times, texts = zip(*(line.split(" ", 1) for line in out.getvalue().splitlines()), strict=True)
    assert texts == (
        "step  3/10  outcome 0.512  tok/s 12,346  s 2.0  14 s left",  # 7 more of 2 s
        "step  4/10  s 6.0  bound by rollout 50 % (+1.0 s)  24 s left",  # 6 more of 4 s
        "warning: [red] brackets are text " + "x" * 60,
    )
    assert all(datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ") for time in times)


def test_comment_of_a_slurm_job_once_a_minute() -> None:
    told: list[tuple[str, str]] = []
    now = FakeTime()
    sink = SlurmCommentSink("7", 200, now, lambda job, text: told.append((job, text)))
    for step, seconds, values in (
        (10, 0, {"eval/accuracy": 0.25}),
        (11, 30, {}),
        (12, 31, {"eval/accuracy": None}),  # 61 s for two steps: 188 are left
        (13, 59, {"eval/accuracy": 0.5}),
        (200, 0, {}),
    ):
        now.pass_s(seconds)
        sink.log(step, values | ({"time/step_s": float(seconds)} if seconds else {}))
        sink.close()
    assert told == [
        ("7", "step 10/200, accuracy 0.250"),
        ("7", "step 12/200, 1 h 36 min left, accuracy 0.250"),
        ("7", "step 200/200, accuracy 0.500"),
    ]


def test_comment_only_in_a_slurm_job_that_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    calls = tmp_path / "calls"
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {calls}\n')
    (tmp_path / "scontrol").chmod(0o755)
    for wanted in (False, True):
        with opened(tmp_path / "out", slurm_comment=wanted) as log:
            log.log(1, {})
    assert calls.read_text() == "update JobId=7 Comment=step 1/10\n"
    monkeypatch.delenv("SLURM_JOB_ID")
    with opened(tmp_path / "other", slurm_comment=True) as log:
        log.log(1, {})
    assert calls.read_text().count("\n") == 1


def test_console_shows_the_stage_on_a_terminal_and_cleans_up(tmp_path: Path) -> None:
    out = io.StringIO()
    with opened(tmp_path, console=Console(file=out, force_terminal=True, width=80)) as log:
        clock = Clock(on_stage=log.stage)
        with clock("rollout"):
            log.progress("rollout", 3, 8)
        log.log(1, {})
    text = out.getvalue()
    assert "step 1/10  rollout" in text
    assert "step  1/10" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is back


def batch_of(groups: tuple[Group, ...]) -> tuple[RolloutBatch, Advantages]:
    """The packed batch of these groups; process rewards are the token's index, returns and advantages multiples."""
    tokens: list[int] = []
    mask: list[bool] = []
    bounds = [0]
    for group in groups:
        for sample in group.samples:
            tokens += [*group.prompt.token_ids, *sample.token_ids]
            mask += [False] * len(group.prompt.token_ids) + [True] * len(sample.token_ids)
            bounds.append(len(tokens))
    count = len(bounds) - 1
    index_T = torch.arange(len(tokens), dtype=torch.float32)
    step_end_T = torch.tensor(tokens) == 1
    step_end_T[torch.tensor(bounds[1:]) - 1] = True
    mask_T = torch.tensor(mask)
    batch = RolloutBatch(
        tokens_T=torch.tensor(tokens),
        cu_seqlens=torch.tensor(bounds),
        response_mask_T=mask_T,
        group_N=torch.zeros(count, dtype=torch.int64),
        outcome_N=torch.zeros(count),
        truncated_N=torch.zeros(count, dtype=torch.bool),
        version_N=torch.zeros(count, dtype=torch.int64),
        engine_logprobs_T=torch.zeros(len(tokens)),
        step_end_T=step_end_T,
        num_tokens=sum(mask),
        num_sequences=count,
        groups=groups,
    )
    masked_T = torch.where(mask_T, index_T, 0.0)
    return batch, Advantages(masked_T, masked_T * 10, masked_T * 100)


def group_of(draw: int, responses: list[tuple[int, ...]]) -> Group:
    prompt = Prompt(f"0-{draw}", draw, (5, 6), "math", "4", "set", text=f"prompt {draw}")
    samples = tuple(
        Sample(
            ids, tuple(-0.5 for _ in ids), "stop", 7, text=f"r{i}", outcome=float(i % 2), verdict="wrong", reason="w"
        )
        for i, ids in enumerate(responses)
    )
    return Group(prompt, samples)


def test_sample_rows_take_each_response_its_own_tokens() -> None:
    groups = group_of(4, [(7, 8), (9,)]), group_of(2, [(1, 2, 3)])
    rows = sample_rows(groups, credits_of(*batch_of(groups), groups, torch.tensor([0.25, 0.5, 0.75])))
    # tokens: 5 6 7 8 | 5 6 9 | 5 6 1 2 3
    assert [row.process_rewards for row in rows] == [(2.0, 3.0), (6.0,), (9.0, 10.0, 11.0)]
    assert [row.returns for row in rows] == [(20.0, 30.0), (60.0,), (90.0, 100.0, 110.0)]
    assert [row.advantages for row in rows] == [(200.0, 300.0), (600.0,), (900.0, 1000.0, 1100.0)]
    assert [(row.uid, row.sample, row.token_ids) for row in rows] == [
        ("0-4", 0, (7, 8)),
        ("0-4", 1, (9,)),
        ("0-2", 0, (1, 2, 3)),
    ]
    assert (rows[1].outcome, rows[1].version, rows[1].prompt, rows[1].response) == (1.0, 7, "prompt 4", "r1")
    assert {row.data_source for row in rows} == {"set"}
    assert [row.prm_probability for row in rows] == [0.25, 0.5, 0.75]
    assert [row.step_ends for row in rows] == [(1,), (0,), (0, 2)]


def test_credit_is_given_for_the_chosen_responses_of_this_rank() -> None:
    here, elsewhere = (group_of(4, [(7, 8), (9,)]), group_of(2, [(1, 2, 3)])), group_of(3, [(1,)])
    batch = batch_of(here)
    found = credits_of(*batch, [elsewhere, here[0]], None)
    assert [(credit.draw, credit.sample, credit.prm_probability) for credit in found] == [(4, 0, None), (4, 1, None)]
    assert credits_of(*batch, [], None) == []
    assert len(credits_of(*batch, here, None)) == 3


def test_samples_log_orders_limits_and_restores(tmp_path: Path) -> None:
    groups = group_of(4, [(7, 8), (9,)]), group_of(2, [(1, 2, 3)])
    limited = open_samples_log(tmp_path, TrainLogConfig(samples_per_step=2), rank=1)
    rows = sample_rows(limited.choose(groups), credits_of(*batch_of(groups), groups, None))
    assert [(group.prompt.draw, len(group.samples)) for group in limited.choose(groups)] == [(2, 1), (4, 2)]
    one = open_samples_log(tmp_path, TrainLogConfig(samples_per_step=1), rank=1)
    assert [group.prompt.draw for group in one.choose(groups)] == [2]
    everything = open_samples_log(tmp_path, TrainLogConfig(), rank=1)
    assert [(group.prompt.draw, len(group.samples)) for group in everything.choose(groups)] == [(2, 1), (4, 2)]
    log = open_samples_log(tmp_path, TrainLogConfig(samples_every=2, samples_per_step=2), rank=0)
    assert [log.wants(step) for step in range(1, 5)] == [False, True, False, True]
    assert not open_samples_log(tmp_path, TrainLogConfig(samples_every=0), rank=0).wants(4)
    log.write(2, rows)
    log.write(4, rows)
    log.restore(3)
    log.write(4, rows[2:])
    log.close()
    found = read_jsonl(tmp_path / "samples.jsonl")
    assert [(row["step"], row["uid"], row["sample"]) for row in found] == [
        (2, "0-2", 0), (2, "0-4", 0), (2, "0-4", 1), (4, "0-4", 1),
    ]  # fmt: skip
    assert found[0]["process_rewards"] == [9.0, 10.0, 11.0]


def summary(**changes: object) -> Summary:
    values = {
        "steps": 3, "seed": 1, "accuracy_before": 0.25, "accuracy_after": 0.75, "prm_accuracy": 0.5,
        "tokens_per_s": 1234.0, "stage_seconds": {"rollout": 6.0, "policy": 2.0}, "wall_s": 10.0,
        "files": ("runs/x/metrics.jsonl",),
    }  # fmt: skip
    return Summary(**values | changes)  # type: ignore[arg-type]


def test_summary_file_has_the_promised_keys_and_replaces_the_old_one(tmp_path: Path) -> None:
    write_summary(tmp_path, summary())
    path = write_summary(tmp_path, summary(accuracy_after=0.5, figures={"mfu": torch.tensor(0.25)}))
    row = json.loads(path.read_text())
    assert path.name == "summary.json"
    assert (row["accuracy_before"], row["accuracy_after"], row["prm_accuracy"]) == (0.25, 0.5, 0.5)
    assert (row["tokens_per_s"], row["stage_seconds"]) == (1234.0, {"rollout": 6.0, "policy": 2.0})
    assert row["figures"] == {"mfu": 0.25}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_closing_table_shows_shares_and_files() -> None:
    out = io.StringIO()
    print_summary(summary(prm_accuracy=None), Console(file=out, width=80))
    lines = [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]
    for line in (
        "held-out accuracy before 25.0 %", "held-out accuracy after 75.0 %", "PRM accuracy -", "tokens/s 1,234",
        "rollout 60.0 % 6.0 s", "policy 20.0 % 2.0 s", "(between stages) 20.0 % 2.0 s", "runs/x/metrics.jsonl",
    ):  # fmt: skip
        assert line in lines
    assert "restarts" not in out.getvalue()
    print_summary(summary(engine_restarts=2), Console(file=out, width=80))
    assert "engine restarts 2" in [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]


def test_model_flops_against_a_count_of_every_matrix_product() -> None:
    layers, heads, head_size, hidden, ffn, vocab = 3, 4, 8, 24, 40, 50
    width = heads * head_size
    lengths = [7, 1, 12]
    params = layers * (4 * hidden * width + 3 * hidden * ffn) + vocab * hidden
    forward = 0
    for length in lengths:
        for _ in range(layers):
            forward += 2 * length * hidden * width * 4  # q, k, v, o
            forward += 2 * length * hidden * ffn * 3  # gate, up, down
            # Scores and values: half of the square is masked.
            forward += 2 * (2 * heads * length * length * head_size) // 2
        forward += 2 * length * hidden * vocab
    counted = model_flops(
        num_matmul_params=params,
        num_layers=layers,
        attention_width=width,
        lengths=lengths,
        num_forward=2,
        num_backward=1,
    )
    assert counted == forward * 4


def test_measured_peak_is_a_rate_of_that_product() -> None:
    calls = []
    peak = measure_peak_flops(lambda: calls.append(1), torch.device("cpu"), torch.float32, size=64, repeats=3)
    assert 1e6 < peak < 1e16
    assert len(calls) == 6
