"""What attempts at a problem came to: the status of each, and whether together they say that the problem can be kept.

status        an attempt that
right         equals the reference
wrong         has another answer
answered      has an answer, and the row has no reference
no_solution   says that the problem has none
no_answer     ends without an answer
cut           was cut at the length limit before it gave one
undecided     could not be held against the reference in time
failed        did not come back: the server failed or refused
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prime_megatron.config.curate import AttemptsConfig
from prime_megatron.curate.row import CuratedRow
from prime_megatron.evaluate.votes import vote_of
from prime_megatron.generate.sample import GeneratedSample
from prime_megatron.verify import FAILURES
from prime_megatron.verify.answer import CORRECT
from prime_megatron.verify.boxed import last_boxed

STATUSES = ("right", "wrong", "answered", "no_solution", "no_answer", "cut", "undecided", "failed")
UNANSWERED, UNSOLVABLE, OTHER_ANSWER, NO_AGREEMENT, TOO_HARD, TOO_EASY, PLANTED = (
    "unanswered", "unsolvable", "other_answer", "no_agreement", "too_hard", "too_easy", "planted_unsolvable",
)  # fmt: skip
_REFERENCE = "\0reference"
"""The vote of every right answer, however it is spelled."""
_NONE = re.compile(
    r"(?:there\s+(?:is|are)\s+)?no\s+(?:real\s+|valid\s+|possible\s+|such\s+|unique\s+)?(?:solutions?|answers?)(?:\s+exists?)?"
    r"|unsolvable|not\s+solvable|(?:it\s+)?(?:can\s?not|can't)\s+be\s+(?:solved|determined)"
    r"|(?:not\s+enough|insufficient)\s+(?:information|data)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Attempts:
    """What the attempts at one problem say together; shares are of those that came back."""

    statuses: tuple[str, ...]
    came_back: float
    """Share of all attempts."""
    no_solution: float
    right: float | None
    """None: the row has no reference."""
    agreement: float | None
    """Share with the most frequent answer; None: answers of this ability have no votes (programs)."""
    majority: str
    """That answer; empty: there is none, or it is the reference."""

    def to_json(self) -> dict[str, Any]:
        """As the row keeps it."""
        return vars(self) | {"statuses": list(self.statuses)}


def judge(row: CuratedRow, samples: Sequence[GeneratedSample]) -> Attempts:
    """What a row's attempts came to; at least one, graded where the row has a ground truth."""
    statuses = [status_of(row, sample) for sample in samples]
    back = [place for place, status in enumerate(statuses) if status != "failed"]
    votes = Counter(
        _REFERENCE if statuses[place] == "right" else vote
        for place in back
        if statuses[place] in ("right", "wrong", "answered", "undecided")
        if (vote := vote_of(row.ability, samples[place].response)) is not None
    )
    majority, count = max(votes.items(), key=lambda item: (item[1], item[0] == _REFERENCE), default=("", 0))
    count_back = max(1, len(back))
    return Attempts(
        statuses=tuple(statuses),
        came_back=len(back) / len(samples),
        no_solution=statuses.count("no_solution") / count_back,
        right=None if row.ground_truth is None else statuses.count("right") / count_back,
        agreement=None if row.ability not in ("math", "exact") else count / count_back,
        majority="" if majority == _REFERENCE else majority,
    )


def status_of(row: CuratedRow, sample: GeneratedSample) -> str:
    """One of STATUSES."""
    if sample.failure is not None:
        return "failed"
    if sample.verdict == CORRECT:
        return "right"
    if row.ability == "math" and says_no_solution(sample.response):
        return "no_solution"
    if row.ability in ("math", "exact") and vote_of(row.ability, sample.response) is None:
        return "cut" if sample.truncated else "no_answer"
    if sample.verdict in FAILURES:
        return "undecided"
    if sample.truncated and sample.verdict == "no_code":
        return "cut"
    return "answered" if sample.verdict is None else "wrong"


def says_no_solution(response: str) -> bool:
    r"""Whether the last box holds words such as "No solution"."""
    text = last_boxed(response).text
    if text is None:
        return False
    plain = re.sub(r"\\(?:text|textbf|mathrm|mbox)\b|\\[ ,;!]|[{}$~]", " ", text)
    return _NONE.fullmatch(" ".join(plain.split()).rstrip(".!")) is not None


def verdict_on(row: CuratedRow, attempts: Attempts, config: AttemptsConfig) -> tuple[str, str] | None:
    """(rule, why) where the row is not kept; None: it is."""
    tried = f"{len(attempts.statuses)} attempts"
    if attempts.came_back == 0 or attempts.came_back < config.min_answered:
        return UNANSWERED, f"{attempts.came_back:.0%} of {tried} came back"
    if attempts.no_solution > config.max_no_solution:
        return UNSOLVABLE, f"{attempts.no_solution:.0%} of {tried} say that it has no solution"
    right, agreement = attempts.right, attempts.agreement
    if agreement is not None:
        other = attempts.majority and right is not None and agreement > right
        if other and agreement >= config.min_agreement and agreement * len(attempts.statuses) >= 2:
            return (
                OTHER_ANSWER,
                f"{agreement:.0%} of {tried} have {attempts.majority[:60]!r}, {right:.0%} the reference",
            )
        if agreement < config.min_agreement:
            return NO_AGREEMENT, f"{agreement:.0%} of {tried} have one answer"
    if right is not None and right < config.min_right:
        return TOO_HARD, f"{right:.0%} of {tried} are right"
    if right is not None and right > config.max_right:
        return TOO_EASY, f"{right:.0%} of {tried} are right"
    return (PLANTED, "kept as solvable, and known to have no solution") if row.solvable is False else None
