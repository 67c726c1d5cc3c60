"""samples.jsonl: what was generated, with truth, verdict and reason; of the batch also the credit per token.

A row is of one `kind`: "trained" (in the step's batch), "rejected" (the filter dropped its prompt), "held_out" (the
greedy answer of an evaluation), "held_out_sampled" (a sample for its pass@k).

A response's text is on the rank that decoded it and its credit on the rank that trained on it; the first rank writes
the file. So every rank picks the responses (`SamplesLog.choose`), gives its own credit for those of the batch
(`credits_of`), and the first rank joins all (`sample_rows`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.config import TrainLogConfig
from prime_megatron.metrics.jsonl import JsonlFile, format_line
from prime_megatron.types import Advantages, Group, RolloutBatch, Sample

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Credit:
    """What one response earned; the lists have one entry per response token."""

    draw: int
    """The prompt's position in the stream."""
    sample: int
    """Index among the siblings, 0 .. K - 1."""
    process_rewards: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()


@dataclass(frozen=True)
class SampleRow:
    """One response as samples.jsonl shows it; the lists have one entry per response token."""

    kind: str
    """"trained", "rejected", "held_out" or "held_out_sampled"."""
    filter: str | None
    """What the filter said of the prompt ("kept", "too_easy", ...); None of a held-out one."""
    uid: str
    data_source: str
    """Of the prompt's row: which data set it is from."""
    ability: str
    """Of the prompt's row: which verifier judged it."""
    ground_truth: str
    draw: int
    """The prompt's position in the stream, or among the held-out rows; a step's rows of a kind are sorted by it."""
    sample: int
    """Index among the siblings, 0 .. K - 1."""
    version: int
    """Policy version that made it."""
    prompt: str
    response: str | None
    token_ids: tuple[int, ...]
    finish: str
    outcome: float
    verdict: str
    reason: str | None
    process_rewards: tuple[float, ...]
    """As `returns` and `advantages`: empty but for trained ones."""
    returns: tuple[float, ...]
    advantages: tuple[float, ...]


def credits_of(batch: RolloutBatch, advantages: Advantages, chosen: Sequence[Group]) -> list[Credit]:
    """The credit of those of the chosen responses that are in this data-parallel rank's batch."""
    rewards = advantages.process_rewards_T.tolist()
    returns = advantages.returns_T.tolist()
    values = advantages.advantages_T.tolist()
    wanted = {group.prompt.draw: len(group.samples) for group in chosen}
    ends = iter(batch.cu_seqlens.tolist()[1:])
    found: list[Credit] = []
    for group in batch.groups:
        for index, (sample, end) in enumerate(zip(group.samples, ends)):
            span = slice(end - len(sample.token_ids), end)
            if index < wanted.get(group.prompt.draw, 0):
                own = tuple(rewards[span]), tuple(returns[span]), tuple(values[span])
                found.append(Credit(group.prompt.draw, index, *own))
    assert next(ends, None) is None, "more sequences in the batch than samples in its groups"
    return found


def sample_rows(chosen: Sequence[Group], credits: Iterable[Credit]) -> list[SampleRow]:
    """The rows of the chosen responses of the batch, in order; the groups with their texts, the credit of all ranks."""
    by_response = {(credit.draw, credit.sample): credit for credit in credits}
    return [
        _row("trained", "kept", group, sample, by_response[group.prompt.draw, index])
        for group in chosen
        for index, sample in enumerate(group.samples)
    ]


def rejected_rows(rejected: Sequence[tuple[Group, str]]) -> list[SampleRow]:
    """A row for each (group, what the filter said): its first response that is not right in full, or its first."""
    rows = []
    for group, said in rejected:
        index = next((i for i, sample in enumerate(group.samples) if sample.outcome < 1.0), 0)
        rows.append(_row("rejected", said, group, group.samples[index], Credit(group.prompt.draw, index)))
    return rows


def held_out_rows(kind: str, answered: Sequence[Group]) -> list[SampleRow]:
    """The rows of an evaluation's answers, in order; kind: "held_out" or "held_out_sampled"."""
    return [
        _row(kind, None, group, sample, Credit(group.prompt.draw, index))
        for group in answered
        for index, sample in enumerate(group.samples)
    ]


def _row(kind: str, said: str | None, group: Group, sample: Sample, credit: Credit) -> SampleRow:
    prompt = group.prompt
    return SampleRow(
        kind=kind,
        filter=said,
        uid=prompt.uid,
        data_source=prompt.data_source,
        ability=prompt.ability,
        ground_truth=prompt.ground_truth,
        draw=prompt.draw,
        sample=credit.sample,
        version=sample.version,
        prompt=prompt.text,
        response=sample.text,
        token_ids=sample.token_ids,
        finish=sample.finish,
        outcome=sample.outcome,
        verdict=sample.verdict,
        reason=sample.reason,
        process_rewards=credit.process_rewards,
        returns=credit.returns,
        advantages=credit.advantages,
    )


class SamplesLog:
    """Appends rows to samples.jsonl; without a file (every rank but the first) it does nothing."""

    def __init__(self, file: JsonlFile | None, config: TrainLogConfig) -> None:
        self._file = file
        self._config = config

    def wants(self, step: int) -> bool:
        """Whether this step's samples are written; the same on every rank."""
        return self.on and step % self._config.samples_every == 0

    @property
    def on(self) -> bool:
        """Whether there is a samples.jsonl at all: evaluations, and a step that starves, are always in it."""
        return self._config.samples_every > 0

    def choose(self, groups: Iterable[Group]) -> list[Group]:
        """What is written of a batch: by prompt and sample, at most log.samples_per_step; the last one is cut."""
        return _first(groups, self._config.samples_per_step)

    def choose_held_out(self, groups: Iterable[Group]) -> list[Group]:
        """What is written of an evaluation: as `choose`, at most log.held_out_per_eval."""
        return _first(groups, self._config.held_out_per_eval)

    def choose_rejected(self, rejected: Iterable[tuple[Group, str]]) -> list[tuple[Group, str]]:
        """The groups of which a response is written: log.rejected_per_step of them, as the filter met them."""
        return list(rejected)[: self._config.rejected_per_step]

    def write(self, step: int, rows: Iterable[SampleRow]) -> None:
        """Write rows of the step."""
        lines = "".join(format_line(step, vars(row)) for row in rows)
        if self._file is not None and lines:
            self._file.write(lines)

    def restore(self, step: int) -> None:
        """Go on after this step: rows of later steps are dropped."""
        if self._file is not None:
            self._file.truncate(step)

    @property
    def num_bytes(self) -> int:
        """Size of the file, for `cut`; 0 without one."""
        return self._file.path.stat().st_size if self._file is not None and self._file.path.exists() else 0

    def cut(self, num_bytes: int) -> None:
        """Drop what was written after the file had this size, in the last step that it holds."""
        if num_bytes < self.num_bytes and self._file is not None:
            self._file.close()
            os.truncate(self._file.path, num_bytes)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _first(groups: Iterable[Group], most: int | None) -> list[Group]:
    """The first responses, by prompt and sample; None: all."""
    chosen: list[Group] = []
    left = most
    for group in sorted(groups, key=lambda group: group.prompt.draw):
        if left is not None and left < len(group.samples):
            group = dataclasses.replace(group, samples=group.samples[:left])
        if group.samples:
            chosen.append(group)
        left = left and left - len(group.samples)
    return chosen


def open_samples_log(output_dir: Path, config: TrainLogConfig, *, rank: int) -> SamplesLog:
    """The run's samples.jsonl, written on rank 0 only."""
    return SamplesLog(JsonlFile(output_dir / SAMPLES_FILE) if rank == 0 else None, config)
