"""Held-out accuracy: greedy, and pass@k over samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

from prime_megatron.algo.labels import mean_by_label
from prime_megatron.config import EvalConfig, SamplingConfig
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.generate import Draw, Generator
from prime_megatron.rollout.sampling import EVAL
from prime_megatron.types import Group, Prompt
from prime_megatron.verify.answer import CORRECT


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found; the same on every rank, but for the texts of the answers, which stay where they were
    decoded."""

    figures: dict[str, float]
    """Metrics by name."""
    greedy: list[Group]
    """Every held-out prompt with its greedy answer."""
    sampled: list[Group]
    """The same with the samples for pass@k; empty without them."""


class Evaluator:
    """Answers the held-out prompts with the engine's current weights; the same figures on every rank.

    Args:
        prompts: the held-out prompts; none: every evaluation is empty.
        generator: makes verified groups.
        config: how often, how many.
        sampling: length limit, and the temperature of the samples for pass@k.
        seed: names the random streams of the samples, the same ones at every evaluation.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        generator: Generator,
        config: EvalConfig,
        sampling: SamplingConfig,
        seed: int,
    ) -> None:
        self.prompts = list(prompts[: config.max_prompts])
        self.generator = generator
        self.config = config
        self.sampling = sampling
        self.seed = seed

    def due(self, step: int, last_step: int) -> bool:
        """Whether to evaluate after this many updates: before the first, after the last, and every n."""
        if not self.prompts:
            return False
        return step in (0, last_step) or (self.config.every > 0 and step % self.config.every == 0)

    def evaluate(self) -> Evaluation:
        """Answer all held-out prompts. Collective over the world.

        The figures: accuracy (by ability and data source, too), mean score, response length, truncation, pass@k.
        """
        greedy = self._groups(num_samples=1, greedy=True)
        metrics = {
            "eval/accuracy": _mean([_full(group) for group in greedy]),
            "eval/score": _mean([group.mean_outcome for group in greedy]),
            "eval/response_tokens": _mean([len(group.samples[0].token_ids) for group in greedy]),
            "eval/truncated": _mean([group.samples[0].finish == "length" for group in greedy]),
        }
        metrics |= mean_by_label("eval/accuracy", [(group.prompt, _full(group)) for group in greedy])
        count = self.config.samples_per_prompt
        sampled = self._groups(num_samples=count, greedy=False) if count else []
        if sampled:
            right = [round(_full(group) * count) for group in sampled]
            metrics["eval/sampled_accuracy"] = _mean([_full(group) for group in sampled])
            metrics |= {f"eval/pass@{k}": _mean([pass_at(count, c, k) for c in right]) for k in _powers(count)}
        return Evaluation(metrics, greedy, sampled)

    def _groups(self, num_samples: int, greedy: bool) -> list[Group]:
        sampling = Sampling(
            self.sampling.max_response_tokens, self.sampling.temperature, self.sampling.top_p, greedy=greedy
        )
        return self.generator.groups(self.prompts, Draw(self.seed, 0, EVAL, sampling, num_samples))


def _full(group: Group) -> float:
    """The share of a prompt's answers that are right in full: a program that passes some of its tests is not."""
    return sum(sample.verdict == CORRECT for sample in group.samples) / len(group.samples)


def pass_at(n: int, correct: int, k: int) -> float:
    """Unbiased pass@k from n samples (Chen et al. 2021, arXiv 2107.03374, equation 1)."""
    return 1.0 - comb(n - correct, k) / comb(n, k)


def _powers(count: int) -> list[int]:
    """1, 2, 4, ... below count, and count itself."""
    powers = [2**e for e in range(count.bit_length()) if 2**e < count]
    return [*powers, count]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
