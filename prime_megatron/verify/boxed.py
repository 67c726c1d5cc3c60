r"""Finds the final answer in a response: the last \boxed{...} or the last <answer>...</answer>."""

import re
from dataclasses import dataclass

_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace (\{) is text; so is what follows a double backslash
_BOX = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True)
class BoxedAnswer:
    """text: the answer, stripped, or None; problem: why there is none ("" when there is one); start: its offset."""

    text: str | None
    problem: str
    start: int


def last_boxed(response: str) -> BoxedAnswer:
    r"""The content of the last \boxed{...}, with balanced braces. Linear in the length of the response.

    The last box decides: when it is cut off or empty there is no answer, whatever stands before it.
    A \boxed without a brace after it is prose and is passed over.
    """
    end = len(response)
    while (start := response.rfind("\\boxed", 0, end)) >= 0:
        opening = _BOX.match(response, start)
        if opening is not None:
            return _balanced(response, start, opening.end())
        end = start
    return BoxedAnswer(None, "no \\boxed{}", -1)


def _balanced(response: str, start: int, inside: int) -> BoxedAnswer:
    depth = 1
    for brace in _BRACES.finditer(response, inside):
        token = brace.group()
        if token == "{":
            depth += 1
        elif token == "}":
            depth -= 1
            if depth == 0:
                text = response[inside : brace.start()].strip()
                return BoxedAnswer(text, "", start) if text else BoxedAnswer(None, "the last \\boxed{} is empty", start)
    return BoxedAnswer(None, "the last \\boxed{ is not closed", start)


def last_answer_tag(response: str) -> BoxedAnswer:
    """The content of the last <answer>...</answer>; unclosed or empty is no answer."""
    start = response.rfind("<answer>")
    if start < 0:
        return BoxedAnswer(None, "no <answer>", -1)
    inside = start + len("<answer>")
    end = response.find("</answer>", inside)
    if end < 0:
        return BoxedAnswer(None, "the last <answer> is not closed", start)
    text = response[inside:end].strip()
    return BoxedAnswer(text, "", start) if text else BoxedAnswer(None, "the last <answer> is empty", start)


def last_answer(response: str) -> BoxedAnswer:
    r"""Whichever of the last <answer> and the last \boxed{} begins later."""
    tag, box = last_answer_tag(response), last_boxed(response)
    if tag.start < 0 and box.start < 0:
        return BoxedAnswer(None, "neither <answer> nor \\boxed{}", -1)
    # <answer>\boxed{7}</answer> holds one answer: the inner one, which is the one that begins later.
    return tag if tag.start > box.start else box
