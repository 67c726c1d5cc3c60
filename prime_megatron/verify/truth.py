"""Ground truths before anything is scored: what can be told of one without computer algebra."""

import re

from prime_megatron.verify.compare import is_nan, quick_equal
from prime_megatron.verify.forms import Words, read_form
from prime_megatron.verify.limits import MAX_CHARS, refuse
from prime_megatron.verify.spelling import respell

_NO_ANSWER = re.compile(
    r"(?:please\s+)?(?:see|refer\s+to|as\s+shown\s+in|check)\s+(?:the\s+|attached\s+)*"
    r"(?:figure|solution|diagram|proof|explanation|above|below|answer|text|graph|table|picture|image|attachment)s?\b.*"
    r"|(?:proof|prove(?:d|n)?)(?:\s+(?:omitted|given|below|above|required|by|that)\b.*)?|q\.?e\.?d"
    r"|(?:answer|solution|result)?\s*(?:is\s+)?not\s*(?:found|available|given|provided|applicable)|n/?a|null|todo|tbd"
    r"|answers?\s+(?:may\s+|will\s+)?var(?:y|ies)|(?:answer|solution)?\s*omitted|no\s+answer(?:\s+(?:given|provided))?"
    r"|unanswered|error|[?.\u2026_-]+",
    re.IGNORECASE,
)  # fmt: skip


def math_problem(truth: str) -> str | None:
    r"""Why no answer in mathematics can equal this ground truth; None: one can.

    truth: taken out of its "####" or \boxed{} already. Text such as "even" is a truth; what stands where a truth is
    missing (nothing, nan, "see the figure", "proof", "not found") is none.
    """
    if not truth.strip():
        return "it is blank"
    if is_nan(truth):
        return "it is nan, a missing value"
    if len(truth) > MAX_CHARS:
        return None
    spelled = respell(truth)
    if not spelled:
        return "it is blank"
    words = " ".join(re.sub(r"\\text\{([^{}]*)\}", r" \1 ", spelled).split()).rstrip(".") or spelled
    if _NO_ANSWER.fullmatch(words) is not None:
        return f"{words[:60]!r} stands where an answer is missing"
    if truth.count("{") - truth.count("\\{") != truth.count("}") - truth.count("\\}"):
        return f"its braces do not close: {truth[:60]!r}"
    return None


def needs_computing(truth: str) -> bool:
    """Whether only computer algebra can tell that the truth equals itself: no number, no choice, no words."""
    if len(truth) > MAX_CHARS or refuse(truth, truth) is not None:
        return False  # answers are compared with it as text
    spelled = respell(truth)
    if isinstance(read_form(spelled), Words):
        return False
    # Numbers, choices and numbers in a base are told apart from another one without it.
    return quick_equal(truth, "1") is None and quick_equal(truth, "A") is None
