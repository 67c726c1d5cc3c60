"""Responses in the form of named actions: steps that each say what is done and what comes next.

    [ASSESS] what is given, what is asked     ...     Next action: [ADVANCE]
    [ADVANCE] ...                                     Next action: [OUTPUT]
    [OUTPUT] the answer

A step opens with its action in brackets at the start of a line (a heading's # or bold may stand before it). Every step
but OUTPUT ends with `Next action: [X]`, X the action of the step that follows; the first step is ASSESS, the
last one OUTPUT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ACTIONS = ("ASSESS", "ADVANCE", "VERIFY", "SIMPLIFY", "SYNTHESIZE", "PIVOT", "OUTPUT")
FIRST, LAST = "ASSESS", "OUTPUT"
_HEAD = re.compile(
    r"^[ \t]*(?:#{1,6}[ \t]*)?(?:step[ \t]*\d+[.:]?[ \t]*)?\**\[([A-Z][A-Z ]*)\]", re.MULTILINE | re.IGNORECASE
)
_NEXT = re.compile(r"(?<!\w)[*_]*next action[*_]*\s*:\s*[*_]*\s*\[([A-Z ]+)\][\s*_.]*\Z", re.IGNORECASE)

NO_STEPS, BEGINS_OTHERWISE, UNKNOWN_ACTION, EMPTY_STEP, NO_NEXT, OTHER_NEXT, GOES_ON, ENDS_OTHERWISE = (
    "no_steps", "begins_otherwise", "unknown_action", "empty_step", "no_next_action", "other_next_action",
    "output_goes_on", "ends_otherwise",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of a response."""

    action: str
    """In capitals; perhaps none of ACTIONS."""
    text: str
    """Without the action and without the line about the next one."""
    next_action: str | None
    """What the step's last line names; None: it names nothing."""


def read_steps(response: str) -> list[Step]:
    """The steps of a response, in order; [] where no line opens one."""
    heads = list(_HEAD.finditer(response))
    steps = []
    for number, head in enumerate(heads, start=1):
        text = response[head.end() : heads[number].start() if number < len(heads) else len(response)]
        following = _NEXT.search(text)
        body, named = (text, None) if following is None else (text[: following.start()], following[1].upper().strip())
        steps.append(Step(head[1].upper().strip(), body.strip("* \t\n:"), named))
    return steps


def keeps_form(response: str) -> bool:
    """Whether nothing breaks the form."""
    return form_problem(response) is None


def form_problem(response: str) -> tuple[str, str] | None:
    """(rule, why) of the first thing that breaks the form; None: it is kept."""
    steps, first = read_steps(response), _HEAD.search(response)
    if first is None:
        return NO_STEPS, "no line opens a step with an action in brackets"
    before = response[: first.start()].strip()
    if before or steps[0].action != FIRST:
        return BEGINS_OTHERWISE, f"begins with {(before or steps[0].action)[:40]!r}, not with [{FIRST}]"
    for number, step in enumerate(steps, start=1):
        last = number == len(steps)
        if step.action not in ACTIONS:
            return UNKNOWN_ACTION, f"step {number} is [{step.action[:40]}]"
        if not step.text:
            return EMPTY_STEP, f"step {number} says nothing"
        if step.action == LAST and (not last or step.next_action is not None):
            return GOES_ON, f"step {number} is [{LAST}] and is not the end"
        if step.action != LAST and not last and step.next_action is None:
            return NO_NEXT, f"step {number} does not end with the next action"
        if not last and step.next_action != steps[number].action:
            return OTHER_NEXT, f"step {number} names [{step.next_action}], then comes [{steps[number].action}]"
    if steps[-1].action != LAST:
        return ENDS_OTHERWISE, f"ends with [{steps[-1].action}]"
    return None
