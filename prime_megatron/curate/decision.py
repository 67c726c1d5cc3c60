"""What a stage decides about a row, and the report of all decisions: counts and examples by rule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prime_megatron.curate.row import DROPPED, CuratedRow, format_line, to_json

EXAMPLES = 5
"""Rows that stand in the report for each rule."""
_CHARS = 200
Row = dict[str, Any]


@dataclass(frozen=True)
class Decision:
    """A row, and why it is dropped."""

    line: bytes
    """The row as it goes on, a line; of a dropped row what there is of it."""
    rule: str = ""
    """The rule that drops it; empty: it is kept."""
    why: str = ""
    marks: tuple[tuple[str, str], ...] = ()
    """(rule, why) of all rules that speak of the row, the dropping one among them; those of a kept row are notes."""

    def row(self) -> Row:
        """The row's columns."""
        return dict(json.loads(self.line))


def keep(row: CuratedRow, *marks: tuple[str, str]) -> Decision:
    """The row goes on."""
    return Decision(format_line(to_json(row)), marks=marks)


def drop(row: CuratedRow, rule: str, why: str, *more: tuple[str, str]) -> Decision:
    """The row is left out by ``rule``; ``more``: further rules that speak of it."""
    return Decision(format_line(to_json(row)), rule, why, ((rule, why), *more))


def to_line(decision: Decision) -> bytes:
    """As a block keeps it: what is decided, a tab, the row."""
    head = json.dumps([decision.rule, decision.why, decision.marks]).encode()
    return head + b"\t" + decision.line


def from_line(line: bytes) -> Decision:
    """What `to_line` wrote."""
    head, _, row = line.partition(b"\t")
    rule, why, marks = json.loads(head)
    return Decision(row, rule, why, tuple((one, reason) for one, reason in marks))


def dropped_line(decision: Decision, stage: str) -> bytes:
    """A dropped row with why, for the file of dropped rows."""
    return format_line(decision.row() | {DROPPED: {"stage": stage, "rule": decision.rule, "why": decision.why}})


class Tally:
    """Counts and examples, in the order of the rows."""

    def __init__(self) -> None:
        self.rows_in = self.kept = 0
        self.dropped: dict[str, int] = {}
        self._rules: dict[str, dict[str, Any]] = {}

    def add(self, decision: Decision) -> None:
        """One row more."""
        self.rows_in += 1
        if decision.rule:
            self.dropped[decision.rule] = self.dropped.get(decision.rule, 0) + 1
        else:
            self.kept += 1
        for rule, why in decision.marks:
            found = self._rules.setdefault(rule, {"count": 0, "examples": []})
            found["count"] += 1
            if len(found["examples"]) < EXAMPLES:
                row = decision.row()
                text = " ".join(row["problem"].split())
                found["examples"].append({"id": row["id"], "why": why, "problem": text[:_CHARS]})

    def report(self) -> dict[str, Any]:
        """rows_in = kept + the sum of dropped; `rules` counts rows that a rule speaks of, whoever drops them."""
        assert self.rows_in == self.kept + sum(self.dropped.values())
        return {
            "rows_in": self.rows_in,
            "kept": self.kept,
            "dropped": dict(sorted(self.dropped.items())),
            "rules": dict(sorted(self._rules.items())),
        }
