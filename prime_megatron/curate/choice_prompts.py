"""What a model is asked to turn a multiple-choice problem into an open one, and how its replies are read."""

from __future__ import annotations

import re

REMOVABLE = """\
Below is a multiple-choice problem. Suppose that its choices were deleted and the rest stayed as it is. Could a student
still work out one definite answer?

Say no where the choices carry something that is needed, for example where the task is to pick a true statement, to
compare the choices with each other, or to name the nearest one.

Examples:
"What is 3 + 4? (A) 6 (B) 7 (C) 8" can do without its choices.
"Which of these numbers is prime? (A) 21 (B) 23 (C) 25" cannot: many numbers are prime.

Reply with two lines and nothing else:
Decision: yes or no
Reason: one short sentence

Problem:
{problem}"""

QUESTION = """\
Rewrite the multiple-choice problem below as an open problem. Delete the choices and every mention of them. Keep all
numbers, conditions and formulas as they are; add nothing and solve nothing. If the text ends in a blank to be filled,
turn it into a question.

Put the new problem between <question> and </question>, and write nothing else.

Problem:
{problem}"""

SOLUTION = """\
Below are an open problem and a solution that was written when the problem still had choices. Rewrite the solution so
that it never speaks of choices or letters. It ends with the answer inside \\boxed{}: the value, not a letter.
{hint}
Put the new solution between <solution> and </solution>, and write nothing else.

Problem:
{problem}

Solution:
{solution}"""

HINT = "The choice that is right reads: {option}\n"

_DECISION = re.compile(r"^\W*decision\W*\s*\W*(yes|no)\b", re.IGNORECASE | re.MULTILINE)
_REASON = re.compile(r"^\W*reason\W*[:\-]\W*(.+)$", re.IGNORECASE | re.MULTILINE)


def read_decision(reply: str) -> tuple[bool, str]:
    """(can it do without, reason) of a reply to REMOVABLE. Raises ValueError: it holds no decision, or both."""
    decisions = {found[1].lower() for found in _DECISION.finditer(reply)}
    if len(decisions) != 1:
        raise ValueError(f"no line `Decision: yes or no` in {reply[:80]!r}")
    reason = _REASON.search(reply)
    return decisions == {"yes"}, reason[1].strip() if reason else ""


def read_tagged(reply: str, tag: str) -> str:
    """The text between the tags of a reply. Raises ValueError: there is none."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", reply, re.DOTALL | re.IGNORECASE)
    if len(found) != 1 or not found[0].strip():
        raise ValueError(f"no text between <{tag}> and </{tag}> in {reply[:80]!r}")
    return str(found[0].strip())
