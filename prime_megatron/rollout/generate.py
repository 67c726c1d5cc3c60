"""Prompts in, verified groups out: the same on every rank, but for the texts, which stay where they were decoded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prime_megatron.errors import InputError, NotFinite, PeerLost, RunError, StopRequested
from prime_megatron.parallel.collectives import gather_numbers, raise_first
from prime_megatron.rollout.engine import Completion, Engine, Request, Sampling, WeightsLost
from prime_megatron.rollout.exchange import Response, count, exchange
from prime_megatron.rollout.sampling import TRAIN, SampleKey
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
class _Decoded:
    """A response as text, and the verdict on it that is on its way."""

    text: str
    verdict: Future[Verdict]


class Generator:
    """Spreads requests over the engine's replicas, decodes and verifies each response when it is finished, gathers all.

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
        self._waited_s = 0.0

    def take_waited_s(self) -> float:
        """Seconds since the last call in which everything was generated and verdicts were not there yet."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def groups(self, prompts: Sequence[Prompt], draw: Draw, stop: Callable[[], bool] = lambda: False) -> list[Group]:
        """``draw.num_samples`` verified responses to each prompt, in order. Collective over the world.

        A prompt's samples are made by one replica, so that they can share its prefill. ``stop`` is asked whenever a
        response is finished and at the end.

        Raises:
            StopRequested: on every rank, when ``stop`` was true on one; what was generated is lost.
            RunError, InputError: on every rank, when an engine or a verifier of one cannot go on.
            NotFinite: on every rank, in training, when a response of any has a log-prob that is no number.
        """
        mine = [index for index in range(len(prompts)) if index % self.engine.num_replicas == self.engine.replica]
        made: list[Response] | None = None
        failure: tuple[type[Exception], str] | None = None
        decoded: dict[SampleKey, _Decoded] = {}
        while True:
            if made is None:
                try:
                    made = self._answer([(index, prompts[index]) for index in mine], draw, decoded, stop)
                except (StopRequested, WeightsLost):
                    pass
                except PeerLost:
                    raise
                except (RunError, InputError) as error:
                    failure = (InputError if isinstance(error, InputError) else RunError, str(error))
            broken = sum(not all(map(math.isfinite, response.sample.logprobs)) for response in made or [])
            everyones = gather_numbers([stop(), failure is not None, made is not None, broken, *count(made or [])])
            if any(failed for _, failed, *_ in everyones):
                raise_first(failure)
            if any(stopped for stopped, *_ in everyones):
                raise StopRequested
            if all(done for _, _, done, *_ in everyones):
                break
            self.publish_again()
        assert made is not None
        if draw.purpose == TRAIN and any(broken for _, _, _, broken, *_ in everyones):
            raise NotFinite
        samples: list[list[Sample]] = [[] for _ in prompts]
        counts = [(responses, tokens) for *_, responses, tokens in everyones]
        for response in exchange(made, counts, self.engine.version):
            samples[response.prompt].append(response.sample)
        return [Group(prompt, tuple(own)) for prompt, own in zip(prompts, samples, strict=True)]

    def _answer(
        self,
        prompts: Sequence[tuple[int, Prompt]],
        draw: Draw,
        decoded: dict[SampleKey, _Decoded],
        stop: Callable[[], bool],
    ) -> list[Response]:
        """This replica's share; ``decoded`` holds those of an attempt that ended early. Raises WeightsLost."""
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
            key = completion.request.key
            text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
            decoded[key] = _Decoded(text, self.verifiers.submit(_answer_of(prompt_of[key], text)))

        completions = self.engine.generate(requests, verify if self.leads else None)
        if not self.leads:
            return []
        start_s = time.perf_counter()
        responses = [
            Response(index, _sample(completion, decoded[completion.request.key], self.engine.version))
            for (index, _), completion in zip(owners, completions, strict=True)
        ]
        self._waited_s += time.perf_counter() - start_s
        return responses


def _answer_of(prompt: Prompt, response: str) -> Answer:
    return Answer(
        ability=prompt.ability,
        response=response,
        ground_truth=prompt.ground_truth,
        prompt=prompt.text,
        data_source=prompt.data_source,
        extra_info=prompt.extra_info,
        other_truths=prompt.other_truths,
    )


def _sample(completion: Completion, decoded: _Decoded, version: int) -> Sample:
    """Waits for the verdict."""
    verdict = decoded.verdict.result()
    return Sample(
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish=completion.finish,
        version=version,
        text=decoded.text,
        outcome=verdict.score,
        verdict=verdict.verdict,
        reason=verdict.reason,
    )
