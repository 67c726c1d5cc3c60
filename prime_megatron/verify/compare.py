"""Decides what needs no computer algebra: equal strings, plain numbers, choice letters, numbers in a base."""

import re
from fractions import Fraction

from prime_megatron.verify.normalize import PlainNumber, normalize, plain_number, without_units

# Six decimals, as math-verify rounds; relative for small values, where six decimals would call 6.72e-5 and 6.73e-5
# the same number.
_ABSOLUTE = Fraction(1, 10**6)
_RELATIVE = Fraction(1, 10**5)
_CHOICE = re.compile(r"\(?([A-Z])\)?\.?")
_BASED = re.compile(r"([0-9]+)_(?:([0-9])|\{([0-9]+)\})")


def quick_equal(ground_truth: str, answer: str) -> bool | None:
    """True or False where it is certain, None where computer algebra has to decide. Both are raw LaTeX."""
    if answer == ground_truth:
        return True
    gold, given = normalize(ground_truth), normalize(answer)
    if not gold:
        return None
    if gold == given:
        return True
    gold_number, given_number = _number(gold, ground_truth), _number(given, answer)
    if gold_number is not None and given_number is not None:
        return numbers_equal(gold_number, given_number)
    gold_choice, given_choice = _CHOICE.fullmatch(gold), _CHOICE.fullmatch(given)
    if gold_choice and given_choice:
        return gold_choice[1] == given_choice[1]
    gold_based = _BASED.fullmatch(gold)
    return _based_equal(gold_based, given) if gold_based else None


def _number(normalized: str, raw: str) -> PlainNumber | None:
    number = plain_number(normalized)
    if number is None:
        bare = without_units(raw)
        if bare is not raw:
            number = plain_number(normalize(bare))
    return number


def numbers_equal(gold: PlainNumber, given: PlainNumber) -> bool:
    """Equal values; 50% is 50 and is 0.5, as in math-verify."""
    if gold.is_percent == given.is_percent:
        return close(gold.value, given.value)
    if gold.is_percent:
        return close(gold.value, given.value) or close(gold.value / 100, given.value)
    return close(gold.value, given.value) or close(gold.value, given.value / 100)


def close(gold: Fraction, given: Fraction) -> bool:
    """Integers exactly; otherwise within min(1e-6, 1e-5 |gold|), so that 0.333333 is 1/3 and 0.33 is not."""
    if gold == given:
        return True
    if gold.denominator == 1 and given.denominator == 1:
        return False  # the usual wrong answer: no need to work out a tolerance far below 1
    return abs(gold - given) <= min(_ABSOLUTE, _RELATIVE * abs(gold))


def _based_equal(gold: re.Match[str], given: str) -> bool | None:
    """Digits in a base: the same digits, and the same base where the answer names one."""
    based = _BASED.fullmatch(given)
    if based is not None:
        return (gold[1], gold[2] or gold[3]) == (based[1], based[2] or based[3])
    return gold[1] == given if given.isascii() and given.isdigit() else None
