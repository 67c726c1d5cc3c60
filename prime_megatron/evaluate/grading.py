"""What the verifier is asked about a set's responses, and what they vote for."""

from __future__ import annotations

from collections.abc import Sequence

from prime_megatron.evaluate.item import Item, fenced
from prime_megatron.evaluate.patterns import last_match
from prime_megatron.evaluate.suite import SetConfig
from prime_megatron.evaluate.votes import vote_of
from prime_megatron.verify import Answer
from prime_megatron.verify.code.extract import extract_code


class SetGrader:
    """Turns a response to one of the set's questions into what our own verifiers take; the verdict is theirs alone.

    With `answer_pattern` the pattern's last match is the answer, and a response without one has none. A program stands
    between what its question gave it (imports, helpers) and what its tests need; one that does not define the function
    that HumanEval asks for goes on with the question's beginning.
    """

    def __init__(self, config: SetConfig, items: Sequence[Item]) -> None:
        self._pattern = config.answer_pattern
        self._items = {item.question.id: item for item in items}

    @property
    def votes(self) -> bool:
        """Whether responses can vote."""
        return all(item.question.ability in ("math", "exact") for item in self._items.values())

    def answer(self, question: str, response: str) -> Answer:
        """What the verifier is asked. ``question``: its id."""
        item = self._items[question]
        asked = item.question
        return Answer(
            ability=asked.ability,
            response=self._found(item, response),
            ground_truth=asked.ground_truth,
            data_source=asked.data_source,
            extra_info=asked.extra_info,
            other_truths=asked.other_truths,
        )

    def vote(self, question: str, response: str) -> str | None:
        """What the response votes for; None: nothing."""
        item = self._items[question]
        return vote_of(item.question.ability, self._found(item, response))

    def _found(self, item: Item, response: str) -> str:
        if item.question.ability == "code":
            return _program(item, response)
        if self._pattern is None:
            return response
        found = last_match(self._pattern, response)
        if found is None:
            return ""
        return f"<answer>{found}</answer>" if item.question.ability == "exact" else f"\\boxed{{{found}}}"


def _program(item: Item, response: str) -> str:
    code = extract_code(response)
    if code is None or not (item.before or item.after or item.start):
        return response
    if "from __future__" in code:  # such a line must come first
        return fenced(code + item.after)
    if item.start and f"def {item.entry_point}" not in code:
        return fenced(item.start + code + item.after)
    return fenced(item.before + code + item.after)
