"""Which rows copy a held-out problem: by runs of words, and by the whole text where a problem is short.

A problem of at least ``short_words`` words still has a run of ``ngram`` equal words when one word of it is changed,
added or left out (26 words and 13); a shorter one may have none, and is compared as a whole. Case, white space and
marks are no words. A formula is many words here and one to whoever parts a text at white space: short problems are
compared in both ways. Held in memory are some 20 bytes for each word of the held-out problems.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from prime_megatron.config.curate import DecontaminateConfig
from prime_megatron.curate.short_texts import ShortTexts
from prime_megatron.curate.words import hash64, squeezed, words_of

NGRAM, WHOLE = "ngram", "whole_text"
_BASE = 0x9E3779B97F4A7C15
_SHARED_RUN = 3
_LEAST_CHUNKS = 3
"""Pieces between white space of a problem in which one may differ in a copy."""
Copy = tuple[str, str, int]
"""(rule, why, number of the held-out problem)"""


@dataclass(frozen=True)
class HeldOut:
    """A held-out problem."""

    name: str
    """ "set/id"."""
    text: str


class HeldOutIndex:
    """Held-out problems, made for being looked up.

    Args:
        problems: in their order.
        config: of the stage.
    """

    def __init__(self, problems: Iterable[HeldOut], config: DecontaminateConfig) -> None:
        self._config = config
        self.names: list[str] = []
        longest = config.short_words - 1
        self._by_words = ShortTexts(config.least_words, longest, self._edits)
        self._by_chunks = ShortTexts(_LEAST_CHUNKS, longest, lambda chunks: 1)
        self._shared: list[np.ndarray] = []
        runs, owners, whole = [], [], []
        for number, problem in enumerate(problems):
            words = words_of(problem.text)
            self.names.append(problem.name)
            self._by_words.add(number, words)
            self._by_chunks.add(number, _chunks(problem.text))
            self._shared.append(np.unique(run_hashes(words, _SHARED_RUN)))
            own = np.unique(run_hashes(words, config.ngram))
            runs.append(own)
            owners.append(np.full(len(own), number, dtype=np.int32))
            whole.append(hash64(squeezed(problem.text)))
        self._runs, self._owners = _in_order(runs, owners)
        self._whole, self._whole_owners = _in_order(
            [np.array(whole, dtype=np.uint64)], [np.arange(len(whole), dtype=np.int32)]
        )

    def copies(self, texts: Sequence[str]) -> list[Copy | None]:
        """Of every text, which problem it copies and how that shows; None: it copies none."""
        return [self._copy(text) for text in texts]

    def _copy(self, text: str) -> Copy | None:
        words = words_of(text)
        return self._by_runs(words) or self._equal(text) or self._similar(text, words)

    def _by_runs(self, words: list[str]) -> Copy | None:
        runs = run_hashes(words, self._config.ngram)
        first = np.searchsorted(self._runs, runs, side="left")
        hits = np.searchsorted(self._runs, runs, side="right") - first
        places = np.flatnonzero(hits)
        if not len(places):
            return None
        own = np.unique(run_hashes(words, _SHARED_RUN))
        tried: dict[int, int] = {}
        for place in places.tolist():
            for owner in self._owners[first[place] : first[place] + hits[place]].tolist():
                tried.setdefault(owner, place)
        for number, place in tried.items():
            shared = self._shared[number]
            share = len(np.intersect1d(own, shared, assume_unique=True)) / max(1, len(shared))
            if share >= self._config.shared:
                run = " ".join(words[place : place + self._config.ngram])
                return NGRAM, f"shares {share:.0%} of {self.names[number]}, and {run!r}", number
        return None

    def _equal(self, text: str) -> Copy | None:
        squeeze = squeezed(text)
        place = int(np.searchsorted(self._whole, np.uint64(hash64(squeeze))))
        if not squeeze or place == len(self._whole) or int(self._whole[place]) != hash64(squeeze):
            return None
        number = int(self._whole_owners[place])
        return WHOLE, f"has the text of {self.names[number]}", number

    def _similar(self, text: str, words: list[str]) -> Copy | None:
        for index, pieces, what in ((self._by_words, words, "words"), (self._by_chunks, _chunks(text), "pieces")):
            found = index.find(pieces)
            if found is not None:
                number, edits, length = found
                return WHOLE, f"{edits} of {length} {what} differ from {self.names[number]}", number
        return None

    def _edits(self, words: int) -> int:
        return max(1, int((1 - self._config.similarity) * words + 1e-9))


def run_hashes(words: Sequence[str], size: int) -> np.ndarray:
    """uint64 hash of every run of ``size`` words, in order."""
    if len(words) < size:
        return np.empty(0, dtype=np.uint64)
    numbers = np.array([_word_hash(word) for word in words], dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(numbers, size)
    return (windows * _powers(size)).sum(axis=1, dtype=np.uint64)


def _chunks(text: str) -> list[str]:
    return text.casefold().split()


@lru_cache(maxsize=8)
def _powers(size: int) -> np.ndarray:
    return np.array([pow(_BASE, power, 2**64) for power in range(size)], dtype=np.uint64)


@lru_cache(maxsize=2**18)
def _word_hash(word: str) -> int:
    return hash64(word)


def _in_order(values: list[np.ndarray], owners: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All values in order, and the problem that each is from; of equal values the earlier problem's first."""
    if not values:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.int32)
    flat, flat_owners = np.concatenate(values), np.concatenate(owners)
    order = np.argsort(flat, kind="stable")
    return flat[order], flat_owners[order]
