"""The system prompt that asks for named actions, in our own words."""

from __future__ import annotations

from prime_megatron.data.actions import ACTIONS, FIRST, LAST

_MEANINGS = {
    "ASSESS": "take stock: what is given, what is asked, what is known so far, which ways are open",
    "ADVANCE": "move one step forward: carry out a calculation, apply a fact, derive something new from what is there",
    "VERIFY": "test what was found: recompute it another way, try extreme cases, hold it against the conditions",
    "SIMPLIFY": "make the task smaller: rewrite an expression, split the problem, remove what does not matter",
    "SYNTHESIZE": "put results together: combine parts into a whole, draw the conclusion that several of them allow",
    "PIVOT": "change course: say why the present way does not lead on, and choose another one",
    "OUTPUT": "give the final answer, in the form that the task asks for, with nothing left open",
}


def action_prompt() -> str:
    """What the model is told; the form is that of ``data.actions``."""
    meanings = "\n".join(f"[{action}] {_MEANINGS[action]}" for action in ACTIONS)
    return f"""\
Work on the task in steps. Each step is one of these actions:

{meanings}

How to write:
- A step begins on a new line with its action in brackets, such as [{FIRST}], and then says what you think and do.
- A step other than [{LAST}] ends with a line of its own that names what comes next, such as: Next action: [ADVANCE]
- The step that follows has the action that was named.
- Begin with [{FIRST}]. End with [{LAST}], once, and write nothing after it.
- Use as many steps as the task needs, in any order, and the same action as often as it helps. When a check fails, say \
so and go on from there.
- If the task asks for an answer inside \\boxed{{}} or for a program, it belongs into [{LAST}]."""
