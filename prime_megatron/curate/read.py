"""Stage `read`: published files to rows of one schema, each with a ground truth that holds against itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from prime_megatron.config.curate import CurateConfig, ReadConfig, WordingConfig
from prime_megatron.curate.decision import Decision, drop, keep
from prime_megatron.curate.forms_code import apps, code_contests, codeforces, taco
from prime_megatron.curate.forms_math import (
    EMPTY_BOX,
    NO_BOX,
    NO_PROBLEM,
    NO_TRUTH,
    UNCLOSED_BOX,
    Found,
    eurus,
    gsm8k,
    math,
    numina,
    plain,
)  # fmt: skip
from prime_megatron.curate.gold import check_golds
from prime_megatron.curate.row import CuratedRow, ask
from prime_megatron.errors import InputError
from prime_megatron.generate.tables import Row
from prime_megatron.verify import Verifiers

Form = Callable[[Row, str, ReadConfig], Found]
FORMS: dict[str, Form] = {
    "numina": numina, "apps": apps, "code_contests": code_contests, "taco": taco, "codeforces": codeforces,
    "gsm8k": gsm8k, "math": math, "plain": plain, "eurus": eurus,
}  # fmt: skip
"""Name -> (row, "file, row n", config) to what the row holds; InputError for a row of another form."""
NO_SOLUTION, UNPROVEN = "no_solution", "unproven_tests"
_TRUTHLESS = (NO_TRUTH, NO_BOX, UNCLOSED_BOX, EMPTY_BOX)


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A published row and the name that it gets."""

    id: str
    found: Found


class SourceReader:
    """See `Reader`: a published form's rows, named NAME-0000000 and so on.

    Args:
        form: one of FORMS.
        name: of the source; begins the ids.
        config: of the stage.
        require: raises InputError for an ability that cannot be scored.
    """

    def __init__(self, form: str, name: str, config: CurateConfig, require: Callable[[str], object]) -> None:
        self._form, self._name, self._config, self._require = FORMS[form], name, config.read, require
        self.abilities: set[str] = set()
        """Those of the rows that were read."""

    def __call__(self, row: Row, origin: str, place: int) -> Numbered:
        """See `Reader.__call__`."""
        found = self._form(row, origin, self._config)
        if found.ability not in self.abilities:
            try:
                self._require(found.ability)
            except InputError as error:
                raise InputError(f"{origin}: {error}") from None
            self.abilities.add(found.ability)
        return Numbered(f"{self._name}-{place:07d}", found)


def decide_sources(rows: Sequence[Numbered], config: CurateConfig, verifiers: Verifiers) -> list[Decision]:
    """Which published rows can be used, as rows of ours.

    Raises:
        InputError: an ability that cannot be scored on this machine.
    """
    early = {row.id: _early(row.found, config.read) for row in rows}
    checked = [row for row in rows if early[row.id] is None and row.found.truth]
    reasons = dict(
        zip((row.id for row in checked), check_golds([row.found for row in checked], verifiers), strict=True)
    )
    decisions = []
    for row in rows:
        reason = early[row.id] or reasons.get(row.id)
        ours = _as_row(row, config.wording)
        if reason is not None:
            decisions.append(drop(ours, *reason))
        elif verifiers.runs_programs(row.found.ability) and row.found.truth and not row.found.programs:
            decisions.append(keep(ours, (UNPROVEN, "no reference solution in Python 3 ran its tests")))
        else:
            decisions.append(keep(ours))
    return decisions


def _early(found: Found, config: ReadConfig) -> tuple[str, str] | None:
    """Why a row cannot be used, as far as its form tells."""
    if not found.problem.strip():
        return NO_PROBLEM, "the problem is empty"
    if found.why_not is not None and not (config.without_truth == "keep" and found.why_not[0] in _TRUTHLESS):
        return found.why_not
    if not found.truth and config.without_truth == "drop":
        return NO_TRUTH, "the row has no answer"
    if found.ability == "code" and not found.programs and config.without_solution == "drop":
        return NO_SOLUTION, "no reference solution in Python 3"
    return None


def _as_row(row: Numbered, wording: WordingConfig) -> CuratedRow:
    found = row.found
    return CuratedRow(
        id=row.id,
        problem=found.problem,
        prompt=found.prompt or ask(found.problem, found.ability, wording),
        ability=found.ability,
        data_source=found.data_source,
        ground_truth=found.truth or None,
        solution=found.solution or None,
        extra_info=json.loads(json.dumps(dict(found.extra_info), default=str)),
        solvable=found.solvable,
    )
