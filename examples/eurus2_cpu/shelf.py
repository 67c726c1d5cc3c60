"""The made problems: things that come to a place and go from it. Their text, reading it back, answers by rule.

    A shelf holds 12 books: 4 come, 8 go. How many books does it hold now?

    [ASSESS] 12                    an answer in the form of actions
    Next action: [ADVANCE]

    [ADVANCE] 4 come: 16
    Next action: [ADVANCE]

    [ADVANCE] 8 go: 8
    Next action: [OUTPUT]

    [OUTPUT] \\boxed{8}

A hurried pupil's answers slip as in the quick start: where 7 or more go across the ten, the ten is not taken off in
most cases, and where 7 or more come across it, it is not put on in some. A problem that says "some" in place of the
first number has no solution; the pupil overlooks one of ten of these and begins with 10.
"""

from __future__ import annotations

import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quickstart.make_task import Line, slip, worksheet

NUM_LINES = 8
PLACES = ("shelf", "cart", "box", "boat", "barn", "bag", "desk", "tent", "van", "crate", "drawer", "basket")
THINGS = ("books", "cups", "nuts", "pens", "balls", "coins", "keys", "hats", "eggs", "lamps", "stones", "shells")
UNKNOWN_START, NO_SOLUTION = "some", "No solution"
GUESSED_START, OVERLOOKED = 10, 0.1
_PROBLEM = re.compile(
    r"A (?P<place>\w+) holds (?P<start>\d+|some) (?P<things>\w+): (?P<lines>(?:[1-9] (?:come|go)(?:, )?)+)\. "
    r"How many \w+ does it hold now\?"
)
_CHOICES = re.compile(r"\s*\(A\).*", re.DOTALL)


@dataclass(frozen=True)
class Shelf:
    """A problem. ``start`` None: it is not told."""

    place: str
    things: str
    start: int | None
    lines: tuple[Line, ...]

    @property
    def text(self) -> str:
        """The problem as it is asked."""
        start = UNKNOWN_START if self.start is None else self.start
        moves = ", ".join(move(line) for line in self.lines)
        return f"A {self.place} holds {start} {self.things}: {moves}. How many {self.things} does it hold now?"

    def results(self, slips: random.Random | None = None) -> list[int]:
        """The first number and what each line comes to; ``slips``: as the pupil has it, never below zero where the
        first number is told."""
        start = GUESSED_START if self.start is None else self.start
        while True:
            found = [start]
            for line in self.lines:
                off = 0 if slips is None else slip(found[-1], line, slips)
                found.append(found[-1] + line.sign * line.digit + off)
            if slips is None or self.start is None or min(found) >= 0:
                return found

    @property
    def answer(self) -> int:
        """The right one."""
        return self.results()[-1]

    def solution(self) -> str:
        """A plain worked solution that ends in a box."""
        found = self.results()
        steps = [
            f"{before} {'+' if line.sign > 0 else '-'} {line.digit} = {after}"
            for before, line, after in zip(found, self.lines, found[1:], strict=False)
        ]
        return ", ".join(steps) + f". The answer is \\boxed{{{found[-1]}}}."

    def in_actions(self, rng: random.Random) -> str:
        """The pupil's answer in the form of actions."""
        if self.start is None and rng.random() >= OVERLOOKED:
            return f"[ASSESS] {UNKNOWN_START}\nNext action: [OUTPUT]\n\n[OUTPUT] \\boxed{{{NO_SOLUTION}}}"
        first, *found = self.results(rng)
        said = [f"[ASSESS] {first}"]
        said += [f"[ADVANCE] {move(line)}: {after}" for line, after in zip(self.lines, found, strict=True)]
        return "\nNext action: [ADVANCE]\n\n".join(said) + f"\nNext action: [OUTPUT]\n\n[OUTPUT] \\boxed{{{found[-1]}}}"


def move(line: Line) -> str:
    """A line's words."""
    return f"{line.digit} {'come' if line.sign > 0 else 'go'}"


def draw_shelf(rng: random.Random) -> Shelf:
    """A random problem."""
    sheet = worksheet(rng, NUM_LINES)
    return Shelf(rng.choice(PLACES), rng.choice(THINGS), sheet.start, sheet.lines)


def read_shelf(text: str) -> Shelf | None:
    """The first problem in a text; None: there is none."""
    found = _PROBLEM.search(text)
    if found is None:
        return None
    lines = tuple(
        Line(1 if word == "come" else -1, int(digit))
        for digit, word in re.findall(r"([1-9]) (come|go)", found["lines"])
    )
    start = None if found["start"] == UNKNOWN_START else int(found["start"])
    return Shelf(found["place"], found["things"], start, lines)


def without_choices(text: str) -> str:
    """A multiple-choice problem up to its first choice."""
    return _CHOICES.sub("", text).strip()
