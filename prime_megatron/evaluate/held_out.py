"""Evaluation in training: sets of a suite, and the plain held-out prompts of data.eval as sets of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from prime_megatron.algo.labels import mean_by_label
from prime_megatron.config import EvalConfig, SamplingConfig
from prime_megatron.evaluate.figures import Mark, SetFigures, question_accuracy, set_figures
from prime_megatron.evaluate.ready import ReadySet
from prime_megatron.evaluate.statistics import macro_interval
from prime_megatron.generate.from_engine import answer_prompts
from prime_megatron.parallel.collectives import gather_all
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.generate import Draw, Generator
from prime_megatron.rollout.sampling import EVAL
from prime_megatron.types import Group, Prompt

Vote = Callable[[Prompt, str], str | None]


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found; the same on every rank, but for the texts of the answers, which stay where they were
    decoded."""

    figures: dict[str, float]
    """Metrics by name."""
    headline: float | None
    """The one figure that stands for it: accuracy on data.eval, else the macro average over all sets of the suite; None
    where only some of these were due."""
    greedy: list[Group]
    """Every held-out prompt with its greedy answer."""
    sampled: list[Group]
    """Those with samples; empty without them."""


@dataclass(frozen=True)
class HeldOut:
    """Prompts to answer in one way."""

    prompts: Sequence[Prompt]
    draw: Draw
    every: int
    """Steps between evaluations; 0: before the first and after the last alone."""
    vote: Vote | None
    """What a response votes for; None: there are no votes."""
    metrics: Callable[[SetFigures], dict[str, float]]
    name: str | None
    """Of a suite's set; None: data.eval."""

    def due(self, step: int, last_step: int) -> bool:
        """Whether to evaluate after this many updates: before the first, after the last, and every n."""
        return step in (0, last_step) or (self.every > 0 and step % self.every == 0)


class Evaluator:
    """Answers held-out prompts with the engine's current weights; the same figures on every rank.

    Args:
        sets: what is asked, see `held_out_sets` and `suite_sets`.
        generator: makes verified groups.
    """

    def __init__(self, sets: Sequence[HeldOut], generator: Generator) -> None:
        self.sets, self.generator = list(sets), generator

    def due(self, step: int, last_step: int) -> bool:
        """Whether any set is due."""
        return any(held_out.due(step, last_step) for held_out in self.sets)

    def evaluate(self, step: int, last_step: int) -> Evaluation:
        """Answer the sets that are due. Collective over the world."""
        metrics: dict[str, float] = {}
        answered: dict[bool, list[Group]] = {True: [], False: []}
        by_set: list[list[float]] = []
        for held_out in self.sets:
            if not held_out.due(step, last_step):
                continue
            groups = answer_prompts(self.generator, held_out.prompts, held_out.draw)
            marks = _marks(groups, held_out.vote)
            figures = set_figures(marks, votes=held_out.vote is not None)
            metrics |= held_out.metrics(figures)
            answered[held_out.draw.sampling.greedy] += groups
            if held_out.name is not None:
                by_set.append([question_accuracy(own) for own in marks])
            elif held_out.draw.sampling.greedy:
                shares = [question_accuracy(own) for own in marks]
                metrics |= mean_by_label("eval/accuracy", list(zip([group.prompt for group in groups], shares)))
        if by_set and len(by_set) == sum(held_out.name is not None for held_out in self.sets):
            macro = macro_interval(by_set)
            metrics |= {f"eval/macro/accuracy{end}": value for end, value in _ends(macro.value, macro.low, macro.high)}
        headline = next((metrics[key] for key in ("eval/accuracy", "eval/macro/accuracy") if key in metrics), None)
        return Evaluation(metrics, headline, answered[True], answered[False])


def held_out_sets(prompts: Sequence[Prompt], config: EvalConfig, sampling: SamplingConfig, seed: int) -> list[HeldOut]:
    """data.eval: its greedy answers and, with eval.samples_per_prompt, samples for pass@k.

    Args:
        prompts: ready; none: no sets.
        sampling: length limit, and the temperature of the samples.
        seed: names the random streams of the samples, the same ones at every evaluation.
    """
    if not prompts:
        return []
    sets = []
    for count, greedy in ((1, True), (config.samples_per_prompt, False)):
        how = Sampling(sampling.max_response_tokens, sampling.temperature, sampling.top_p, greedy=greedy)
        if count:
            sets.append(
                HeldOut(
                    prompts=prompts,
                    draw=Draw(seed, 0, EVAL, how, count),
                    every=config.every,
                    vote=None,
                    metrics=_greedy_metrics if greedy else _sampled_metrics,
                    name=None,
                )
            )
    return sets


def suite_sets(ready: Sequence[ReadySet], config: EvalConfig) -> list[HeldOut]:
    """The sets of eval.suite."""
    return [
        HeldOut(
            prompts=one.prompts,
            draw=one.draw,
            every=one.config.every or config.every,
            vote=_vote_in(one) if one.grader.votes else None,
            metrics=partial(suite_metrics, one.name),
            name=one.name,
        )
        for one in ready
    ]


def suite_metrics(name: str, figures: SetFigures) -> dict[str, float]:
    """A set's figures as metrics."""
    accuracy = figures.accuracy
    found = {f"eval/{name}/accuracy{end}": v for end, v in _ends(accuracy.value, accuracy.low, accuracy.high)}
    found |= {f"eval/{name}/pass@{k}": value for k, value in figures.pass_at.items()}
    found |= {f"eval/{name}/majority@{k}": value for k, value in figures.majority_at.items()}
    for key in ("score", "truncated", "no_answer", "grader_timeout", "grader_failed"):
        found[f"eval/{name}/{key}"] = getattr(figures, key)
    assert figures.response_tokens is not None, "an engine's responses have tokens"
    return found | {f"eval/{name}/response_tokens": figures.response_tokens}


def _ends(value: float, low: float, high: float) -> list[tuple[str, float]]:
    return [("", value), ("_low", low), ("_high", high)]


def _greedy_metrics(figures: SetFigures) -> dict[str, float]:
    assert figures.response_tokens is not None, "an engine's responses have tokens"
    return {
        "eval/accuracy": figures.accuracy.value,
        "eval/score": figures.score,
        "eval/response_tokens": figures.response_tokens,
        "eval/truncated": figures.truncated,
    }


def _sampled_metrics(figures: SetFigures) -> dict[str, float]:
    passed = {f"eval/pass@{k}": value for k, value in figures.pass_at.items()}
    return {"eval/sampled_accuracy": figures.accuracy.value} | passed


def _vote_in(ready: ReadySet) -> Vote:
    return lambda prompt, text: ready.grader.vote(prompt.uid, text)


def _marks(groups: Sequence[Group], vote: Vote | None) -> list[list[Mark]]:
    """What counts of every response, on every rank."""
    votes = {} if vote is None else _votes(groups, vote)
    return [
        [
            Mark(
                verdict=sample.verdict,
                outcome=sample.outcome,
                num_tokens=len(sample.token_ids),
                truncated=sample.finish == "length",
                vote=votes[g, s] if votes else None,
            )
            for s, sample in enumerate(group.samples)
        ]
        for g, group in enumerate(groups)
    ]


def _votes(groups: Sequence[Group], vote: Vote) -> dict[tuple[int, int], str | None]:
    """Of every (group, sample): what it votes for is known to the rank that decoded it. Collective over the world."""
    mine = {
        (g, s): vote(group.prompt, sample.text)
        for g, group in enumerate(groups)
        for s, sample in enumerate(group.samples)
        if sample.text is not None
    }
    return {key: value for part in gather_all(mine) for key, value in part.items()}
