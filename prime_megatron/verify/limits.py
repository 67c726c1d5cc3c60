"""Cheap checks before computer algebra sees an answer: what would only burn time is refused here.

They keep the usual bombs from costing a worker its time limit; the limit and the kill remain for what gets through.
"""

import re

MAX_CHARS = 512  # the longest answer in MATH has fewer than 160
MAX_NESTING = 12  # the deepest in MATH has 3
MAX_DIGITS = 64
MAX_EXPONENT_DIGITS = 5
MAX_OPERAND_DIGITS = 4  # of a factorial or a binomial
MAX_TOWER = 1  # a^b; a^(b^c) only where the ground truth has one

_DIGITS = re.compile(r"[0-9]+")
_EXPONENT = re.compile(r"\^\s*[{(]?\s*-?\s*([0-9]+)")
_FACTORIAL = re.compile(r"(?<!\\)!(?!=)")
_FACTORIAL_OPERAND = re.compile(r"([0-9]+)\s*!")
_BINOMIAL = re.compile(r"\\[dt]?binom\s*\{?\s*([0-9]+)|([0-9]+)\s*\\choose")
_NUMBER_ROW = re.compile(r"[0-9.]+(?:\s+[0-9.]+)+")
_MULTIPLE = re.compile(r"[0-9]\s*\\(?:text|mbox|mathrm)\s*\{[^{}]*[0-9][^{}]*\}\s*$")


def refuse(answer: str, ground_truth: str) -> str | None:
    """Why this answer is not worth computing, or None. Towers and factorials are measured against the ground truth's.

    Linear in the length of the answer.
    """
    if len(answer) > MAX_CHARS:
        return f"answer of {len(answer)} characters (limit {MAX_CHARS})"
    if "\x00" in answer or "\\fbox" in answer:
        return "answer holds a NUL character or a second box"
    if nesting(answer) > MAX_NESTING:
        return f"answer nested deeper than {MAX_NESTING}"
    if longest(_DIGITS, answer) > MAX_DIGITS:
        return f"number of more than {MAX_DIGITS} digits"
    if longest(_EXPONENT, answer) > MAX_EXPONENT_DIGITS:
        return f"exponent of more than {MAX_EXPONENT_DIGITS} digits"
    if tower_height(answer) > max(MAX_TOWER, tower_height(ground_truth)):
        return "stacked exponents"
    if len(_FACTORIAL.findall(answer)) > max(2, len(_FACTORIAL.findall(ground_truth))):
        return "stacked factorials"
    if max(longest(_FACTORIAL_OPERAND, answer), longest(_BINOMIAL, answer)) > MAX_OPERAND_DIGITS:
        return f"factorial or binomial of a number of more than {MAX_OPERAND_DIGITS} digits"
    if _NUMBER_ROW.fullmatch(answer.strip()) or _MULTIPLE.search(answer):
        # math-verify adds "1 2" up to 3, and takes the 43 of "42\text{43}" for a unit.
        return "several numbers side by side"
    return None


def longest(pattern: re.Pattern[str], text: str) -> int:
    """Length of the longest match (of its first group that took part, where it has groups); 0 without a match."""
    return max((len(match[match.lastindex or 0]) for match in pattern.finditer(text)), default=0)


def nesting(text: str) -> int:
    """The deepest nesting of brackets of any kind."""
    depth = deepest = 0
    for character in text:
        if character in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "})]":
            depth = max(0, depth - 1)
    return deepest


def tower_height(text: str) -> int:
    """The highest stack of exponents: x is 0, x^2 is 1, x^{2^3} and x^2^3 are 2."""
    compact = "".join(text.split())
    heights = [0]  # of the enclosing brackets
    best = below = 0  # below: height of the exponent that ended just here
    position = 0
    while position < len(compact):
        character = compact[position]
        if character == "^":
            height = max(heights[-1], below) + 1
            best = max(best, height)
            following = compact[position + 1 : position + 2]
            if following in ("{", "("):
                heights.append(height)
                below = 0
            else:
                below = height
            position += 2
            continue
        if character in "{(":
            heights.append(heights[-1])
            below = 0
        elif character in "})" and len(heights) > 1:
            closed = heights.pop()
            below = closed if closed > heights[-1] else 0
        else:
            below = 0
        position += 1
    return best
