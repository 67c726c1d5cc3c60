"""samples.jsonl: the rollouts, with outcome and credit per token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prime_megatron.config import LogConfig
from prime_megatron.metrics.jsonl import JsonlFile, format_line
from prime_megatron.types import Advantages, RolloutBatch

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class SampleRow:
    """One response as samples.jsonl shows it; the lists have one entry per response token."""

    uid: str
    draw: int
    """The prompt's position in the stream; rows are sorted by it."""
    sample: int
    """Index among the siblings, 0 .. K - 1."""
    version: int
    """Policy version that made it."""
    prompt: str
    response: str
    token_ids: tuple[int, ...]
    finish: str
    outcome: float
    verdict: str
    reason: str
    process_rewards: tuple[float, ...]
    returns: tuple[float, ...]
    advantages: tuple[float, ...]


def sample_rows(batch: RolloutBatch, advantages: Advantages) -> list[SampleRow]:
    """The rows of this data-parallel rank's batch, in its order (pure; gathering them is the caller's)."""
    rewards = advantages.process_rewards_T.tolist()
    returns = advantages.returns_T.tolist()
    values = advantages.advantages_T.tolist()
    ends = batch.cu_seqlens.tolist()[1:]
    rows: list[SampleRow] = []
    for group in batch.groups:
        for index, sample in enumerate(group.samples):
            end = ends[len(rows)]
            span = slice(end - len(sample.token_ids), end)
            rows.append(
                SampleRow(
                    uid=group.prompt.uid,
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
                    process_rewards=tuple(rewards[span]),
                    returns=tuple(returns[span]),
                    advantages=tuple(values[span]),
                )
            )
    assert len(rows) == len(ends), f"{len(rows)} samples in the groups, {len(ends)} sequences in the batch"
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

    def write(self, step: int, rows: Iterable[SampleRow]) -> None:
        """Write the step's rows (of all data-parallel ranks) by prompt and sample, at most log.samples_per_step."""
        if self._file is None:
            return
        ordered = sorted(rows, key=lambda row: (row.draw, row.sample))
        if self._per_step is not None:
            ordered = ordered[: self._per_step]
        self._file.write("".join(format_line(step, vars(row)) for row in ordered))

    def restore(self, step: int) -> None:
        """Go on after this step: rows of later steps are dropped."""
        if self._file is not None:
            self._file.truncate(step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def open_samples_log(output_dir: Path, config: LogConfig, *, rank: int) -> SamplesLog:
    """The run's samples.jsonl, written on rank 0 only."""
    file = JsonlFile(output_dir / SAMPLES_FILE) if rank == 0 else None
    return SamplesLog(file, config.samples_every, config.samples_per_step)
