"""Answers that are given, not generated: samples of a file, a set's solutions, or those dealt to other questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prime_megatron.errors import InputError
from prime_megatron.evaluate.grading import SetGrader
from prime_megatron.evaluate.item import Item
from prime_megatron.generate.questions import Question
from prime_megatron.generate.sample import GeneratedSample, read_samples
from prime_megatron.rollout.generate import Scorer

CANONICAL, DEALT = "canonical", "dealt"
"""Words in a model's place: every question's own solution, and every question's neighbour's."""


def given_responses(model: str, name: str, items: Sequence[Item], num_sets: int) -> dict[str, list[str]] | None:
    """Responses by question's id; None: the model is none of the words and no file of samples.

    Args:
        model: `canonical`, `dealt`, a .jsonl file of samples (for a suite of one set), or a folder with <set>.jsonl.

    Raises:
        InputError: a set without solutions, a file that lacks a question or has one that the set does not know.
    """
    path = Path(model)
    if model in (CANONICAL, DEALT) and not path.exists():
        return _own(name, items, dealt=model == DEALT)
    if path.suffix == ".jsonl":
        if num_sets > 1:
            raise InputError(f"{model}: one file for {num_sets} sets; name a folder with <set>.jsonl, or choose --sets")
        return _of_file(path, name, items)
    if (path / f"{name}.jsonl").is_file():
        return _of_file(path / f"{name}.jsonl", name, items)
    return None


def _own(name: str, items: Sequence[Item], *, dealt: bool) -> dict[str, list[str]]:
    answers = [item.canonical for item in items]
    if any(answer is None for answer in answers):
        raise InputError(f"set {name}: its rows have no solutions, so there is nothing canonical to grade")
    shift = 1 if dealt else 0
    moved = [*answers[shift:], *answers[:shift]]
    return {item.question.id: [answer or ""] for item, answer in zip(items, moved, strict=True)}


def _of_file(path: Path, name: str, items: Sequence[Item]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {item.question.id: [] for item in items}
    for sample in read_samples(path):
        if sample.id not in found:
            raise InputError(f"{path}: id {sample.id!r} is no question of set {name}")
        found[sample.id].append(sample.response)
    counts = {len(responses) for responses in found.values()}
    lacking = [question for question, responses in found.items() if not responses]
    if lacking:
        raise InputError(f"{path}: no response to question {lacking[0]!r} of set {name} ({len(lacking)} lack one)")
    if len(counts) > 1:
        raise InputError(f"{path}: questions of set {name} have {min(counts)} to {max(counts)} responses; give each n")
    return found


class GivenAnswerer:
    """See `Answerer`: grades what is given."""

    def __init__(self, responses: Mapping[str, Sequence[str]], grader: SetGrader, scorer: Scorer) -> None:
        self._responses, self._grader, self._scorer = responses, grader, scorer

    def answer(self, questions: Sequence[Question]) -> list[GeneratedSample]:
        """See `Answerer.answer`."""
        given = [(one, place, text) for one in questions for place, text in enumerate(self._responses[one.id])]
        verdicts = [self._scorer.submit(self._grader.answer(one.id, text)) for one, _, text in given]
        return [
            GeneratedSample(
                id=one.id,
                sample=place,
                prompt=one.prompt,
                response=text,
                truncated=False,
                data_source=one.data_source or None,
                ability=one.ability,
                ground_truth=one.ground_truth,
                outcome=verdict.result().score,
                verdict=verdict.result().verdict,
                reason=verdict.result().reason,
            )
            for (one, place, text), verdict in zip(given, verdicts, strict=True)
        ]
