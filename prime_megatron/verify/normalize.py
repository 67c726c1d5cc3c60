r"""LaTeX answers as plain strings and exact numbers, without a parser. Nothing here evaluates an answer."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_NUMBER_CHARS = 128

_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
        "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "/", "\u2044": "/", "\u00b1": "\\pm ",
        "\u03c0": "\\pi ", "\u03b8": "\\theta ", "\u221e": "\\infty ", "\u00b0": "^\\circ ", "\u222a": "\\cup ",
        "\u2229": "\\cap ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u00b2": "^{2}", "\u00b3": "^{3}",
        "\uff04": "$", "\uff05": "%",
    }
)  # fmt: skip
_ROOT = re.compile(r"\u221a\s*([0-9]+)")
_SIZING = re.compile(r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?)(?![a-zA-Z])")
_FRAC_KIND = re.compile(r"\\[dtc]frac(?![a-zA-Z])")
_NEGATIVE_SPACE = re.compile(r"(?<!\\)\\!\s*")
_THIN_GROUP = re.compile(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))")
_TEX_SPACE = re.compile(r"(?<!\\)(?:\\[,;: ]|\\q?quad(?![a-zA-Z]))|~")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_DEGREE = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)(?![a-zA-Z])|\\degrees?(?![a-zA-Z])")
_FRAC_TWO = re.compile(r"\\frac\s*([0-9])\s*([0-9])")
_FRAC_FIRST = re.compile(r"\\frac\s*([0-9])\s*\{")
_FRAC_SECOND = re.compile(r"\\frac\s*\{([^{}]*)\}\s*([0-9])")
_SQRT_DIGIT = re.compile(r"\\sqrt\s*([0-9])")
_SCRIPT = re.compile(r"([\^_])\s*\{\s*([0-9A-Za-z])\s*\}")
_SPACE = re.compile(r"(?<![0-9]) | (?![0-9])")
_WORDS = re.compile(r"[A-Za-z]{2,}")


def to_ascii_math(text: str) -> str:
    r"""Common Unicode mathematics as LaTeX (2\u221a3 -> 2\sqrt{3}); digits of other scripts stay as they are."""
    if text.isascii():
        return text
    # No NFKC: it would turn a superscript two into the digit 2, and 4\u00b2 into 42.
    return _ROOT.sub(r"\\sqrt{\1}", text.translate(_UNICODE)).replace("\u221a(", "\\sqrt(")


def normalize(text: str) -> str:
    r"""One spelling for answers that are the same LaTeX to a reader.

    Drops $, \left, \right, sizes and spaces; \dfrac and \tfrac become \frac, \frac12 becomes \frac{1}{2}, \text{x}
    becomes x, x^{2} becomes x^2. A space between two digits stays: "1 2" must not become "12".
    """
    text = to_ascii_math(text)
    if "\\" in text:
        text = _normalize_commands(text)
    if "^" in text or "_" in text:
        text = _SCRIPT.sub(r"\1\2", text)
    text = " ".join(text.replace("$", "").replace("{,}", ",").split())
    if " " in text:
        text = _SPACE.sub("", text)
    text = text.rstrip(".")
    return text.casefold() if _WORDS.fullmatch(text) else text


def _normalize_commands(text: str) -> str:
    text = _FRAC_KIND.sub(r"\\frac", _SIZING.sub("", text))
    text = _TEX_SPACE.sub(" ", _THIN_GROUP.sub("", _NEGATIVE_SPACE.sub("", text)))
    text = _TEXT.sub(r" \1 ", text)
    text = _DEGREE.sub("\u00b0", text).replace("\\%", "%").replace("\\$", "")
    if "\\frac" in text:
        text = _FRAC_TWO.sub(r"\\frac{\1}{\2}", text)
        text = _FRAC_SECOND.sub(r"\\frac{\1}{\2}", _FRAC_FIRST.sub(r"\\frac{\1}{", text))
    return _SQRT_DIGIT.sub(r"\\sqrt{\1}", text)


@dataclass(frozen=True)
class PlainNumber:
    """value: exact (for a percentage, the number before the sign); is_percent: a % follows."""

    value: Fraction
    is_percent: bool


_INTEGER = r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[1-9][0-9]{0,2}(?: [0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?:"
    rf"(?P<decimal>{_INTEGER}?\.[0-9]+|{_INTEGER})"
    r"|(?:(?P<whole>[0-9]+) ?)?\\frac\{(?P<num>-?[0-9]+)\}\{(?P<den>[0-9]+)\}"
    r"|(?:(?P<whole2>[0-9]+) )?(?P<num2>[0-9]+)/(?P<den2>[0-9]+)"
    r")(?P<mark>[%\u00b0]?)"
)


def plain_number(text: str) -> PlainNumber | None:
    r"""A normalized answer as an exact number, or None when it is anything else.

    Knows integers and decimals with thousands separators (1,234.50), a/b, \frac{a}{b}, mixed numbers (1\frac{4}{5}),
    and a trailing % or degree sign.
    """
    if not text or len(text) > MAX_NUMBER_CHARS:
        return None
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    if match["decimal"] is not None:
        value = Fraction(match["decimal"].replace(",", "").replace(" ", ""))
    else:
        whole = match["whole"] or match["whole2"]
        numerator, denominator = int(match["num"] or match["num2"]), int(match["den"] or match["den2"])
        if denominator == 0 or (whole is not None and not 0 <= numerator < denominator):
            return None
        value = Fraction(numerator, denominator) + int(whole or 0)
    return PlainNumber(-value if match["sign"] == "-" else value, match["mark"] == "%")


# Words after a number that change its value or its meaning: not units.
_NOT_UNITS = frozenset(
    "or and pi percent percentage pct hundred hundreds thousand thousands million millions billion billions trillion"
    " trillions dozen dozens mod modulo base e i x y z n k to vs if when for not than over between times factorial"
    " squared cubed half halves third thirds quarter quarters fourth fourths fifth fifths sixth sixths seventh eighth"
    " eighths ninth tenth tenths hundredth hundredths thousandth thousandths am pm infinity inf maybe about".split()
)
_UNITS = re.compile(
    r"(?P<number>.*[0-9}])(?:\s|~|\\[,;: ])*"
    r"(?:\\(?:text|textrm|mbox|mathrm)\s*\{(?P<inside>[A-Za-z./ ]*)\}|(?<=\s)(?P<bare>[A-Za-z]{2}[A-Za-z. ]*))"
    r"(?:\s*\^\s*\{?\s*[23]\s*\}?)?\s*\.?",
    re.DOTALL,
)


def without_units(text: str) -> str:
    r"""The raw answer less trailing unit words: 20\text{ miles} -> 20; unchanged when they may be more than units."""
    match = _UNITS.fullmatch(text)
    if match is None:
        return text
    words = (match["inside"] or match["bare"] or "").replace(".", "").replace("/", " ").lower().split()
    return text if any(word in _NOT_UNITS for word in words) else match["number"]
