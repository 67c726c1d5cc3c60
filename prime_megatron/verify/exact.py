"""Answers right when they are the same text, and tasks that bring their own rule."""

from collections.abc import Callable
from concurrent.futures import Future

from prime_megatron.verify.answer import CORRECT, ERROR, NO_ANSWER, WRONG, Answer, Verdict, finished
from prime_megatron.verify.boxed import last_answer


def exact_match(response: str, ground_truth: str) -> Verdict:
    r"""Ability "exact": the last <answer>...</answer> or \boxed{}, whichever begins later, against the ground truth.

    Equal means the same characters once runs of white space are one space; case and signs count.
    """
    found = last_answer(response)
    if found.text is None:
        return Verdict(0.0, NO_ANSWER, found.problem)
    if found.text.split() == ground_truth.split():
        return Verdict(1.0, CORRECT, "same text")
    return Verdict(0.0, WRONG, "another text")


class RuleVerifier:
    """A verifier from a quick pure function (response, ground truth) -> Verdict, run in the calling thread.

    A rule that raises scores 0 with verdict "error".
    """

    def __init__(self, rule: Callable[[str, str], Verdict]) -> None:
        self._rule = rule

    def submit(self, answer: Answer) -> "Future[Verdict]":
        try:
            return finished(self._rule(answer.response, answer.ground_truth))
        except Exception as failure:
            return finished(Verdict(0.0, ERROR, f"{type(failure).__name__}: {failure}"[:200]))

    def truth_problem(self, ground_truth: str) -> str | None:
        """A blank ground truth equals no answer: an empty box is none."""
        return None if ground_truth.strip() else "it is blank"

    def close(self) -> None:
        pass
