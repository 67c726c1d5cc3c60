"""A set that can be asked: its questions as one model reads them, and how they are drawn. In training and outside it is
made here, so that both ask the same tokens in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.data.chat import ChatOptions
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.errors import InputError
from prime_megatron.evaluate.figures import Mark
from prime_megatron.evaluate.grading import SetGrader
from prime_megatron.evaluate.item import Item
from prime_megatron.evaluate.suite import SetConfig
from prime_megatron.generate.questions import Question, encode_question
from prime_megatron.generate.run import questions_per_block
from prime_megatron.generate.sample import GeneratedSample
from prime_megatron.rollout.engine import Sampling
from prime_megatron.rollout.generate import Draw
from prime_megatron.rollout.sampling import EVAL
from prime_megatron.types import Prompt


@dataclass(frozen=True)
class ReadySet:
    """See the module."""

    name: str
    config: SetConfig
    questions: tuple[Question, ...]
    """Those that leave room for a response first, so that blocks do not depend on the others."""
    prompts: tuple[Prompt, ...]
    """The same, encoded."""
    grader: SetGrader
    draw: Draw
    context: int
    """Longest prompt and response, in tokens."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and response that will be asked."""
        return min(self.context, max(len(prompt.token_ids) for prompt in self.prompts) + self.config.max_tokens)

    @property
    def num_capped(self) -> int:
        """Questions whose response has a lower limit than the set's, or no room at all."""
        return sum(len(prompt.token_ids) + self.config.max_tokens > self.context for prompt in self.prompts)

    @property
    def num_too_long(self) -> int:
        """Questions that leave no room for a response."""
        return sum(len(prompt.token_ids) >= self.context for prompt in self.prompts)


def make_ready(
    name: str, config: SetConfig, items: Sequence[Item], tokenizer: Tokenizer, *, seed: int, block: int, context: int
) -> ReadySet:
    """A set for one model.

    Args:
        name: of the set; with a question's id it names the random streams.
        seed, block: of the suite.
        context: what the model holds.

    Raises:
        InputError: the set asks through a chat template and the tokenizer has none, or it refuses a chat.
    """
    if config.chat and not tokenizer.has_template:
        raise InputError(
            f"set {name}: it asks through a chat template and {tokenizer.folder} has none; add chat_template.jinja to "
            "the folder, or set chat: false for a base model"
        )
    tokenizer = tokenizer.with_options(ChatOptions(config.template_kwargs))
    limit = min(context, config.context or context)
    questions = [item.question for item in items]
    prompts = [encode_question(question, tokenizer, stream_name(name, question)) for question in questions]
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place].token_ids) >= limit)
    greedy = config.temperature == 0
    grader = SetGrader(config, items)
    return ReadySet(
        name=name,
        config=config,
        questions=tuple(questions[place] for place in order),
        prompts=tuple(prompts[place] for place in order),
        grader=grader,
        draw=Draw(
            seed=seed,
            step=0,
            purpose=EVAL,
            sampling=Sampling(config.max_tokens, 1.0 if greedy else config.temperature, config.top_p, greedy),
            num_samples=config.n,
            block=questions_per_block(config.n, block),
            stop_texts=config.stop,
            context=limit,
            answer=lambda prompt, text: grader.answer(prompt.uid, text),
        ),
        context=limit,
    )


def stream_name(name: str, question: Question) -> str:
    """Names the random streams of a set's question."""
    return f"{name}\n{question.id}"


def mark_of(sample: GeneratedSample, grader: SetGrader) -> Mark:
    """What counts of a graded sample."""
    assert sample.outcome is not None and sample.verdict is not None, "graded"
    return Mark(
        verdict=sample.verdict,
        outcome=sample.outcome,
        num_tokens=None if sample.response_ids is None else len(sample.response_ids),
        truncated=sample.truncated,
        vote=grader.vote(sample.id, sample.response),
    )
