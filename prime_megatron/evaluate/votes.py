"""The answer that a response votes for: equal texts for answers that read alike."""

from __future__ import annotations

from prime_megatron.verify.boxed import last_answer, last_boxed
from prime_megatron.verify.normalize import normalize, plain_number, without_units


def vote_of(ability: str, response: str) -> str | None:
    """The final answer in one spelling; None: the response gives none, or the ability has no votes (programs)."""
    if ability == "math":
        found = last_boxed(response).text
        return None if found is None else _spelling(found)
    if ability == "exact":
        found = last_answer(response).text
        return None if found is None else " ".join(found.split())
    return None


def _spelling(answer: str) -> str:
    number = plain_number(normalize(without_units(answer)[0]))
    if number is None:
        return normalize(answer)
    return f"{number.value}%" if number.is_percent else str(number.value)
