"""Answers of an engine: questions through the generator that training uses, into samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future

from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.generate.questions import Question, encode_question
from prime_megatron.generate.sample import GeneratedSample
from prime_megatron.rollout.generate import Draw, Generator
from prime_megatron.types import Group, Prompt, Sample
from prime_megatron.verify import Answer, Verdict
from prime_megatron.verify.answer import NO_ANSWER, finished

TOO_LONG = "the prompt leaves no room for a response"


class Ungraded:
    """Stands where nothing is scored: every answer gets the verdict at once that nothing was asked."""

    def submit(self, answer: Answer) -> Future[Verdict]:
        """No outcome."""
        return finished(Verdict(0.0, NO_ANSWER, "not graded"))


class EngineAnswerer:
    """See `Answerer`.

    Args:
        generator: of this process's engine.
        draw: sampling; ``draw.context`` is the longest prompt and response.
        tokenizer: of the model.
        graded: whether the generator scores, so that samples have outcomes.
        logprobs: whether samples keep their log-probs.
        name: of a question's random streams.
    """

    def __init__(
        self,
        generator: Generator,
        draw: Draw,
        tokenizer: Tokenizer,
        *,
        graded: bool,
        logprobs: bool,
        name: Callable[[Question], str] = lambda question: question.id,
    ) -> None:
        self._generator, self._draw, self._tokenizer = generator, draw, tokenizer
        self._graded, self._logprobs, self._name = graded, logprobs, name

    def answer(self, questions: Sequence[Question]) -> list[GeneratedSample]:
        """See `Answerer.answer`."""
        prompts = [encode_question(question, self._tokenizer, self._name(question)) for question in questions]
        groups = answer_prompts(self._generator, prompts, self._draw)
        return [
            self._sample(question, group.prompt, index, sample)
            for question, group in zip(questions, groups, strict=True)
            for index, sample in enumerate(group.samples)
        ]

    def _sample(self, question: Question, prompt: Prompt, index: int, sample: Sample) -> GeneratedSample:
        assert sample.text is not None, "this process speaks for its engine"
        return GeneratedSample(
            id=question.id,
            sample=index,
            prompt=question.prompt,
            response=sample.text,
            truncated=sample.finish == "length",
            prompt_ids=prompt.token_ids,
            response_ids=sample.token_ids,
            logprobs=sample.logprobs if self._logprobs else None,
            data_source=question.data_source or None,
            ability=question.ability or None,
            ground_truth=question.ground_truth or None,
            outcome=sample.outcome if self._graded else None,
            verdict=sample.verdict if self._graded else None,
            reason=sample.reason if self._graded else None,
        )


def answer_prompts(generator: Generator, prompts: Sequence[Prompt], draw: Draw) -> list[Group]:
    """The groups of all prompts, in their order. Collective over the world.

    One that leaves no room within ``draw.context`` is not asked: its responses are empty, cut, and without an answer.
    """
    asked = [draw.context is None or len(prompt.token_ids) < draw.context for prompt in prompts]
    groups = iter(generator.groups([prompt for prompt, ask in zip(prompts, asked, strict=True) if ask], draw))
    nothing = Sample((), (), "length", generator.engine.version, "", 0.0, NO_ANSWER, TOO_LONG)
    return [
        next(groups) if ask else Group(prompt, (nothing,) * draw.num_samples)
        for prompt, ask in zip(prompts, asked, strict=True)
    ]
