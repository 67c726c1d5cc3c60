"""Whether questions can be scored here, told before anything is asked."""

from __future__ import annotations

from collections.abc import Sequence

from prime_megatron.errors import InputError
from prime_megatron.generate.questions import Question
from prime_megatron.verify import Verifiers


def check_gradable(questions: Sequence[Question], verifiers: Verifiers) -> bool:
    """Whether any of them asks for a program, which a jail must hold.

    Raises:
        InputError: a question without ability and ground truth, or one that no verifier can score; by file and row.
    """
    for question in questions:
        if not question.ability or not question.ground_truth:
            raise InputError(f"{question.origin}: no ability and ground truth to grade by")
        try:
            truths = (question.ground_truth, *question.other_truths)
            problems = [verifiers.truth_problem(question.ability, truth) for truth in truths]
        except InputError as error:
            raise InputError(f"{question.origin}: {error}") from None
        problem = next((problem for problem in problems if problem is not None), None)
        if problem is not None:
            raise InputError(f"{question.origin}: ground truth: {problem}")
    return any(verifiers.runs_programs(question.ability) for question in questions)
