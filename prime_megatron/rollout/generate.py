"""Prompts in, verified groups out: the same on every rank, but for the texts, which stay where they were decoded."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from prime_megatron.errors import InputError, NotFinite, PeerLost, RunError, StopRequested
from prime_megatron.parallel.collectives import gather_numbers, raise_first
from prime_megatron.rollout.engine import Completion, Engine, Request, Sampling, WeightsLost
from prime_megatron.rollout.exchange import Response, count, exchange
from prime_megatron.rollout.sampling import TRAIN, SampleKey
from prime_megatron.rollout.stops import cut
from prime_megatron.types import Group, Prompt, Sample
from prime_megatron.verify import Answer, Verdict


class Scorer(Protocol):
    """Starts to score an answer (``verify.Verifiers``)."""

    def submit(self, answer: Answer) -> Future[Verdict]:
        """The verdict, as soon as it is there."""
        ...


def answer_of(prompt: Prompt, response: str) -> Answer:
    """What the verifier is asked about a response."""
    return Answer(
        ability=prompt.ability,
        response=response,
        ground_truth=prompt.ground_truth,
        prompt=prompt.text,
        data_source=prompt.data_source,
        extra_info=prompt.extra_info,
        other_truths=prompt.other_truths,
    )


@dataclass(frozen=True)
class Draw:
    """How a set of responses is drawn: the stream's name and the sampling."""

    seed: int
    step: int
    purpose: int
    sampling: Sampling
    num_samples: int
    block: int | None = None
    """Prompts that one replica is asked for in one call, so that the batch a response is made in does not depend on the
    number of replicas; None: all of a replica's at once."""
    stop_texts: tuple[str, ...] = ()
    """A response ends before the first of these."""
    context: int | None = None
    """Longest prompt and response: a response's limit is cut to fit it."""
    answer: Callable[[Prompt, str], Answer] = answer_of
    """What the verifier is asked about a response."""


@dataclass(frozen=True)
class _Decoded:
    """A response as text, and the verdict on it that is on its way."""

    completion: Completion
    text: str
    verdict: Future[Verdict]


@dataclass(frozen=True)
class _Round:
    """What a replica has made so far, so that an attempt that ended early goes on where it was."""

    decoded: dict[SampleKey, _Decoded] = field(default_factory=dict)
    completions: dict[SampleKey, Completion] = field(default_factory=dict)
    """Of calls that are over."""


class Generator:
    """Spreads requests over the engine's replicas, decodes and verifies each response when it is finished, gathers all.

    Args:
        engine: this rank's replica.
        leads: True on the one rank of each replica that reports its answers.
        verifiers: outcome rewards.
        tokenizer: turns responses into text for the verifier.
        publish_again: gives the engines the weights that they had, after one has lost them; collective.
        in_form: whether a response's text keeps a form that is counted; None: none is.
    """

    def __init__(
        self,
        engine: Engine,
        leads: bool,
        verifiers: Scorer,
        tokenizer: PreTrainedTokenizerBase,
        publish_again: Callable[[], None],
        in_form: Callable[[str], bool] | None = None,
    ) -> None:
        self.engine = engine
        self.publish_again = publish_again
        self.leads = leads
        self.verifiers = verifiers
        self.tokenizer = tokenizer
        self.in_form = in_form
        self._waited_s = 0.0

    def take_waited_s(self) -> float:
        """Seconds since the last call in which everything was generated and verdicts were not there yet."""
        waited_s, self._waited_s = self._waited_s, 0.0
        return waited_s

    def groups(self, prompts: Sequence[Prompt], draw: Draw, stop: Callable[[], bool] = lambda: False) -> list[Group]:
        """``draw.num_samples`` verified responses to each prompt, in order. Collective over the world.

        A prompt's samples are made by one replica, so that they can share its prefill; the replicas take blocks of
        ``draw.block`` prompts by turns, or single prompts. ``stop`` is asked whenever a response is finished and at the
        end.

        Raises:
            StopRequested: on every rank, when ``stop`` was true on one; what was generated is lost.
            RunError, InputError: on every rank, when an engine or a verifier of one cannot go on.
            NotFinite: on every rank, in training, when a response of any has a log-prob that is no number.
        """
        turn, replicas = draw.block or 1, self.engine.num_replicas
        mine = [index for index in range(len(prompts)) if index // turn % replicas == self.engine.replica]
        made: list[Response] | None = None
        failure: tuple[type[Exception], str] | None = None
        so_far = _Round()
        while True:
            if made is None:
                try:
                    made = self._answer([(index, prompts[index]) for index in mine], draw, so_far, stop)
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
        self, prompts: Sequence[tuple[int, Prompt]], draw: Draw, so_far: _Round, stop: Callable[[], bool]
    ) -> list[Response]:
        """This replica's share. Raises WeightsLost."""
        asked = [(index, prompt, _requests(prompt, draw)) for index, prompt in prompts]
        prompt_of = {request.key: prompt for _, prompt, requests in asked for request in requests}

        def verify(completion: Completion) -> None:
            if stop():
                raise StopRequested
            completion, text = cut(completion, draw.stop_texts, self._decode)
            answer = draw.answer(prompt_of[completion.request.key], text)
            so_far.decoded[completion.request.key] = _Decoded(completion, text, self.verifiers.submit(answer))

        for requests in _calls([requests for _, _, requests in asked], draw.block):
            if any(request.key not in so_far.completions for request in requests):
                completions = self.engine.generate(requests, verify if self.leads else None)
                so_far.completions.update({completion.request.key: completion for completion in completions})
        if not self.leads:
            return []
        start_s = time.perf_counter()
        responses = [
            Response(index, self._sample(so_far.decoded[request.key]))
            for index, _, requests in asked
            for request in requests
        ]
        self._waited_s += time.perf_counter() - start_s
        return responses

    def _decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)

    def _sample(self, decoded: _Decoded) -> Sample:
        """Waits for the verdict."""
        verdict = decoded.verdict.result()
        completion = decoded.completion
        return Sample(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish=completion.finish,
            version=self.engine.version,
            text=decoded.text,
            outcome=verdict.score,
            verdict=verdict.verdict,
            reason=verdict.reason,
            in_form=None if self.in_form is None else self.in_form(decoded.text),
        )


def _requests(prompt: Prompt, draw: Draw) -> list[Request]:
    """One for each response to the prompt."""
    sampling = draw.sampling
    if draw.context is not None:
        room = draw.context - len(prompt.token_ids)
        assert room > 0, f"{prompt.uid} leaves no room for a response"
        sampling = dataclasses.replace(sampling, max_tokens=min(sampling.max_tokens, room))
    return [
        Request(prompt.token_ids, SampleKey(draw.seed, draw.step, prompt.draw, sample, draw.purpose), sampling)
        for sample in range(draw.num_samples)
    ]


def _calls(by_prompt: Sequence[list[Request]], block: int | None) -> Iterator[list[Request]]:
    """The requests of each call of the engine."""
    size = block or max(1, len(by_prompt))
    for first in range(0, len(by_prompt), size):
        yield [request for requests in by_prompt[first : first + size] for request in requests]
