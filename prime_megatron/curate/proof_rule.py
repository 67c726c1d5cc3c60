"""Problems that ask for a proof, which no final answer can be held against.

Words are matched whole: "improve" and "waterproof" ask for none, nor do "data show that" and "prove himself".
"""

from __future__ import annotations

import re

PROOF = "proof"
_PROVE = (
    r"(?<![\w-])(?:dis)?prove(?![\w-])(?!\s+(?:him|her|it|them|your|my|our)sel(?:f|ves)\b|\s+to\s+be\b"
    r"|\s+(?:useful|helpful|fatal|popular|successful|difficult|costly|wrong|right)\b)"
)
_SHOW_THAT = (
    r"(?<![\w-])(?:show|demonstrate|deduce|establish|verify|justify|argue)"
    r"(?:\s+(?:by\s+induction|rigorously|also|now|then|first|further|directly|carefully))?,?\s+that(?![\w-])"
)
# At the start of a sentence: elsewhere prices show $5.
_SHOW_IT = r"(?:\A|[.!?;:]\s|\n)\s*(?:show|demonstrate)\s*[:,]?\s*(?:why\b|\$|\\\()"
_WRITE_A_PROOF = (
    r"(?<![\w-])(?:give|write|find|provide|present|supply|construct|sketch|complete|state and)\s+"
    r"(?:(?:an?|the|your|another|two|three|complete|full|short|formal|rigorous|direct|simple|indirect|different"
    r"|combinatorial|elementary)\s+)+proofs?\b"
)
_PROOF = (
    r"(?<![\w-])(?:with|without|your)\s+proofs?\b"
    r"|(?<![\w-])proof\s+(?:that|is required|of the (?:statement|claim|fact|following|theorem|inequality|identity))\b"
    r"|(?<![\w-])q\.?\s?e\.?\s?d\b"
)
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE) for pattern in (_PROVE, _SHOW_THAT, _SHOW_IT, _WRITE_A_PROOF, _PROOF)
)
# Others' findings: the data show that ..., tests prove that ...; and the show that she saw.
_OTHERS = re.compile(
    r"\b(?:data|records?|stud(?:y|ies)|surveys?|results?|statistics|experiments?|research(?:ers)?|figures|polls?|tests?"
    r"|experience|reports?|they|we|i|the|a|tv|talk|scientists?|economists?|who|which|measurements?|observations?|tables?)\s+"
    r"(?:\w+ly\s+|can\s+|could\s+|did\s+|will\s+)?$",
    re.IGNORECASE,
)


_HINTS = ("prove", "that", "show", "demonstrate", "proof", "q.e.d", "qed", "q. e")
"""One of these is in every text that a pattern could find anything in."""


def proof(text: str) -> str | None:
    """The words that ask for a proof; None: none do."""
    small = text.lower()
    if not any(hint in small for hint in _HINTS):
        return None
    for pattern in _PATTERNS:
        for found in pattern.finditer(text):
            said = (found[0], text[found.start() : found.end() + len(" that")])
            told = any(one.lower().endswith(" that") for one in said) and _OTHERS.search(text[: found.start()])
            if not told:
                return f"says {' '.join(found[0].split())[:60]!r}"
    return None
