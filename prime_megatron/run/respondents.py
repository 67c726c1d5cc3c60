"""Who answers a suite outside of training: a model folder in an engine, an endpoint, or answers that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.evaluate.given import GivenAnswerer
from prime_megatron.evaluate.grading import SetGrader
from prime_megatron.evaluate.item import Item
from prime_megatron.evaluate.ready import ReadySet, make_ready, stream_name
from prime_megatron.evaluate.suite import Suite
from prime_megatron.generate.endpoint import Asking, Endpoint, EndpointAnswerer
from prime_megatron.generate.from_engine import EngineAnswerer
from prime_megatron.generate.identity import model_digests, text_digest
from prime_megatron.generate.questions import Question
from prime_megatron.generate.run import Answerer
from prime_megatron.rollout.generate import Generator, Scorer
from prime_megatron.run.offline import OfflineModel, context_of, load_offline_tokenizer, offline_generator

Items = Mapping[str, Sequence[Item]]
Given = Mapping[str, Mapping[str, Sequence[str]]]


class Respondent:
    """Answers the sets of a suite; a context manager.

    Args:
        suite, items: what is asked.
        scorer: takes the answers.
        identity: who answers, told by content.
    """

    def __init__(self, suite: Suite, items: Items, scorer: Scorer, identity: dict[str, Any]) -> None:
        self.suite, self.items, self.scorer, self.identity = suite, items, scorer, identity
        self.ready: dict[str, ReadySet] = {}
        """The sets as the model reads them; empty where nothing is read as tokens here."""

    def questions(self, name: str) -> Sequence[Question]:
        """A set's questions in the order in which they are asked."""
        return [item.question for item in self.items[name]]

    def num_samples(self, name: str) -> int:
        """Responses to each question of a set."""
        return self.suite.sets[name].n

    def answerer(self, name: str) -> Answerer:
        """What answers a set; starts what has to be started."""
        raise TypeError(f"{type(self).__name__} answers nothing")

    def __enter__(self) -> Respondent:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is held."""


class GivenRespondent(Respondent):
    """Answers that are there already, by set and question."""

    def __init__(self, responses: Given, suite: Suite, items: Items, scorer: Scorer) -> None:
        super().__init__(suite, items, scorer, {"responses_sha256": text_digest(responses)})
        self._responses = responses

    def num_samples(self, name: str) -> int:
        """See `Respondent.num_samples`."""
        return len(next(iter(self._responses[name].values())))

    def answerer(self, name: str) -> Answerer:
        """See `Respondent.answerer`."""
        return GivenAnswerer(self._responses[name], SetGrader(self.suite.sets[name], self.items[name]), self.scorer)


class EndpointRespondent(Respondent):
    """An OpenAI-compatible server; the chat template is its own."""

    def __init__(self, endpoint: Endpoint, suite: Suite, items: Items, scorer: Scorer) -> None:
        super().__init__(suite, items, scorer, {"endpoint": endpoint.url, "name": endpoint.model})
        self._endpoint = endpoint

    def answerer(self, name: str) -> Answerer:
        """See `Respondent.answerer`."""
        config, seed = self.suite.sets[name], self.suite.seed
        grader = SetGrader(config, self.items[name])
        how = Asking(config.n, config.temperature, config.top_p, config.max_tokens, config.stop, False, seed)
        return EndpointAnswerer(
            self._endpoint, how, self.scorer, lambda question, text: grader.answer(question.id, text)
        )


class EngineRespondent(Respondent):
    """A model folder in an engine, which starts with the first set that is not answered yet.

    Args:
        user_limit: the user's own max_tokens; a set's limit is capped at the model's context, this one is not.

    Raises:
        InputError: a model that cannot be read, or that a set cannot be asked of; a user's limit beyond its context.
    """

    def __init__(
        self, model: OfflineModel, suite: Suite, items: Items, scorer: Scorer, user_limit: int | None, log: Path
    ) -> None:
        how = {key: getattr(model, key) for key in ("engine", "dtype", "tensor", "max_concurrent")}
        super().__init__(suite, items, scorer, how | {"files": model_digests(model.folder)})
        self._model, self._log = model, log
        self._tokenizer = load_offline_tokenizer(model)
        context = context_of(model)
        if user_limit is not None and user_limit >= context:
            raise InputError(f"--max-tokens {user_limit}: the model holds {context} tokens, prompt included")
        self.ready = {
            name: make_ready(
                name, suite.sets[name], own, self._tokenizer, seed=suite.seed, block=suite.block, context=context
            )
            for name, own in items.items()
        }
        self._stack = ExitStack()
        self._generator: Generator | None = None

    def questions(self, name: str) -> Sequence[Question]:
        """See `Respondent.questions`."""
        return self.ready[name].questions

    def answerer(self, name: str) -> Answerer:
        """See `Respondent.answerer`."""
        if self._generator is None:
            longest = max(ready.longest for ready in self.ready.values())
            opened = offline_generator(self._model, self._tokenizer, self.scorer, max_tokens=longest, log=self._log)
            self._generator = self._stack.enter_context(opened)
        return EngineAnswerer(
            self._generator,
            self.ready[name].draw,
            self._tokenizer,
            graded=True,
            logprobs=False,
            name=lambda question: stream_name(name, question),
        )

    def __exit__(self, *exc: object) -> None:
        self._stack.close()
