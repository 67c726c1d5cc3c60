"""samples.jsonl: what was generated, with truth, verdict and reason; of the batch also the credit per token.

With each token's end in the text, a reader needs no tokenizer: token t is response[token_ends[t - 1] : token_ends[t]].

A row is of one `kind`: "trained" (in the step's batch), "rejected" (the filter dropped its prompt), "held_out" (the
greedy answer of an evaluation), "held_out_sampled" (a sample for its pass@k).

A response's text is on the rank that decoded it and its credit on the rank that trained on it; the first rank writes
the file. So every rank picks the responses (`SamplesLog.choose`), gives its own credit for those of the batch
(`credits_of`), and the first rank joins all (`sample_rows`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from prime_megatron.config import TrainLogConfig
from prime_megatron.metrics.jsonl import JsonlFile, format_line
from prime_megatron.types import Advantages, Group, RolloutBatch, Sample

SAMPLES_FILE = "samples.jsonl"


@dataclass(frozen=True)
class Credit:
    """What one response earned, see `SampleRow`."""

    draw: int
    """The prompt's position in the stream."""
    sample: int
    """Index among the siblings, 0 .. K - 1."""
    prm_probability: float | None = None
    step_ends: tuple[int, ...] = ()
    process_rewards: tuple[float, ...] = ()
    returns: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()


@dataclass(frozen=True)
class SampleRow:
    """One response as samples.jsonl shows it; the lists, step_ends aside, have one entry per response token."""

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
    token_ends: tuple[int, ...] | None
    """Where in the response each token ends, in characters (``data.token_ends``)."""
    finish: str
    outcome: float
    verdict: str
    reason: str | None
    prm_probability: float | None
    """The PRM's probability of outcome 1, before its update (prm/ce's p); None where no PRM judged the response."""
    step_ends: tuple[int, ...]
    """The steps' last tokens, from 0, with prm.granularity step; else the last one. Empty but for trained ones."""
    process_rewards: tuple[float, ...]
    """As `returns` and `advantages`: empty but for trained ones."""
    returns: tuple[float, ...]
    advantages: tuple[float, ...]


def credits_of(
    batch: RolloutBatch, advantages: Advantages, chosen: Sequence[Group], prm_probability_N: Tensor | None
) -> list[Credit]:
    """The credit of those of the chosen responses that are in this data-parallel rank's batch.

    prm_probability_N: of every response of the batch, [N]; None without a PRM.
    """
    rewards = advantages.process_rewards_T.tolist()
    returns = advantages.returns_T.tolist()
    values = advantages.advantages_T.tolist()
    wanted = {group.prompt.draw for group in chosen}
    closes = batch.step_end_T.tolist()
    probabilities = [None] * batch.outcome_N.numel() if prm_probability_N is None else prm_probability_N.tolist()
    places = iter(zip(batch.cu_seqlens.tolist()[1:], probabilities, strict=True))
    found: list[Credit] = []
    for group in batch.groups:
        for index, (sample, (end, probability)) in enumerate(zip(group.samples, places)):
            span = slice(end - len(sample.token_ids), end)
            if group.prompt.draw in wanted:
                steps = tuple(place for place, closed in enumerate(closes[span]) if closed)
                own = tuple(rewards[span]), tuple(returns[span]), tuple(values[span])
                found.append(Credit(group.prompt.draw, index, probability, steps, *own))
    assert next(places, None) is None, "more sequences in the batch than samples in its groups"
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
        token_ends=sample.token_ends,
        finish=sample.finish,
        outcome=sample.outcome,
        verdict=sample.verdict,
        reason=sample.reason,
        prm_probability=credit.prm_probability,
        step_ends=credit.step_ends,
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
        """What is written of a batch: whole groups, by prompt, until there are log.samples_per_step responses."""
        return _first(groups, self._config.samples_per_step)

    def choose_held_out(self, groups: Iterable[Group]) -> list[Group]:
        """What is written of an evaluation: as `choose`, with log.held_out_per_eval."""
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
    """The first groups, by prompt, until they have so many responses; None: all."""
    chosen: list[Group] = []
    count = 0
    for group in sorted(groups, key=lambda group: group.prompt.draw):
        if most is not None and count >= most:
            break
        chosen.append(group)
        count += len(group.samples)
    return chosen


def open_samples_log(output_dir: Path, config: TrainLogConfig, *, rank: int) -> SamplesLog:
    """The run's samples.jsonl, written on rank 0 only."""
    return SamplesLog(JsonlFile(output_dir / SAMPLES_FILE) if rank == 0 else None, config)
