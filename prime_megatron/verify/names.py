r"""Which left sides name what an answer gives (x, S_{10}, P(A), \text{Area}), and which are equations (x^2, 2x, 0)."""

import re

_SUBSCRIPT = re.compile(r"_\s*(?:\{[^{}]*\}|\\?[A-Za-z0-9]+)")
_ARGUMENT = re.compile(r"(?<=[A-Za-z'\s}])\s*(?:\^\s*\{?\s*-1\s*\}?)?\s*\([^()]*\)")
_PRIME = re.compile(r"\^\s*(?:\{\s*(?:\\prime|\*|\\circ)+\s*\}|\\prime|\*|\\circ)|'")
_DERIVATIVE = re.compile(r"\\frac\s*\{\s*(?:d|\\partial)[^{}]*\}\s*\{\s*(?:d|\\partial)[^{}]*\}")
_CONSTANTS = frozenset(("\\pi", "e", "i", "\\infty", "\\mathrm{e}"))
_NAME = re.compile(r"(?:\\text\{[^{}0-9]*\}|\\[A-Za-z]+|[A-Za-z|{}()+\s.,-])+")
_WORD = re.compile(r"\\text\{[^{}]*\}|[A-Za-z]")


def is_name(text: str) -> bool:
    """Whether the text names one quantity: letters, subscripts, arguments, sums and products of names; no number, no
    power, and not a constant such as pi."""
    text = text.strip()
    if text in _CONSTANTS or not text or len(text) > 80:
        return False
    text = _DERIVATIVE.sub("y", text)
    text = _ARGUMENT.sub("", _PRIME.sub("", _SUBSCRIPT.sub("", text)))
    return _NAME.fullmatch(text) is not None and _WORD.search(text) is not None and "\\frac" not in text


def stem(name: str) -> str:
    """The name without its subscript: x for x_1 and x_{12}."""
    return _SUBSCRIPT.sub("", name).strip()


def is_closed(text: str) -> bool:
    """Whether the text is made of numbers alone: no letters but those of commands, e, i and pi."""
    bare = re.sub(r"\\[A-Za-z]+", " ", text)
    words = re.search(r"\\(?:text|alpha|beta|theta|lambda|mu|omega)", text)
    return words is None and re.search(r"[A-Za-df-hj-z]", bare) is None
