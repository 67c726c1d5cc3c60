r"""The shape of an answer: a list, a set, a tuple, relations, a number with its unit, or an expression.

`read_form` takes what `spelling.respell` wrote. Everything is cut at brackets' depth 0, in one pass a level; nothing is
evaluated.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from prime_megatron.verify.splitting import depth_at, is_balanced, split_command, split_top
from prime_megatron.verify.units import NOT_UNITS, PLAIN, Unit, of_symbol, read_unit


@dataclass(frozen=True)
class Expression:
    """LaTeX for computer algebra, with the unit behind it. is_percent: a % sign follows."""

    text: str
    unit: Unit = PLAIN
    is_percent: bool = False


@dataclass(frozen=True)
class Words:
    """Words alone, in small letters with single spaces. is_name: written in capitals, or as text."""

    text: str
    is_name: bool = True


@dataclass(frozen=True)
class Unclear:
    """Something around a number or between answers that changes what is said; never equal to anything but its text."""

    text: str


@dataclass(frozen=True)
class Relation:
    """sides[0] operators[0] sides[1] ...; operators: "=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in"."""

    sides: tuple[str, ...]
    operators: tuple[str, ...]


@dataclass(frozen=True)
class Group:
    """Items in brackets: kind "{}", or as written: "()", "[]", "(]", "[)"."""

    kind: str
    items: tuple[Form, ...]


@dataclass(frozen=True)
class Several:
    """Items beside each other. joined: "," , "or" (also "and") or "\\cup"."""

    joined: str
    items: tuple[Form, ...]


@dataclass(frozen=True)
class Ratio:
    """a:b, a:b:c."""

    parts: tuple[str, ...]


Form = Expression | Words | Unclear | Relation | Group | Several | Ratio

_OPERATOR = re.compile(
    r"\\(?:le|ge|ne|approx|in|Rightarrow|Leftrightarrow|implies|iff|to|equiv|sim|cong|mid)(?![a-zA-Z])|[=<>\u2248]"
)
_RELATIONAL = frozenset(("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in"))
_WORDS = re.compile(r"[A-Za-z][A-Za-z' .-]*")
_JOINER = re.compile(
    r"\s*(?:\\text\{\s*,?\s*(or|and)\s*\}|(?<![A-Za-z\\])(or|and)(?![A-Za-z])|\\(lor|vee|land|wedge)(?![a-zA-Z]))\s*"
)
_HEADED = re.compile(r"\\text\{\s*([^{}]*?)\s*\}\s*(?=\S)")
_NEUTRAL = re.compile(
    r"(?:so|hence|thus|therefore|let|usd|eur|gbp|rs\.?|approximately|approx|about|roughly|around|total|exactly|"
    r"the (?:final )?(?:answer|value|result) is|it is|is|it's|we get|we have)[.,:]?\s*",
    re.IGNORECASE,
)
_TAIL = re.compile(
    r"(?P<number>.*?[0-9})\]]|.*?\\(?:pi|circ|infty))(?P<unit>"
    r"(?:\s*(?:/|\\cdot|\^\s*\{?\s*\\circ\s*\}?)?\s*\\text\{[^{}]*\}(?:\s*\^\s*\{?-?[0-9]\}?)?)+"
    r"|\s+(?:[A-Za-z]{2}[A-Za-z'/.]*(?:\^\{?[23]\}?)?\s*(?:[A-Za-z'/. ]+(?:\^\{?[23]\}?)?)?)|\s*[\u4e00-\u9fff]+)",
    re.DOTALL,
)
_DEGREES = re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*$|\\degrees?\s*$")
_CURRENCY = re.compile(r"(?P<sign>-?)\s*(?P<symbol>\\?\$|[\u00a3\u20ac\u00a5\u20b9])\s*(?P<number>\S.*)", re.DOTALL)
_BRACKETS = {"\\{": "\\}", "(": ")", "[": "]"}
_MODULUS = re.compile(r"(.*\S)\s*\\pmod\s*(?:\{[^{}]*\}|[0-9])", re.DOTALL)
_LONG_WORD = re.compile(
    r"(?<![A-Za-z\\])(?!gcd|lcm|max|min|mod|log|det|arg|deg|dim|sin|cos|tan|sup|inf)[A-Za-z][a-z]{2,}"
)


def read_form(text: str) -> Form:
    """The shape of a respelled answer."""
    text = text.strip()
    items = split_top(text, ",;")
    joined = _split_joined(text)
    if len(joined) > 1:
        flat = [item for part in joined for item in split_top(part, ",;") if item]
        return Several("or", tuple(read_form(item) for item in flat))
    if len(items) > 1 and all(items) and not _is_text(text):
        return Several(",", tuple(read_form(item) for item in items))
    unions = split_command(text, ("\\cup",))
    if len(unions) > 1:
        return Several("\\cup", tuple(read_form(part) for part in unions))
    return _relation(text) or _group(text) or _single(text)


def _is_text(text: str) -> bool:
    """Text that holds words and no mathematics: commas in it separate no answers."""
    return text.startswith("\\text{") and text.endswith("}") and text.count("\\text{") == 1


def _split_joined(text: str) -> list[str]:
    """Parts between "or" and "and" at depth 0; text that is only words stays whole."""
    if "or" not in text and "and" not in text and "\\vee" not in text and "\\wedge" not in text:
        return [text]
    parts, begin = [], 0
    for match in _JOINER.finditer(text):
        if match.start() >= begin and depth_at(text, match.start()) == 0:
            parts.append(text[begin : match.start()].strip(" ,;"))
            begin = match.end()
    parts.append(text[begin:].strip(" ,;"))
    return parts if len(parts) > 1 and all(re.search(r"[0-9\\=<>]", part) for part in parts) else [text]


def _relation(text: str) -> Form | None:
    """A chain of relations at depth 0, or None where there is none."""
    sides, operators, begin = [], [], 0
    for match in _OPERATOR.finditer(text):
        if depth_at(text, match.start()) == 0:
            sides.append(text[begin : match.start()].strip())
            operators.append(match[0])
            begin = match.end()
    if not operators:
        return None
    sides.append(text[begin:].strip())
    if not all(sides) or not set(operators) <= _RELATIONAL:
        return Unclear(text)
    first = sides[0]
    headed = _HEADED.match(first)
    if headed is not None and _NEUTRAL.fullmatch(headed[1]):
        sides[0] = first[headed.end() :]
    return Relation(tuple(sides), tuple(operators))


def _group(text: str) -> Form | None:
    """Items in one pair of brackets that spans the text."""
    for opening, closing in _BRACKETS.items():
        if not text.startswith(opening):
            continue
        end = next((c for c in ("\\}", ")", "]") if text.endswith(c)), "")
        if not end or (end == "\\}") != (closing == "\\}"):
            return None
        inside = text[len(opening) : -len(end)]
        if not is_balanced(inside):
            return None
        items = tuple(read_form(item) for item in split_top(inside, ",;"))
        kind = "{}" if opening == "\\{" else opening + end
        if len(items) == 1 and kind == "()":
            return read_form(inside)
        return Group(kind, items)
    return None


def _single(text: str) -> Form:
    """One answer without relations or brackets around it."""
    bare = text
    if _is_text(text):
        bare = text[len("\\text{") : -1].strip()
        if re.search(r"[0-9]", bare) is not None:
            return _counted(bare) or Words(_fold(bare))
    if _WORDS.fullmatch(bare) and (bare != text or len(bare) > 1):
        return Words(_fold(bare), is_name=bare != text or not bare.islower())
    headed = _HEADED.match(text)
    if headed is not None:
        rest = text[headed.end() :]
        if _NEUTRAL.fullmatch(headed[1]):
            return read_form(rest)
        return Unclear(text)
    if re.fullmatch(r"[^:]+(?::[^:]+)+", text) and "\\" not in text.replace("\\frac", ""):
        return Ratio(tuple(part.strip() for part in text.split(":")))
    return _counted(text) or _uncounted(text)


def _uncounted(text: str) -> Form:
    """An expression, unless words in it say more than mathematics does: 42 (maybe 43)."""
    words = " ".join(re.findall(r"\\text\{([^{}]*)\}", text))
    plain = re.sub(r"\\text\{[^{}]*\}|\\(?:operatorname|begin|end|mathbb|mathcal)\*?\s*\{[^{}]*\}", " ", text)
    if re.search(r"[0-9]", plain) is not None and (_only_words(words) or _LONG_WORD.search(plain) is not None):
        return Unclear(text)
    return Expression(text)


def _fold(text: str) -> str:
    return " ".join(text.casefold().rstrip(".").split())


def _counted(text: str) -> Form | None:
    """A number or an expression with what it counts; None where nothing is counted."""
    currency = _CURRENCY.fullmatch(text)
    if currency is not None and currency["number"][:1] in "0123456789.\\-":
        inner = _counted(currency["number"]) or Expression(currency["number"])
        if isinstance(inner, Expression):
            sign = "-" if currency["sign"] else ""
            unit = inner.unit
            if not unit.dimensions:
                symbol = of_symbol(currency["symbol"])
                unit = Unit(unit.multiple, symbol.dimensions, symbol.size)
            return Expression(sign + inner.text, unit, inner.is_percent)
        return inner
    modulus = _MODULUS.fullmatch(text)
    if modulus is not None:
        return Expression(modulus[1], Unit(PLAIN.multiple, None, PLAIN.size))
    if text.endswith("%"):
        return Expression(text[:-1].removesuffix("\\").strip(), PLAIN, True)
    degrees = _DEGREES.search(text)
    if degrees is not None and degrees.start() > 0:
        return Expression(text[: degrees.start()].strip(), read_unit("degree") or PLAIN)
    tail = _TAIL.fullmatch(text)
    if tail is None:
        return None
    number, words = tail["number"].strip(), re.sub(r"\\text\{([^{}]*)\}", r" \1 ", tail["unit"]).strip()
    while (degrees := _DEGREES.search(number)) is not None:
        number, words = number[: degrees.start()], "degree " + words
    words = re.sub(r"\s+\^", "^", words.replace("\\circ", " degree ").replace("^ degree", " degree "))
    if words.lower().rstrip(".") in ("percent", "pct", "per cent", "percentage"):
        return Expression(number, PLAIN, True)
    unit = read_unit(words)
    if unit is None or "\\text" in number or not number:
        return Unclear(text) if _only_words(words) else None
    return _group(number) or Expression(number, unit)


def _only_words(words: str) -> bool:
    return any(word.lower().strip("().,") in NOT_UNITS for word in words.split()) or "(" in words
