"""Words after a number: units with their size, multiples, and everything else, which is no unit."""

import functools
import re
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction

_F = Fraction
# word -> (dimension, size in the dimension's first unit)
_TABLE: dict[str, tuple[str, Fraction]] = {}
for _dimension, _words in {
    "length": "m:1 meter:1 metre:1 cm:1/100 centimeter:1/100 centimetre:1/100 mm:1/1000 millimeter:1/1000"
    " millimetre:1/1000 km:1000 kilometer:1000 kilometre:1000 in:254/10000 inch:254/10000 ft:3048/10000"
    " foot:3048/10000 feet:3048/10000 yd:9144/10000 yard:9144/10000 mi:1609344/1000 mile:1609344/1000"
    " nm:1/1000000000 nanometer:1/1000000000",
    "time": "s:1 sec:1 second:1 min:60 minute:60 h:3600 hr:3600 hour:3600 day:86400 week:604800 ms:1/1000"
    " millisecond:1/1000",
    "months": "month:1 year:12 yr:12 decade:120 century:1200",
    "mass": "g:1 gram:1 kg:1000 kilogram:1000 mg:1/1000 milligram:1/1000 ton:1000000 tonne:1000000",
    "weight": "lb:16 lbs:16 pound:16 oz:1 ounce:1",
    "volume": "l:1 liter:1 litre:1 ml:1/1000 milliliter:1/1000 millilitre:1/1000",
    "cups": "gallon:16 gal:16 quart:4 qt:4 pint:2 pt:2 cup:1",
    "dollars": "dollar:1 usd:1 buck:1 cent:1/100 penny:1/100 nickel:1/20 dime:1/10 quarter:1/4",
    "euros": "euro:1 eur:1", "sterling": "gbp:1",
    "angle": "degree:1 deg:1", "radians": "radian:1 rad:1",
    "temperature": "c:1 celsius:1", "fahrenheit": "f:1 fahrenheit:1", "kelvin": "k:1 kelvin:1",
    "energy": "j:1 joule:1 kj:1000 kilojoule:1000", "force": "n:1 newton:1",
    "power": "w:1 watt:1 kw:1000 kilowatt:1000",
    "electric": "v:1 volt:1", "current": "a:1 ampere:1 amp:1", "frequency": "hz:1 hertz:1 khz:1000",
    "pressure": "pa:1 pascal:1 kpa:1000 atm:101325", "amount": "mol:1 mole:1",
}.items():  # fmt: skip
    for _pair in _words.split():
        _word, _size = _pair.split(":")
        _TABLE[_word] = (_dimension, _F(_size))
_SYMBOLS = {
    "$": "dollars", "\\$": "dollars", "\u00a3": "sterling", "\u20ac": "euros", "\u00a5": "yen", "\u20b9": "rupees",
}  # fmt: skip

_SHORT = {"mph": ("miles", "/", "hour"), "kph": ("km", "/", "hour"), "kmh": ("km", "/", "hour")}
_MULTIPLES = {
    "dozen": _F(12), "hundred": _F(100), "thousand": _F(1000), "million": _F(10**6),
    "billion": _F(10**9), "trillion": _F(10**12), "half": _F(1, 2), "halves": _F(1, 2), "third": _F(1, 3),
    "fourth": _F(1, 4), "fifth": _F(1, 5), "sixth": _F(1, 6), "seventh": _F(1, 7),
    "eighth": _F(1, 8), "ninth": _F(1, 9), "tenth": _F(1, 10), "hundredth": _F(1, 100),
    "thousandth": _F(1, 1000), "millionth": _F(1, 10**6),
}  # fmt: skip
# A word of these after a number says something other than what the number counts.
NOT_UNITS = frozenset(
    "or and not nor but yet if when unless though although maybe perhaps possibly probably likely about approximately"
    " roughly around almost nearly just is isn't isnt are was were be been am has have had do does did can"
    " could may might must shall should will would i we you he she they it its this that these those which what who"
    " wrong incorrect false untrue correct true guess think believe something anything everything nothing else"
    " than then greater smaller bigger larger higher lower over under above below between"
    " plus minus divided multiplied squared cubed factorial mod modulo base power pi e infinity inf"
    " infinitely vs versus to until through up down off without except instead no none neither either both any"
    " each-other percentage pct percent increase decrease at least most zero one two"
    " three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
    " nineteen twenty thirty forty fifty sixty seventy eighty ninety k x y z ish so because since answer error sorry"
    " am pm noon midnight".split()
)
_HAN_UNITS = re.compile(
    "(?:元|个|人|米|天|岁|只|本|张|次|分钟|小时|秒|厘米|分米|千米|公里|克|千克|公斤|升|毫升|度|支|棵|条|块|平方米"
    "|平方厘米|立方米|立方厘米|美元|页|名|种|辆|件|双|套|年|月|周)+"
)
_POWER = re.compile(r"\^\{?(-?[1-9])\}?$")


@dataclass(frozen=True)
class Unit:
    """What stands behind a number.

    multiple: what the number is counted in: 1 000 000 for "million people". dimensions: of known units with their
    powers, such as {("length", 1), ("time", -1)}; None where a word is not known ("apples"). size: in the dimensions'
    first units. words: those that are not known.
    """

    multiple: Fraction
    dimensions: frozenset[tuple[str, int]] | None
    size: Fraction
    words: frozenset[str] = frozenset()


PLAIN = Unit(_F(1), frozenset(), _F(1))
"""No unit at all."""


def of_symbol(symbol: str) -> Unit:
    """A currency sign before a number."""
    return Unit(_F(1), frozenset({(_SYMBOLS[symbol], 1)}), _F(1))


@functools.lru_cache(maxsize=1024)
def read_unit(words: str) -> Unit | None:
    r"""The unit that the words name; None where they are none.

    words: what follows a number, \text{} and its like taken off: "million dollars", "km/h", "square inches", "cm^2".
    """
    text = words.strip().strip(".").strip()
    if _HAN_UNITS.fullmatch(text):
        return Unit(_F(1), None, _F(1))
    if not text or not text.isascii() or re.search(r"[0-9]", re.sub(r"\^\{?-?[0-9]\}?", "", text)):
        return None
    text = text.replace("^\\circ", " deg ").replace("^{\\circ}", " deg ")
    if not re.fullmatch(r"[A-Za-z .,()'/^{}0-9*\\-]*", text) or "\\" in text.replace("\\cdot", ""):
        return None
    tokens = re.findall(r"/|[A-Za-z'-]+(?:\^\{?-?[0-9]\}?)?", text.replace("\\cdot", " "))
    tokens = [part for token in tokens for part in _SHORT.get(token.lower(), (token,))]
    multiple = _F(1)
    if tokens and tokens[0].lower() in ("of", "a", "an"):
        return None if any(t.lower() in ("it", "them", "that") for t in tokens) else Unit(_F(1), None, _F(1))
    while tokens and _multiple(tokens[0]) is not None:
        multiple *= _multiple(tokens.pop(0)) or 1
    if any(token.lower() in NOT_UNITS or _multiple(token) is not None for token in tokens):
        return None
    if tokens and tokens[0].lower() == "of":
        tokens = tokens[1:]
    return _dimensions(tokens, multiple)


def _multiple(token: str) -> Fraction | None:
    word = token.lower()
    # "seconds" and "quarters" also count coins and time; the first is in the table of units.
    return None if word in _TABLE else _MULTIPLES.get(word, _MULTIPLES.get(word.removesuffix("s")))


def _dimensions(tokens: list[str], multiple: Fraction) -> Unit:
    powers: Counter[str] = Counter()
    size, sign, next_power = _F(1), 1, 1
    for token in tokens:
        word = token.lower()
        if word in ("/", "per"):
            sign = -1
            continue
        if word in ("square", "sq", "cubic"):
            next_power = 3 if word == "cubic" else 2
            continue
        power = next_power
        if (match := _POWER.search(word)) is not None:
            word, power = word[: match.start()], int(match[1])
        known = _lookup(word)
        if known is None:
            return Unit(multiple, None, _F(1), frozenset(t.lower().removesuffix("s") for t in tokens))
        powers[known[0]] += sign * power
        size *= known[1] ** (sign * power)
        next_power = 1
    return Unit(multiple, frozenset((name, power) for name, power in powers.items() if power), size)


def _lookup(word: str) -> tuple[str, Fraction] | None:
    for candidate in (word, word.removesuffix("s"), word.removesuffix("es")):
        if candidate in _TABLE:
            return _TABLE[candidate]
    return None


def factor_between(gold: Unit, given: Unit) -> Fraction | None:
    """What the given number has to be multiplied with to stand in the gold's unit; None: the units contradict.

    A side without a unit, or with one that is not known, takes the other's.
    """
    factor = given.multiple / gold.multiple
    if gold.words and given.words and not gold.words & given.words:
        return None  # 3 red and 3 blue
    if not gold.dimensions or not given.dimensions:
        return factor
    if gold.dimensions != given.dimensions:
        return None
    return factor * given.size / gold.size
