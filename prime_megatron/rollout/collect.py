"""Generate, verify, filter, until the batch is full; what is left over waits for the next step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from prime_megatron.algo.filtering import FilterReason, FilterTally, keep_group, prompts_to_request
from prime_megatron.config import RolloutConfig
from prime_megatron.errors import RunError
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.exchange import on_first, with_texts
from prime_megatron.rollout.generate import Draw, Generator
from prime_megatron.rollout.recording import group_from_dict, read_recording
from prime_megatron.rollout.sampling import TRAIN
from prime_megatron.rollout.starved import starved_message
from prime_megatron.types import Group, Prompt
from prime_megatron.verify import FAILURES, VERDICTS


class Prompts(Protocol):
    """A resumable stream of prompts, the same on every rank."""

    def begin(self, step: int) -> None:
        """A step asks for its prompts."""
        ...

    def take(self, count: int) -> list[Prompt]: ...

    def observe(self, groups: Sequence[Group]) -> None:
        """What came of prompts that were taken."""
        ...


@dataclass(frozen=True)
class Collected:
    """A full batch and how it came about; the same on every rank."""

    groups: list[Group]
    generated: list[Group]
    """Every group generated in this step, kept or not."""
    rejected: list[tuple[Group, FilterReason]]
    """Those of them that the filter dropped, and why."""
    rounds: int
    tally: FilterTally
    """Groups generated in this step by the filter's verdict."""
    carried_in: int
    """Groups of the batch that an earlier step generated."""
    expired: int
    """Waiting groups that grew too old and were dropped."""
    missing: int = 0
    """Groups by which the batch is smaller than rollout.prompts_per_step (filter.on_starved smaller_batch)."""

    @property
    def verifier_failures(self) -> dict[str, int]:
        """Responses of this step on which the verifier failed, by kind; every kind is there."""
        verdicts = Counter(sample.verdict for group in self.generated for sample in group.samples)
        return {kind: verdicts[kind] for kind in FAILURES}

    @property
    def verdicts(self) -> dict[str, int]:
        """Generated responses by verdict, the failures left out."""
        verdicts = Counter(sample.verdict for group in self.generated for sample in group.samples)
        return {kind: verdicts[kind] for kind in VERDICTS if kind not in FAILURES}


class Collector:
    """Fills batches. All its decisions rest on gathered data, so every rank takes the same ones.

    Args:
        prompts: the training stream.
        generator: makes verified groups.
        config: batch size, sampling, filter.
        seed: the run's seed; with (step, prompt, sample) it names every random stream.
        stop: whether this rank wants to stop; a stop of one rank ends `collect` on all.
        on_starved: told, before the error, of a step that starves and of the groups that the filter dropped in it.
    """

    def __init__(
        self,
        prompts: Prompts,
        generator: Generator,
        config: RolloutConfig,
        seed: int,
        stop: Callable[[], bool] = lambda: False,
        on_starved: Callable[[int, list[tuple[Group, FilterReason]]], None] = lambda step, rejected: None,
    ) -> None:
        self.prompts = prompts
        self.generator = generator
        self.config = config
        self.seed = seed
        self.stop = stop
        self.on_starved = on_starved
        self.waiting: list[tuple[int, Group]] = []
        """Surplus groups that passed the filter, with the step that made them."""

    def collect(self, step: int) -> Collected:
        """A batch of ``prompts_per_step`` groups, or of fewer where ``filter.on_starved`` lets it. Collective.

        Raises:
            RunError: the filter still starves the batch after ``filter.max_rounds`` rounds, and the config does not
                let it be smaller, or nothing at all was kept.
            StopRequested: a rank wants to stop; the waiting groups are as before, prompts were drawn.
        """
        config = self.config
        fresh = [(made, group) for made, group in self.waiting if step - made <= config.filter.max_age]
        expired = len(self.waiting) - len(fresh)
        kept, generated, tally = list(fresh), [], FilterTally()
        rejected: list[tuple[Group, FilterReason]] = []
        rounds = 0
        self.prompts.begin(step)
        while len(kept) < config.prompts_per_step:
            if rounds == config.filter.max_rounds:
                if config.filter.on_starved == "smaller_batch" and kept:
                    break
                self.on_starved(step, rejected)
                raise RunError(starved_message(step, len(kept), rounds, tally, generated, config))
            missing, most = config.prompts_per_step - len(kept), 4 * config.prompts_per_step
            wanted = prompts_to_request(missing, tally, config.oversample, most)
            groups = self.generator.groups(self.prompts.take(wanted), self._draw(step), self.stop)
            self.prompts.observe(groups)
            rounds += 1
            for group in groups:
                verdict = keep_group(group, config.filter)
                tally = tally.add(verdict)
                if verdict.kept:
                    kept.append((step, group))
                else:
                    rejected.append((group, verdict.reason))
            generated += groups
        self.waiting = kept[config.prompts_per_step :]
        batch = kept[: config.prompts_per_step]
        return Collected(
            groups=[group for _, group in batch],
            generated=generated,
            rejected=rejected,
            rounds=rounds,
            tally=tally,
            carried_in=sum(1 for made, _ in batch if made != step),
            expired=expired,
            missing=config.prompts_per_step - len(batch),
        )

    def state(self) -> dict[str, Any]:
        """The waiting groups, as JSON values; their texts are on the first rank alone. Collective over the world."""
        groups = with_texts([group for _, group in self.waiting])
        steps = [made for made, _ in self.waiting]
        return {"waiting": [{"step": s, "group": asdict(group)} for s, group in zip(steps, groups, strict=True)]}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of ``state``."""
        self.waiting = [(row["step"], on_first(group_from_dict(row["group"]))) for row in state["waiting"]]

    def _draw(self, step: int) -> Draw:
        sampling = self.config.sampling
        return Draw(
            seed=self.seed,
            step=step,
            purpose=TRAIN,
            sampling=Sampling(sampling.max_response_tokens, sampling.temperature, sampling.top_p),
            num_samples=self.config.samples_per_prompt,
        )


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
        groups = [on_first(group) for group in self.steps[step]]
        return Collected(groups, groups, [], 0, FilterTally(kept=len(groups)), 0, 0)

    def state(self) -> dict[str, Any]:
        """A recording has no state of its own."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
