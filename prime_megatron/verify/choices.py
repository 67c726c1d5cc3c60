"""Choice letters: C, (C), C. 14, (C) 14, and several of them: A, C."""

import re

from prime_megatron.verify.normalize import normalize

_LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?\.?")
_WITH_TEXT = re.compile(
    r"(?:\(\s*([A-J])\s*\)|([A-J])\s*(?=[.:)]))\s*[.:)]?(?:\s*(?=[^\s+*/^_=<>-])|\s+(?=-))(.*)", re.DOTALL
)
_NAMED = re.compile(r"(?:option|choice|answer|letter)\s+(?=\(?\s*[A-J](?![A-Za-z]))", re.IGNORECASE)
_ANOTHER = re.compile(
    r"\(\s*[A-J]\s*\)|^\s*(?:or|and|nor|not|/|,|;)|(?<![A-Za-z])(?:or|and)\s+\(?[A-J](?![A-Za-z])"
    r"|^\s*(?:is|isn't|are)\s+(?:not\s|wrong|incorrect|false)"
)


def match_choices(gold: str, given: str) -> bool | None:
    """Where the ground truth is a choice; None where it is none, or the answer is none. Both are respelled."""
    a = _read(gold)
    if a is None or a[0].islower():
        return _several(gold, given)
    b = _read(given)
    if b is None:
        return None
    (gold_letter, gold_text), (letter, text) = a, b
    if _ANOTHER.search(text):
        return False
    if gold_letter != letter:
        # Small letters stand for the choices A to J, and elsewhere for other variables.
        return gold_letter == letter.upper() if gold_letter in "ABCDEFGHIJ" else None
    return not gold_text or not text or normalize(gold_text).casefold() == normalize(text).casefold()


def option_text(gold: str) -> str | None:
    """The text of a ground truth such as "C. 14", which may be answered alone; None without one."""
    read = _read(gold)
    return read[1] if read is not None and read[1] else None


def _read(text: str) -> tuple[str, str] | None:
    """(letter, text of the option)."""
    flat = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text).strip()
    flat = _NAMED.sub("", flat)
    letter = _LETTER.fullmatch(flat)
    if letter is not None:
        return letter[1], ""
    full = _WITH_TEXT.fullmatch(flat)
    return (full[1] or full[2], full[3].strip()) if full is not None else None


def _several(gold: str, given: str) -> bool | None:
    a, b = _letters(gold), _letters(given)
    return None if a is None or b is None or (len(gold) == len(a) and len(given) == len(b)) else a == b


def _letters(text: str) -> tuple[str, ...] | None:
    """The letters of "A, C", "A and C" or "AC", in order of the alphabet."""
    flat = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)
    if not re.fullmatch(r"(?:\s*\(?\s*[A-J]\s*\)?\s*(?:,|and|&)?)+", flat):
        return None
    letters = re.findall(r"(?<![a-z])[A-J]", flat)
    return tuple(sorted(letters)) if 1 < len(set(letters)) == len(letters) else None
