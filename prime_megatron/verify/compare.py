"""Decides what needs no computer algebra: equal strings, plain numbers, choice letters, numbers in a base."""

import re
from fractions import Fraction

from prime_megatron.verify.normalize import PlainNumber, normalize, plain_number, without_units
from prime_megatron.verify.units import PLAIN, Unit, factor_between

# Six decimals, as math-verify rounds; relative for small values, where six decimals would call 6.72e-5 and 6.73e-5
# the same number.
_ABSOLUTE = Fraction(1, 10**6)
_RELATIVE = Fraction(1, 10**5)
_CHOICE = re.compile(r"\(?([A-Z])\)?\.?")
_BASED = re.compile(
    r"(?:([0-9][0-9A-Fa-f]{0,127}|[A-Fa-f][0-9A-Fa-f]{0,127})|\(([0-9A-Fa-f]{1,128})\))"
    r"_(?:([0-9])|\{([0-9]{1,2})\}|\{?([a-z]+)\}?)"
)
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
               "twelve": 12, "sixteen": 16}  # fmt: skip


def quick_equal(ground_truth: str, answer: str) -> bool | None:
    """True or False where it is certain, None where computer algebra has to decide. Both are raw LaTeX."""
    if answer == ground_truth:
        return True
    if answer.isdecimal() and ground_truth.isdecimal() and (answer + ground_truth).isascii() and len(answer) < 64:
        return int(ground_truth) == int(answer)  # the most frequent wrong answer of all
    gold, given = normalize(ground_truth), normalize(answer)
    if not gold:
        return None
    if gold == given:
        return True
    gold_number, given_number = _number(gold, ground_truth), _number(given, answer)
    if gold_number is not None and given_number is not None:
        if gold_number[1] is PLAIN and given_number[1] is PLAIN:
            return numbers_equal(gold_number[0], given_number[0])
        if "$" in ground_truth and given_number[1] is not PLAIN:
            return None  # a currency sign is a unit too
        return _counts_equal(gold_number, given_number)
    gold_choice, given_choice = _CHOICE.fullmatch(gold), _CHOICE.fullmatch(given)
    if gold_choice and given_choice:
        return gold_choice[1] == given_choice[1]
    return _based_equal(gold, given) if "_" in gold or "_" in given else None


def is_nan(text: str) -> bool:
    """Whether the text is the word nan: what a missing value looks like, and no answer to anything."""
    return len(text) < 32 and "nan" in text.casefold() and normalize(text).strip("+-").casefold() == "nan"


def _number(normalized: str, raw: str) -> tuple[PlainNumber, Unit] | None:
    number = plain_number(normalized)
    if number is not None:
        return number, PLAIN
    bare, unit = without_units(raw)
    if bare is not raw:
        number = plain_number(normalize(bare))
    return None if number is None else (number, unit)


def _counts_equal(gold: tuple[PlainNumber, Unit], given: tuple[PlainNumber, Unit]) -> bool:
    """Numbers with their units; 2 hours are 120 minutes and are not 2 minutes."""
    if gold[1] is PLAIN and given[1].multiple == 1:
        return numbers_equal(gold[0], given[0])
    factor = factor_between(gold[1], given[1])
    if factor is None:
        return False
    return numbers_equal(gold[0], PlainNumber(given[0].value * factor, given[0].is_percent))


def numbers_equal(gold: PlainNumber, given: PlainNumber) -> bool:
    """Equal values; 50% is 50 and is 0.5. An answer in percent is the plain number only from 1 on: 0.5% is not 0.5."""
    if gold.is_percent == given.is_percent:
        return close(gold.value, given.value)
    if gold.is_percent:
        return close(gold.value, given.value) or close(gold.value / 100, given.value)
    if abs(gold.value) >= 1 and close(gold.value, given.value):
        return True
    return close(gold.value, given.value / 100)


def close(gold: Fraction, given: Fraction) -> bool:
    """Integers exactly; otherwise within min(1e-6, 1e-5 |gold|), so that 0.333333 is 1/3 and 0.33 is not."""
    if gold == given:
        return True
    if gold.denominator == 1 and given.denominator == 1:
        return False  # the usual wrong answer: no need to work out a tolerance far below 1
    return abs(gold - given) <= min(_ABSOLUTE, _RELATIVE * abs(gold))


def _based_equal(gold: str, given: str) -> bool | None:
    """Numbers in a base by their values; an answer that leaves the base out, by its digits. None: not two numbers."""
    a, b = _based(gold), _based(given)
    if a is not None and b is not None:
        return _value(a) == _value(b)
    if a is not None:
        digits = given.strip("()")
        if re.fullmatch(r"[0-9][0-9A-Fa-f]*", digits) is None:
            return None
        return digits.upper() == a[0]
    number = plain_number(gold)
    return None if b is None or number is None else number.value == _value(b)


def base_left_out(gold: str, given: str) -> tuple[str, ...]:
    """The base, as a number and in words, of an answer with the digits of a ground truth that names none; () for
    anything else."""
    based = _based(normalize(given))
    if based is None or based[0] != normalize(gold).upper():
        return ()
    return (str(based[1]), *(word for word, base in _BASE_WORDS.items() if base == based[1]))


def _based(text: str) -> tuple[str, int] | None:
    """(digits, base) of 1011_2, (1011)_{2} or 2A_{16}."""
    match = _BASED.fullmatch(text)
    if match is None:
        return None
    digits = (match[1] or match[2]).upper()
    word = (match[3] or match[4] or match[5]).casefold()
    base = int(word) if word.isdigit() else _BASE_WORDS.get(word, 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        return None
    return digits, base


def _value(based: tuple[str, int]) -> int:
    return int(*based)
