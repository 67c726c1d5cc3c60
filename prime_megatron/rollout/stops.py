"""Texts that end a response. Engines end at token ids alone, so that every one of them stops alike; what a model wrote
behind a stop text is cut off afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from prime_megatron.rollout.engine import Completion


def first_stop(text: str, stop_texts: Sequence[str]) -> int | None:
    """Where the first stop text begins; None: nowhere."""
    places = [place for stop in stop_texts if (place := text.find(stop)) >= 0]
    return min(places) if places else None


def cut(
    completion: Completion, stop_texts: Sequence[str], decode: Callable[[Sequence[int]], str]
) -> tuple[Completion, str]:
    """The completion up to its first stop text, and its text.

    A stop text is looked for in the text without special tokens. The tokens that are kept are the fewest whose text
    holds the stop text, so its first letters may be in them; the text ends before it.
    """
    text = decode(completion.token_ids)
    place = first_stop(text, stop_texts)
    if place is None:
        return completion, text
    low, high = 0, len(completion.token_ids)  # more tokens never hold fewer stop texts
    while low < high:
        middle = (low + high) // 2
        if first_stop(decode(completion.token_ids[:middle]), stop_texts) is None:
            low = middle + 1
        else:
            high = middle
    kept = dataclasses.replace(
        completion, token_ids=completion.token_ids[:low], logprobs=completion.logprobs[:low], finish="stop"
    )
    return kept, text[:place]
