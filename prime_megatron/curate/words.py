"""A problem's words, alike for texts that differ in case, white space, punctuation or the spelling of a mark."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_GROUPED = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SIGN = re.compile(r"[^\W_]+|[-+*/=<>^|!%]")
_LETTERS = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits in small letters, without marks; a number's thousands are not apart (1,000)."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _LETTERS.findall(_GROUPED.sub("", plain))


def numbers_of(text: str) -> list[str]:
    """The numbers of a text, in order of value and text; a copy may tell them in another order."""
    return sorted(_NUMBER.findall(_GROUPED.sub("", unicodedata.normalize("NFKC", text))))


def squeezed(text: str) -> str:
    """The text without white space, in small letters: equal for copies that differ in nothing else."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def signs_of(text: str) -> list[str]:
    """`words_of`, and the marks of a formula between them: 3+5 and 3-5 differ."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    return _SIGN.findall(_GROUPED.sub("", plain))


def hash64(value: str) -> int:
    """64 bits that name a text."""
    digest = hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
