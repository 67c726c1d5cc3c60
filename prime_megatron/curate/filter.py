"""Stage `filter`: rules on rows; the first that speaks drops the row, the report counts all that do."""

from __future__ import annotations

from collections.abc import Sequence

from prime_megatron.config.curate import RuleConfig
from prime_megatron.curate.choice_rule import CHOICE, choice
from prime_megatron.curate.decision import Decision, drop, keep
from prime_megatron.curate.figure_rule import FIGURE, figure
from prime_megatron.curate.language import LANGUAGE, LANGUAGES, other_language
from prime_megatron.curate.proof_rule import PROOF, proof
from prime_megatron.curate.row import CuratedRow
from prime_megatron.errors import InputError
from prime_megatron.verify.boxed import last_boxed

BOX = "box"


def check_languages(config: RuleConfig) -> None:
    """Raises InputError for a language that the filter does not know."""
    unknown = [language for language in config.languages if language not in LANGUAGES]
    if unknown:
        raise InputError(f"filter.languages: {unknown[0]!r} is not known; use {', '.join(sorted(LANGUAGES))}")


def decide_rules(rows: Sequence[CuratedRow], config: RuleConfig) -> list[Decision]:
    """Which rows pass the rules."""
    return [_decide(row, config) for row in rows]


def marks_of(row: CuratedRow, config: RuleConfig) -> list[tuple[str, str]]:
    """(rule, why) of every rule that is on and speaks of the row."""
    found = {
        FIGURE: figure(row.problem) if config.figure else None,
        PROOF: proof(row.problem) if config.proof and row.ability != "code" else None,
        CHOICE: choice(row.problem, row.ground_truth) if row.ability != "code" else None,
        BOX: box(row) if config.box else None,
        LANGUAGE: other_language(row.problem, config.languages),
    }
    return [(rule, why) for rule, why in found.items() if why is not None]


def box(row: CuratedRow) -> str | None:
    """What is wrong with the last box of a row's solution; None: nothing, or it has none."""
    if row.ability != "math" or not row.solution:
        return None
    found = last_boxed(row.solution)
    return found.problem if found.text is None and found.start >= 0 else None


def _decide(row: CuratedRow, config: RuleConfig) -> Decision:
    marks = marks_of(row, config)
    dropping = [mark for mark in marks if mark[0] != CHOICE or config.choice == "drop"]
    if not dropping:
        return keep(row, *marks)
    rule, why = dropping[0]
    return drop(row, rule, why, *(mark for mark in marks if mark != dropping[0]))
