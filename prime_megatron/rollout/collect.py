"""Generate, verify, filter, until the batch is full; what is left over waits for the next step."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from prime_megatron.algo.filtering import keep_group
from prime_megatron.config import RolloutConfig
from prime_megatron.errors import RunError
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.generate import Draw, Generator
from prime_megatron.rollout.recording import group_from_dict, read_recording
from prime_megatron.rollout.sampling import TRAIN
from prime_megatron.types import Group, Prompt


class Prompts(Protocol):
    """A resumable stream of prompts, the same on every rank."""

    def take(self, count: int) -> list[Prompt]: ...


@dataclass(frozen=True)
class Collected:
    """A full batch and how it came about; the same on every rank."""

    groups: list[Group]
    generated: list[Group]
    """Every group generated in this step, kept or not."""
    rounds: int
    reasons: Counter[str]
    """Groups generated in this step by the filter's verdict: kept, too_easy, too_hard, truncated."""
    carried_in: int
    """Groups of the batch that an earlier step generated."""
    expired: int
    """Waiting groups that grew too old and were dropped."""

    @property
    def pass_rate(self) -> float:
        """Share of the groups generated in this step that passed the filter; 1 when none was needed."""
        return self.reasons["kept"] / len(self.generated) if self.generated else 1.0


class Collector:
    """Fills batches. All its decisions rest on gathered data, so every rank takes the same ones.

    Args:
        prompts: the training stream.
        generator: makes verified groups.
        config: batch size, sampling, filter.
        seed: the run's seed; with (step, prompt, sample) it names every random stream.
    """

    def __init__(self, prompts: Prompts, generator: Generator, config: RolloutConfig, seed: int) -> None:
        self.prompts = prompts
        self.generator = generator
        self.config = config
        self.seed = seed
        self.waiting: list[tuple[int, Group]] = []
        """Surplus groups that passed the filter, with the step that made them."""

    def collect(self, step: int) -> Collected:
        """A batch of ``prompts_per_step`` groups. Collective over the world.

        Raises:
            RunError: the filter still starves the batch after ``filter.max_rounds`` rounds.
        """
        config = self.config
        fresh = [(made, group) for made, group in self.waiting if step - made <= config.filter.max_age]
        expired = len(self.waiting) - len(fresh)
        kept, generated, reasons = list(fresh), [], Counter[str]()
        rounds = 0
        while len(kept) < config.prompts_per_step:
            if rounds == config.filter.max_rounds:
                raise RunError(_starved(step, len(kept), rounds, reasons, config))
            wanted = self._prompts_wanted(config.prompts_per_step - len(kept), rounds, reasons)
            groups = self.generator.groups(self.prompts.take(wanted), self._draw(step))
            rounds += 1
            for group in groups:
                verdict = keep_group(group, config.filter)
                reasons[verdict.reason] += 1
                if verdict.kept:
                    kept.append((step, group))
            generated += groups
        self.waiting = kept[config.prompts_per_step :]
        batch = kept[: config.prompts_per_step]
        return Collected(
            groups=[group for _, group in batch],
            generated=generated,
            rounds=rounds,
            reasons=reasons,
            carried_in=sum(1 for made, _ in batch if made != step),
            expired=expired,
        )

    def state(self) -> dict[str, Any]:
        """The waiting groups, as JSON values."""
        return {"waiting": [{"step": made, "group": asdict(group)} for made, group in self.waiting]}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of ``state``."""
        self.waiting = [(row["step"], group_from_dict(row["group"])) for row in state["waiting"]]

    def _draw(self, step: int) -> Draw:
        sampling = self.config.sampling
        return Draw(
            seed=self.seed,
            step=step,
            purpose=TRAIN,
            sampling=Sampling(sampling.max_response_tokens, sampling.temperature, sampling.top_p),
            num_samples=self.config.samples_per_prompt,
        )

    def _prompts_wanted(self, missing: int, rounds: int, reasons: Counter[str]) -> int:
        """First round: the missing groups times oversample; later: what this step's pass rate predicts."""
        if rounds == 0:
            return math.ceil(missing * self.config.oversample)
        pass_rate = (reasons["kept"] + 1) / (reasons.total() + 2)  # never 0: a rule of succession
        return min(math.ceil(missing / pass_rate), 4 * self.config.prompts_per_step)


class ReplayCollector:
    """Serves recorded groups in place of generation, so that two runs can train on the same rollouts."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.steps = read_recording(path)

    def collect(self, step: int) -> Collected:
        """The recorded batch of a step.

        Raises:
            RunError: the recording does not hold the step.
        """
        if step not in self.steps:
            raise RunError(f"{self.path}: the recording has no step {step}; it holds {sorted(self.steps)}")
        groups = self.steps[step]
        return Collected(groups, groups, 0, Counter(kept=len(groups)), 0, 0)

    def state(self) -> dict[str, Any]:
        """A recording has no state of its own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def _starved(step: int, kept: int, rounds: int, reasons: Counter[str], config: RolloutConfig) -> str:
    counts: Sequence[str] = [f"{reasons[key]} {key.replace('_', ' ')}" for key in ("too_easy", "too_hard", "truncated")]
    rate = 100.0 * reasons["kept"] / max(reasons.total(), 1)
    return (
        f"step {step}: {kept} of {config.prompts_per_step} prompts after {rounds} rounds; pass rate {rate:.1f} % "
        f"({', '.join(counts)}); widen rollout.filter, raise rollout.filter.max_rounds, or use other prompts"
    )
