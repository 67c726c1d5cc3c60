"""Whether what a program gave is what the test expects. The parent's work: expectations never reach the program."""

import math
import re
from typing import Any

RELATIVE_TOLERANCE = 1e-6
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def same_output(given: str, expected: str) -> bool:
    """Token by token, split at white space; 1e-6 relative where both tokens are numbers with a decimal point."""
    if given == expected:
        return True
    theirs = expected.split()
    ours = given.split(maxsplit=len(theirs))  # one more than there should be is enough to know
    return len(ours) == len(theirs) and all(map(_same_token, ours, theirs))


def _same_token(given: str, expected: str) -> bool:
    if given == expected:
        return True
    if "." not in given or "." not in expected:
        return False
    if not (_DECIMAL.fullmatch(given) and _DECIMAL.fullmatch(expected)):
        return False
    return math.isclose(float(given), float(expected), rel_tol=RELATIVE_TOLERANCE)


def same_result(given: Any, expected: Any) -> bool:
    """A call's result (as `values.read_json` made it) against the expected JSON value, by JSON's types.

    true is not 1, 1 is not "1" and 2.0 is not the integer 2; where a number with a decimal point is expected, an
    integer of the same value will do, and another such number within 1e-6 relative.
    """
    kind = type(expected)
    if kind is float:
        if type(given) is int:
            return bool(given == expected)
        return type(given) is float and math.isclose(given, expected, rel_tol=RELATIVE_TOLERANCE)
    if type(given) is not kind:
        return False
    if kind is list:
        return len(given) == len(expected) and all(map(same_result, given, expected))
    if kind is dict:
        return given.keys() == expected.keys() and all(same_result(given[key], expected[key]) for key in expected)
    return bool(given == expected)
