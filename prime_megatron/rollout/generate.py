"""Prompts in, verified groups out, the same on every rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from prime_megatron.errors import StopRequested
from prime_megatron.parallel.collectives import gather_all
from prime_megatron.rollout.engine import Completion, Engine, Request, Sampling, WeightsLost
from prime_megatron.rollout.sampling import SampleKey
from prime_megatron.types import Group, Prompt, Sample
from prime_megatron.verify import Answer, Verdict, Verifiers


@dataclass(frozen=True)
class Draw:
    """How a set of responses is drawn: the stream's name and the sampling."""

    seed: int
    step: int
    purpose: int
    sampling: Sampling
    num_samples: int


@dataclass(frozen=True)
class _Answered:
    """A verified response on its way between ranks: compact, without its text."""

    index: int
    token_ids: np.ndarray
    logprobs: np.ndarray
    finish: str
    verdict: Verdict


class Generator:
    """Spreads requests over the engine's replicas, verifies each response when it is finished, gathers all.

    Args:
        engine: this rank's replica.
        leads: True on the one rank of each replica that reports its answers.
        verifiers: outcome rewards.
        tokenizer: turns responses into text for the verifier.
        publish_again: gives the engines the weights that they had, after one has lost them; collective.
    """

    def __init__(
        self,
        engine: Engine,
        leads: bool,
        verifiers: Verifiers,
        tokenizer: PreTrainedTokenizerBase,
        publish_again: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.publish_again = publish_again
        self.leads = leads
        self.verifiers = verifiers
        self.tokenizer = tokenizer

    def groups(self, prompts: Sequence[Prompt], draw: Draw, stop: Callable[[], bool] = lambda: False) -> list[Group]:
        """``draw.num_samples`` verified responses to each prompt, in order. Collective over the world.

        A prompt's samples are made by one replica, so that they can share its prefill. ``stop`` is asked whenever a
        response is finished and at the end.

        Raises:
            StopRequested: on every rank, when ``stop`` was true on one; what was generated is lost.
        """
        mine = [index for index in range(len(prompts)) if index % self.engine.num_replicas == self.engine.replica]
        answered: list[_Answered] | None = None
        verdicts: dict[SampleKey, Future[Verdict]] = {}
        while True:
            if answered is None:
                with contextlib.suppress(StopRequested, WeightsLost):
                    answered = self._answer([(index, prompts[index]) for index in mine], draw, verdicts, stop)
            everyones = gather_all((stop(), answered))
            if any(stopped for stopped, _ in everyones):
                raise StopRequested
            if all(part is not None for _, part in everyones):
                break
            self.publish_again()
        by_prompt: dict[int, list[_Answered]] = {index: [] for index in range(len(prompts))}
        for _, part in everyones:
            for item in part:
                by_prompt[item.index].append(item)
        version = self.engine.version
        return [
            Group(prompts[index], tuple(self._sample(item, version) for item in items))
            for index, items in by_prompt.items()
        ]

    def _answer(
        self,
        prompts: Sequence[tuple[int, Prompt]],
        draw: Draw,
        verdicts: dict[SampleKey, Future[Verdict]],
        stop: Callable[[], bool],
    ) -> list[_Answered]:
        """This replica's share; ``verdicts`` holds those of an attempt that ended early. Raises WeightsLost."""
        requests, owners = [], []
        for index, prompt in prompts:
            for sample in range(draw.num_samples):
                key = SampleKey(draw.seed, draw.step, prompt.draw, sample, draw.purpose)
                requests.append(Request(prompt.token_ids, key, draw.sampling))
                owners.append((index, prompt))
        prompt_of = {request.key: prompt for request, (_, prompt) in zip(requests, owners, strict=True)}

        def verify(completion: Completion) -> None:
            if stop():
                raise StopRequested
            prompt = prompt_of[completion.request.key]
            answer = Answer(prompt.ability, self._text(completion.token_ids), prompt.ground_truth)
            verdicts[completion.request.key] = self.verifiers.submit(answer)

        completions = self.engine.generate(requests, verify if self.leads else None)
        if not self.leads:
            return []
        return [
            _Answered(
                index=index,
                token_ids=np.asarray(completion.token_ids, dtype=np.int32),
                logprobs=np.asarray(completion.logprobs, dtype=np.float32),
                finish=completion.finish,
                verdict=verdicts[completion.request.key].result(),
            )
            for (index, _), completion in zip(owners, completions, strict=True)
        ]

    def _text(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _sample(self, item: _Answered, version: int) -> Sample:
        token_ids = tuple(item.token_ids.tolist())
        return Sample(
            token_ids=token_ids,
            logprobs=tuple(item.logprobs.tolist()),
            finish=item.finish,
            version=version,
            text=self._text(token_ids),
            outcome=item.verdict.score,
            verdict=item.verdict.verdict,
            reason=item.verdict.reason,
        )
