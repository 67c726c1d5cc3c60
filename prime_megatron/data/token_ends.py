"""Where in a response's text each of its tokens ends, for readers of samples.jsonl that have no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

WHOLE_AT = (5, 6, 7, 8, 32)
"""After so many tokens that do not read as the text does, the text is decoded from its beginning on: more than one
character is made of, and then a last time."""


class TokenEnds:
    """Cuts texts where their tokens end. Keeps what each token reads as, so that a text costs one look-up a token.

    A character belongs to the token that completes it: of an emoji in three tokens the first two end before it. What a
    token reads as depends on what is before it (SentencePiece drops the space of a first token), so a token is decoded
    alone where nothing is before it, and behind another one elsewhere.
    """

    def __init__(self, hf: PreTrainedTokenizerBase) -> None:
        self._hf = hf
        self._before = hf.encode("a", add_special_tokens=False)[-1:]
        self._len_before = len(self._decode(self._before))
        self._pieces: dict[int, str] = {}

    def __call__(self, token_ids: Sequence[int], text: str) -> list[int]:
        """Ends in ``text``, in characters, never falling; the last one is its length.

        text: the tokens as text without special tokens, or the beginning of it (a response that a stop text cut).
        """
        ends: list[int] = []
        start, begun = 0, []  # the tokens behind the last one that ended with a character, and where their text begins
        for index, token in enumerate(token_ids):
            begun.append(token)
            piece = self._piece(begun, first=start == 0)
            if text.startswith(piece, start):
                end = start = start + len(piece)
                begun = [] if start else begun  # what is first may read otherwise with more behind it
                ends.append(end)
                continue
            end = start + _same_beginning(piece, text[start : start + len(piece)])
            if len(begun) in WHOLE_AT:  # bytes that are no text, or a decoder that looks further back
                whole = self._decode(token_ids[: index + 1])
                end = max(end, _same_beginning(whole, text))
                if end == len(whole) or len(begun) == WHOLE_AT[-1]:
                    start, begun = end, []
            ends.append(max([end, *ends[-1:]]))
        if ends:
            ends[-1] = len(text)
        return ends

    def _piece(self, token_ids: Sequence[int], *, first: bool) -> str:
        """What the tokens read as; first: with nothing before them."""
        if first:
            return self._decode(token_ids)
        if len(token_ids) > 1:
            return self._decode([*self._before, *token_ids])[self._len_before :]
        (token,) = token_ids
        if token not in self._pieces:
            self._pieces[token] = self._decode([*self._before, token])[self._len_before :]
        return self._pieces[token]

    def _decode(self, token_ids: Sequence[int]) -> str:
        text = self._hf.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _same_beginning(one: str, other: str) -> int:
    """Characters that both begin with."""
    return next((place for place, (a, b) in enumerate(zip(one, other)) if a != b), min(len(one), len(other)))
