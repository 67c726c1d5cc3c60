"""Ground truths held against themselves and against the source's own solution, by the verifiers that train."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from prime_megatron.curate.forms_math import Found
from prime_megatron.evaluate.item import fenced
from prime_megatron.verify import FAILURES, Answer, Verdict, Verifiers
from prime_megatron.verify.answer import CORRECT
from prime_megatron.verify.boxed import last_boxed

BAD_TRUTH, REFUTED, UNDECIDED, DISAGREES, FAILS = (
    "bad_truth", "gold_refuted", "gold_undecided", "solution_disagrees", "solution_fails",
)  # fmt: skip
Reason = tuple[str, str]
"""(rule, why)"""


def check_golds(rows: Sequence[Found], verifiers: Verifiers) -> list[Reason | None]:
    """Why each row's ground truth cannot be trained on; None: it can.

    A truth must be one that an answer can equal, and be found right as its own answer. Where the source's solution
    ends in a box, its answer must be right. Of a program's tests, one of the reference solutions must pass them all,
    in the jail; a row without one is not judged here.

    Raises:
        InputError: an ability that cannot be scored on this machine.
    """
    reasons = [_at_once(row, verifiers) for row in rows]
    left = [index for index, reason in enumerate(reasons) if reason is None]
    asked = [
        (index, *_submit(rows[index], verifiers)) for index in left if not verifiers.runs_programs(rows[index].ability)
    ]
    programs = [index for index in left if verifiers.runs_programs(rows[index].ability) and rows[index].programs]
    for index, reason in zip(programs, _run(rows, programs, verifiers), strict=True):
        reasons[index] = reason
    for index, itself, solution in asked:
        reasons[index] = _judge(itself.result(), None if solution is None else solution.result())
    return reasons


def gold_answer(ability: str, truth: str) -> str:
    """A response that gives the truth as its answer."""
    return f"\\boxed{{{truth}}}" if ability == "math" else f"<answer>{truth}</answer>"


def _at_once(row: Found, verifiers: Verifiers) -> Reason | None:
    problem = verifiers.truth_problem(row.ability, row.truth)
    return None if problem is None else (BAD_TRUTH, f"the ground truth: {problem}")


def _submit(row: Found, verifiers: Verifiers) -> tuple[Future[Verdict], Future[Verdict] | None]:
    itself = verifiers.submit(Answer(row.ability, gold_answer(row.ability, row.truth), row.truth))
    if row.ability != "math" or last_boxed(row.solution).text is None:
        return itself, None
    return itself, verifiers.submit(Answer(row.ability, row.solution, row.truth))


def _judge(itself: Verdict, solution: Verdict | None) -> Reason | None:
    for verdict, rule, what in ((itself, REFUTED, "the ground truth"), (solution, DISAGREES, "the solution's answer")):
        if verdict is None or verdict.verdict == CORRECT:
            continue
        if verdict.verdict in FAILURES:
            return UNDECIDED, f"{what}: {verdict.verdict} ({verdict.reason})"
        return rule, f"{what} is not equal to the ground truth ({verdict.verdict}: {verdict.reason})"
    return None


def _run(rows: Sequence[Found], programs: Sequence[int], verifiers: Verifiers) -> list[Reason | None]:
    """Of the rows with programs: None where one passes, else what the last one came to."""
    reasons: dict[int, Reason | None] = {}
    left, turn = list(programs), 0
    while left:
        futures = [
            (index, verifiers.submit(Answer("code", fenced(rows[index].programs[turn]), rows[index].truth)))
            for index in left
        ]
        for index, future in futures:
            verdict = future.result()
            passed = verdict.verdict == CORRECT
            tried = f"{turn + 1} reference solution{'s' if turn else ''}"
            reasons[index] = (
                None if passed else (FAILS, f"{tried}, none passes its tests ({verdict.verdict}: {verdict.reason})")
            )
        turn += 1
        left = [index for index in left if reasons[index] is not None and len(rows[index].programs) > turn]
    return [reasons[index] for index in programs]
