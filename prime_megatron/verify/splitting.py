"""Answers cut at brackets' depth 0: at commas, at commands. Nothing of them is read here."""

import re

_OPEN, _CLOSE = "([{", ")]}"
_GROUP_BEFORE = re.compile(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})*$")
_GROUP_AFTER = re.compile(r",[0-9]{3}(?![0-9])")


def depth_at(text: str, position: int) -> int:
    """How many brackets of text[:position] are open."""
    return sum(c in _OPEN for c in text[:position]) - sum(c in _CLOSE for c in text[:position])


def split_top(text: str, separators: str) -> list[str]:
    """Parts between separators at depth 0, stripped. A comma between digits in threes (1,234) does not separate."""
    parts, depth, begin = [], 0, 0
    for index, character in enumerate(text):
        if character in _OPEN:
            depth += 1
        elif character in _CLOSE:
            depth -= 1
        elif character in separators and depth == 0 and not _thousands(text, index):
            parts.append(text[begin:index].strip())
            begin = index + 1
    parts.append(text[begin:].strip())
    return parts


def _thousands(text: str, index: int) -> bool:
    return (
        text[index] == ","
        and _GROUP_AFTER.match(text, index) is not None
        and _GROUP_BEFORE.search(text[max(0, index - 32) : index]) is not None
    )


def split_command(text: str, commands: tuple[str, ...]) -> list[str]:
    """Parts between LaTeX commands at depth 0."""
    pattern = re.compile("|".join(re.escape(c) + r"(?![a-zA-Z])" for c in commands))
    parts, begin = [], 0
    for match in pattern.finditer(text):
        if depth_at(text, match.start()) == 0:
            parts.append(text[begin : match.start()].strip())
            begin = match.end()
    parts.append(text[begin:].strip())
    return parts


def is_balanced(text: str) -> bool:
    """Whether every bracket in the text closes in it; the kinds are not told apart."""
    depth = 0
    for character in text:
        depth += (character in _OPEN) - (character in _CLOSE)
        if depth < 0:
            return False
    return depth == 0
