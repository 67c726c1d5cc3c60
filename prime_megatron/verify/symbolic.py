"""The math grader of a worker process: shapes, then math-verify for their parts, then its verdict held to account.

math-verify compares with absolute tolerances; what it calls equal is evaluated here to many digits, and the difference
is measured against the size of the values.
"""

import functools
from collections.abc import Mapping
from typing import Any

import math_verify
import sympy

from prime_megatron.verify.compare import quick_equal
from prime_megatron.verify.match import match

_DIGITS = 50
_EXACT = sympy.Float("1e-40")
"""Exact values that differ by less, relative to their size, are equal."""
_RELATIVE, _ABSOLUTE = sympy.Float("1e-5"), sympy.Float("1.000001e-6")
"""Of a value with a decimal point: six decimals, and five digits of small ones."""
_POINTS = (sympy.Rational(37, 23), sympy.Rational(101, 89))
"""Where expressions with variables are compared by number, the second variable a step further, and so on."""


class MathGrader:
    """math-verify, loaded once; only its LaTeX route, which parses with a grammar and evaluates nothing."""

    def __init__(self) -> None:
        self._latex = [math_verify.LatexExtractionConfig(boxed_match_priority=0, try_extract_without_anchor=False)]
        self._parsed = functools.lru_cache(maxsize=512)(self._parse)  # siblings share a ground truth
        self._algebra("\\frac{1}{2}", "x^2")  # builds the grammar's tables before the first answer's clock runs

    def _parse(self, latex: str) -> list:
        # The parent holds the time limit; math-verify's own needs SIGALRM.
        return math_verify.parse("\\boxed{" + latex + "}", self._latex, parsing_timeout=None)

    def grade(self, request: Mapping[str, Any]) -> tuple[float, str, str]:
        """Request: answer and ground_truth, respelled LaTeX; with "prove" equal texts are computed all the same."""
        if "prove" in request:
            verdict, reason = self._prove(request["ground_truth"])
            return float(verdict == "correct"), verdict, reason
        verdict, reason = self._decide(request["answer"], request["ground_truth"])
        return float(verdict == "correct"), verdict, reason

    def _decide(self, answer: str, ground_truth: str) -> tuple[str, str]:
        """("correct" or "wrong", why)."""
        decided = match(ground_truth, answer, self._leaf)
        if decided is not None:
            return ("correct", "equal part by part") if decided else ("wrong", "not equal part by part")
        return self._algebra(ground_truth, answer)

    def _prove(self, truth: str) -> tuple[str, str]:
        """Whether a ground truth equals itself, its parts or the whole, without a look at the text."""
        by_parts = match(truth, truth, lambda gold, given: self._algebra(gold, given)[0] == "correct")
        return ("correct", "equal part by part") if by_parts else self._algebra(truth, truth)

    def _leaf(self, gold: str, given: str) -> bool:
        quick = quick_equal(gold, given)
        return self._algebra(gold, given)[0] == "correct" if quick is None else quick

    def _algebra(self, ground_truth: str, answer: str) -> tuple[str, str]:
        gold, given = self._parsed(ground_truth), self._parse(answer)
        if not given:
            return "wrong", "the answer does not parse"
        equal = math_verify.verify(gold, given, float_rounding=6, timeout_seconds=None)
        measured = _measured(gold, given)
        if measured is not None and (measured or equal):
            return ("correct", "equal values") if measured else ("wrong", "another value, or none that is finite")
        if equal:
            return "correct", "math-verify: equal"
        if all(isinstance(value, str) for value in given):
            return "wrong", "the answer does not parse, and is not the same text"
        if all(isinstance(value, str) for value in gold):
            return "wrong", "the ground truth does not parse, and is not the same text"
        return "wrong", "math-verify: not equal"


def _measured(gold: list, given: list) -> bool | None:
    """Whether two expressions have the same value, to many digits; None where they have none to compare."""
    if not gold or not isinstance(gold[0], sympy.Expr) or not isinstance(given[0], sympy.Expr):
        return None
    a, b = _complex(gold[0].doit()), _complex(given[0].doit())
    if a.has(sympy.nan, sympy.zoo) or b.has(sympy.nan, sympy.zoo):
        return False
    symbols = sorted(a.free_symbols | b.free_symbols, key=str)
    if not symbols:
        return _close(a, b)
    results = [_close(*(side.subs(_point(symbols, first)) for side in (a, b))) for first in _POINTS]
    # Equal at two points is no proof; different at one is.
    return False if False in results else None


def _point(symbols: list, first: sympy.Rational) -> dict:
    return {symbol: first + sympy.Rational(index * 13, 7) for index, symbol in enumerate(symbols)}


def _complex(expression: sympy.Expr) -> sympy.Expr:
    """With i as the imaginary unit beside pi and e: the parser takes it for a variable in some places."""
    names = {symbol.name for symbol in expression.free_symbols}
    if names == {"i"}:
        return expression.subs(dict.fromkeys(expression.free_symbols, sympy.I))
    return expression


def _close(a: sympy.Expr, b: sympy.Expr) -> bool | None:
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    try:
        size, difference = abs(sympy.N(a, _DIGITS)), abs(sympy.N(a - b, _DIGITS))
        if not (size.is_Float or size.is_zero) or not (difference.is_Float or difference.is_zero):
            return None
        if a.has(sympy.Float) or b.has(sympy.Float):
            return bool(difference <= min(_ABSOLUTE, _RELATIVE * size))
        return bool(difference <= _EXACT * size) if size else bool(difference == 0)
    except (TypeError, ValueError, ArithmeticError, AttributeError, RecursionError):
        return None
