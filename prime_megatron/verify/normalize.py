r"""LaTeX answers as plain strings and exact numbers, without a parser. Nothing here evaluates an answer."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from prime_megatron.verify.units import PLAIN, Unit, read_unit

MAX_NUMBER_CHARS = 128

_UNICODE = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-", "\u00a0": " ", "\u202f": " ", "\u2009": " ",
        "\u00d7": "\\times ", "\u00b7": "\\cdot ", "\u00f7": "/", "\u2044": "/", "\u00b1": "\\pm ",
        "\u03c0": "\\pi ", "\u03b8": "\\theta ", "\u221e": "\\infty ", "\u00b0": "^\\circ ",
        "\u00ba": "^\\circ ", "\u222a": "\\cup ",
        "\u2229": "\\cap ", "\u2264": "\\le ", "\u2265": "\\ge ",
        "\uff04": "$", "\uff05": "%", "\uff08": "(", "\uff09": ")", "\uff3b": "[", "\uff3d": "]", "\uff0c": ",",
        "\u3001": ",", "\uff1a": ":", "\uff1b": ";", "\uff1d": "=", "\uff0b": "+", "\uff1c": "<", "\uff1e": ">",
        "\uff0f": "/", "\u200b": None, "\u200c": None, "\u200d": None, "\u2060": None, "\ufeff": None,
        "\u2260": "\\ne ", "\u2248": "\\approx ", "\u2208": "\\in ", "\u2205": "\\emptyset ", "\u211d": "\\mathbb{R}",
        "\u2026": "\\ldots ", "\u22c5": "\\cdot ", "\u2217": "*", "\u2192": "\\to ", "\u21d2": "\\Rightarrow ",
        "\u2032": "'", "\u2220": "\\angle ", "\u25b3": "\\triangle ", "\u03c6": "\\varphi ", "\u03d5": "\\phi ",
        "\u00bd": "\\frac{1}{2}", "\u00bc": "\\frac{1}{4}", "\u00be": "\\frac{3}{4}", "\u2153": "\\frac{1}{3}",
        "\u2154": "\\frac{2}{3}", "\u2103": "^\\circ C", "\u2109": "^\\circ F",
    }
    | {
        letter: f"\\{unicodedata.name(letter).split()[-1].lower()} "
        for letter in "\u03b1\u03b2\u03b3\u03b4\u03b5\u03b6\u03b7\u03ba\u03bc\u03bd\u03be\u03c1\u03c3\u03c4"
        "\u03c7\u03c8\u03c9"
    }
)  # fmt: skip
_ROOT = re.compile(r"\u221a\s*([0-9]+|[A-Za-z]|\(([^()]*)\)|\{[^{}]*\})")
_SUPERSCRIPTS = {
    "\u2070": "0", "\u00b9": "1", "\u00b2": "2", "\u00b3": "3", "\u2074": "4", "\u2075": "5", "\u2076": "6",
    "\u2077": "7", "\u2078": "8", "\u2079": "9", "\u207a": "+", "\u207b": "-", "\u207f": "n",
}  # fmt: skip
_SUPERSCRIPT = re.compile("[" + "".join(_SUPERSCRIPTS) + "]+")
_SIZING = re.compile(r"\\(?:left|right|displaystyle|textstyle|[bB]igg?[lr]?)(?![a-zA-Z])")
_FRAC_KIND = re.compile(r"\\(?:nice|[dtcs])frac(?![a-zA-Z])")
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
    text = _SUPERSCRIPT.sub(lambda found: "^{" + "".join(_SUPERSCRIPTS[c] for c in found[0]) + "}", text)
    return _ROOT.sub(_root, text.translate(_UNICODE)).replace("\u221a(", "\\sqrt(")


def _root(match: re.Match[str]) -> str:
    inside = match[2] if match[2] is not None else match[1].strip("{}")
    return f"\\sqrt{{{inside}}}"


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
        return _scientific(text)
    if match["decimal"] is not None:
        value = Fraction(match["decimal"].replace(",", "").replace(" ", ""))
    else:
        whole = match["whole"] or match["whole2"]
        numerator, denominator = int(match["num"] or match["num2"]), int(match["den"] or match["den2"])
        if denominator == 0 or (whole is not None and not 0 <= numerator < denominator):
            return None
        value = Fraction(numerator, denominator) + int(whole or 0)
    return PlainNumber(-value if match["sign"] == "-" else value, match["mark"] == "%")


_MAX_EXPONENT = 400
_SCIENTIFIC = re.compile(
    r"(?P<mantissa>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:(?:[eE](?P<e>[+-]?[0-9]{1,5}))|(?:\\times|\\cdot|\\ast|\*|x)10\^(?:\{\(?(?P<long>[+-]?[0-9]{1,5})\)?\}|(?P<short>[0-9]|[+-]?[0-9]+)))"
    r"(?P<mark>%?)|(?P<sign>[+-]?)10\^(?:\{(?P<power>[+-]?[0-9]{1,5})\}|(?P<digit>[0-9]))"
)


def _scientific(text: str) -> PlainNumber | None:
    r"""4.5\times10^{33}, 4.5e33 and 10^{-3}, exactly; an exponent past 400 is left to computer algebra."""
    match = _SCIENTIFIC.fullmatch(text) if "10^" in text or "e" in text or "E" in text else None
    if match is None:
        return None
    exponent = int(match["e"] or match["long"] or match["short"] or match["power"] or match["digit"])
    if abs(exponent) > _MAX_EXPONENT:
        return None
    mantissa = Fraction(match["mantissa"] or (match["sign"] or "") + "1")
    return PlainNumber(mantissa * Fraction(10) ** exponent, match["mark"] == "%")


_UNITS = re.compile(
    r"(?P<number>.*[0-9}])(?:\s|~|\\[,;: ])*"
    r"(?:\\(?:text|textrm|mbox|mathrm)\s*\{(?P<inside>[A-Za-z./ ]*)\}|(?<=\s)(?P<bare>[A-Za-z]{2}[A-Za-z. ]*))"
    r"(?P<power>\s*\^\s*\{?\s*[23]\s*\}?)?\s*\.?",
    re.DOTALL,
)


def without_units(text: str) -> tuple[str, Unit]:
    r"""The raw answer less trailing unit words, and the unit: 20\text{ miles} -> 20; the text as it came and no unit
    where they may be more than a unit."""
    match = _UNITS.fullmatch(text)
    words = "" if match is None else (match["inside"] or match["bare"] or "")
    if match is None or not words.strip():
        return text, PLAIN
    unit = read_unit(words + (match["power"] or "").replace(" ", ""))
    return (text, PLAIN) if unit is None else (match["number"], unit)
