"""samples.jsonl: the rollouts, with outcome and credit per token.

A response's text is on the rank that decoded it and its credit on the rank that trained on it; the first rank writes
the file. So every rank picks the responses of a step (`SamplesLog.choose`), gives its own credit for them
(`credits_of`), and the first rank joins both (`sample_rows`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.config import TrainLogConfig
from prime_megatron.metrics.jsonl import JsonlFile, format_line
from prime_megatron.types import Advantages, Group, RolloutBatch

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Credit:
    """What one response earned; the lists have one entry per response token."""

    draw: int
    """The prompt's position in the stream."""
    sample: int
    """Index among the siblings, 0 .. K - 1."""
    process_rewards: tuple[float, ...]
    returns: tuple[float, ...]
    advantages: tuple[float, ...]


@dataclass(frozen=True)
class SampleRow:
    """One response as samples.jsonl shows it; the lists have one entry per response token."""

    uid: str
    data_source: str
    """Of the prompt's row: which data set it is from."""
    draw: int
    """The prompt's position in the stream; rows are sorted by it."""
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
    """The rows of the chosen responses, in their order; the groups with their texts, the credit of all ranks."""
    by_response = {(credit.draw, credit.sample): credit for credit in credits}
    rows: list[SampleRow] = []
    for group in chosen:
        for index, sample in enumerate(group.samples):
            credit = by_response[group.prompt.draw, index]
            rows.append(
                SampleRow(
                    uid=group.prompt.uid,
                    data_source=group.prompt.data_source,
                    draw=group.prompt.draw,
                    sample=index,
                    version=sample.version,
                    prompt=group.prompt.text,
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
            )
    return rows


class SamplesLog:
    """Appends rows to samples.jsonl; without a file (every rank but the first) it does nothing."""

    def __init__(self, file: JsonlFile | None, every: int, per_step: int | None) -> None:
        self._file = file
        self._every = every
        self._per_step = per_step

    def wants(self, step: int) -> bool:
        """Whether this step's samples are written; the same on every rank."""
        return self._every > 0 and step % self._every == 0

    def choose(self, groups: Iterable[Group]) -> list[Group]:
        """What is written of these groups: by prompt and sample, at most log.samples_per_step; the last one is cut."""
        chosen: list[Group] = []
        left = self._per_step
        for group in sorted(groups, key=lambda group: group.prompt.draw):
            if left is not None and left < len(group.samples):
                group = dataclasses.replace(group, samples=group.samples[:left])
            if group.samples:
                chosen.append(group)
            left = left and left - len(group.samples)
        return chosen

    def write(self, step: int, rows: Iterable[SampleRow]) -> None:
        """Write the step's rows."""
        if self._file is not None:
            self._file.write("".join(format_line(step, vars(row)) for row in rows))

    def restore(self, step: int) -> None:
        """Go on after this step: rows of later steps are dropped."""
        if self._file is not None:
            self._file.truncate(step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def open_samples_log(output_dir: Path, config: TrainLogConfig, *, rank: int) -> SamplesLog:
    """The run's samples.jsonl, written on rank 0 only."""
    file = JsonlFile(output_dir / SAMPLES_FILE) if rank == 0 else None
    return SamplesLog(file, config.samples_every, config.samples_per_step)
