"""Stage `choices`: multiple choice to open questions, by a rule and three passes of a model.

1 can the choices be removed? 2 the question without them; 3 the solution without them, its answer in a box. A pass
whose reply cannot be used is asked again, a bounded number of times; what was decided stays beside the row. Rows that
are no multiple choice pass through as they are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from prime_megatron.config.curate import ChoicesConfig, WordingConfig
from prime_megatron.curate.asking import AnswererOf, Asked, Draws, ask_rounds
from prime_megatron.curate.choice_prompts import HINT, QUESTION, REMOVABLE, SOLUTION, read_decision, read_tagged
from prime_megatron.curate.choice_rule import choice, options_of
from prime_megatron.curate.decision import Decision, drop, keep
from prime_megatron.curate.figure_rule import figure
from prime_megatron.curate.proof_rule import proof
from prime_megatron.curate.row import CuratedRow, ask
from prime_megatron.verify import Answer, Verifiers
from prime_megatron.verify.answer import WRONG
from prime_megatron.verify.boxed import last_boxed

NEEDS_CHOICES, NOT_REMOVABLE, UNREADABLE = "needs_choices", "not_removable", "unreadable"
REWRITTEN = "rewritten"
_NEEDED = re.compile(
    r"\b(?:which|what)\s+(?:one\s+)?(?:of|among)\s+(?:the|these)\b|\b(?:which|what)\s+(?:statement|option|choice)s?\b"
    r"|\b(?:following|these)\s+(?:\w+\s+)?(?:statements?|options?|choices?|claims?|conclusions?|propositions?)\b"
    r"|\b(?:none|all|both|neither)\s+of\s+(?:the\s+)?(?:above|these)\b|\b(?:closest|nearest)\s+to\b",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\W*(?:\\(?:text|mathrm|textbf)\W*)?[A-H]\W*")


class ChoiceRewriter:
    """Decides about rows, block by block, and counts.

    Args:
        config, wording: settings.
        answerer_of: the model.
        verifiers: hold a new answer against the choice that was right.
    """

    def __init__(
        self, config: ChoicesConfig, wording: WordingConfig, answerer_of: AnswererOf, verifiers: Verifiers
    ) -> None:
        self._config, self._wording, self._verifiers = config, wording, verifiers
        how = config.ask
        temperatures = [how.temperature, *[config.retry_temperature] * (config.rounds - 1)]
        self._answerers = [
            answerer_of(Draws(1, temperature, how.top_p, how.max_tokens, how.seed)) for temperature in temperatures
        ]

    def decide(self, rows: Sequence[CuratedRow]) -> list[Decision]:
        """Every row's decision, in their order."""
        choices = {row.id: row for row in rows if row.ability == "math" and choice(row.problem, row.ground_truth)}
        needed = {name: words[0] for name, row in choices.items() if (words := _NEEDED.search(row.problem))}
        passes = self._ask([row for name, row in choices.items() if name not in needed])
        decisions = []
        for row in rows:
            if row.id not in choices:
                decisions.append(keep(row))
            elif row.id in needed:
                decisions.append(drop(row, NEEDS_CHOICES, f"says {needed[row.id]!r}"))
            else:
                decisions.append(
                    self._decide(row, {name: own[row.id] for name, own in passes.items() if row.id in own})
                )
        return decisions

    def _ask(self, rows: Sequence[CuratedRow]) -> dict[str, dict[str, Asked]]:
        """Pass -> row's id -> what came of it; a row that fails in a pass is not asked in the next."""
        removable = ask_rounds(
            {row.id: REMOVABLE.replace("{problem}", row.problem) for row in rows},
            "removable",
            lambda name, reply: read_decision(reply),
            self._answerers,
        )
        rows = [row for row in rows if (found := removable[row.id].reply) is not None and found[0]]
        questions = ask_rounds(
            {row.id: QUESTION.replace("{problem}", row.problem) for row in rows},
            "question",
            lambda name, reply: _question(reply),
            self._answerers,
        )
        left = {row.id: row for row in rows if questions[row.id].reply is not None}
        solutions = ask_rounds(
            {name: _ask_solution(row, questions[name].reply) for name, row in left.items()},
            "solution",
            lambda name, reply: self._solution(left[name], reply),
            self._answerers,
        )
        return {"removable": removable, "question": questions, "solution": solutions}

    def _decide(self, row: CuratedRow, passes: dict[str, Asked]) -> Decision:
        told: dict[str, Any] = {name: vars(asked) for name, asked in passes.items()}
        told["original"] = {"problem": row.problem, "ground_truth": row.ground_truth, "solution": row.solution}
        noted = dataclasses.replace(row, curation={**row.curation, "choices": told})
        for name, asked in passes.items():
            if asked.reply is None:
                return drop(noted, UNREADABLE, f"{name}: {asked.rounds} replies, the last one: {asked.problem}"[:200])
        can, reason = passes["removable"].reply
        if not can:
            return drop(noted, NOT_REMOVABLE, reason or "the model says no")
        problem, (solution, truth) = passes["question"].reply, passes["solution"].reply
        prompt = ask(problem, row.ability, self._wording)
        open_row = dataclasses.replace(noted, problem=problem, prompt=prompt, ground_truth=truth, solution=solution)
        return keep(open_row, (REWRITTEN, f"{row.ground_truth} -> {truth}"))

    def _solution(self, row: CuratedRow, reply: str) -> tuple[str, str]:
        """(solution, answer). Raises ValueError: no box, a letter, another value than the choice that was right."""
        text = read_tagged(reply, "solution")
        found = last_boxed(text)
        if found.text is None:
            raise ValueError(f"the solution: {found.problem}")
        if _LETTER.fullmatch(found.text):
            raise ValueError(f"the answer is still the letter {found.text!r}")
        problem = self._verifiers.truth_problem("math", found.text)
        if problem is not None:
            raise ValueError(f"the answer: {problem}")
        option = _right_option(row)
        if option and self._verifiers.score([Answer("math", text, option)])[0].verdict == WRONG:
            raise ValueError(f"the answer {found.text!r} is not the choice {option!r}")
        return text, found.text


def _question(reply: str) -> str:
    text = read_tagged(reply, "question")
    for name, rule in (("choices", choice), ("a figure", figure), ("a proof", proof)):
        why = rule(text)
        if why is not None:
            raise ValueError(f"the question still has {name} ({why})")
    return text


def _ask_solution(row: CuratedRow, question: str) -> str:
    option = _right_option(row)
    hint = HINT.replace("{option}", option) if option else ""
    solution = row.solution or f"The answer is {row.ground_truth}."
    return SOLUTION.replace("{hint}", hint).replace("{problem}", question).replace("{solution}", solution)


def _right_option(row: CuratedRow) -> str:
    """The text of the choice that is right; empty: not known."""
    if row.ground_truth is None:
        return ""
    if not _LETTER.fullmatch(row.ground_truth):
        return row.ground_truth
    letter = re.sub(r"\\[a-z]+|[^A-H]", "", row.ground_truth)
    return options_of(row.problem).get(letter, "")
