"""Short held-out problems, compared as a whole: how many words must change to make one of the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence


class ShortTexts:
    """Problems under so many words, found again by texts that differ in few.

    Args:
        least: words from which one edit makes no other problem.
        longest: words of the longest problem that is short.
        edits: of a problem's number of words: how many may differ.
    """

    def __init__(self, least: int, longest: int, edits: Callable[[int], int]) -> None:
        self._least, self._longest, self._of_length = least, longest, edits
        self._texts: list[tuple[int, Sequence[str]]] = []
        self._by_word: dict[str, list[int]] | None = None

    def add(self, number: int, words: Sequence[str]) -> None:
        """One problem more; a longer one is left out."""
        if words and len(words) <= self._longest:
            self._texts.append((number, words))
            self._by_word = None

    def find(self, words: Sequence[str]) -> tuple[int, int, int] | None:
        """(problem, edits, its words) of the first problem that the words copy; None: of none."""
        if not 0 < len(words) <= self._longest + self._edits(self._longest):
            return None
        if self._by_word is None:
            self._by_word = self._rarest()
        for place in sorted({place for word in set(words) for place in self._by_word.get(word, ())}):
            number, other = self._texts[place]
            edits = word_edits(words, other, self._edits(len(other)))
            if edits is not None:
                return number, edits, len(other)
        return None

    def _edits(self, words: int) -> int:
        return self._of_length(words) if words >= self._least else 0

    def _rarest(self) -> dict[str, list[int]]:
        """Word -> problems that have it among their rarest ones.

        A copy with e edits lacks at most e of a problem's words, so it has one of any e + 1 of them.
        """
        count: dict[str, int] = {}
        for _, words in self._texts:
            for word in set(words):
                count[word] = count.get(word, 0) + 1
        found: dict[str, list[int]] = {}
        for place, (_, words) in enumerate(self._texts):
            rarest = sorted(words, key=lambda word: (count[word], word))[: self._edits(len(words)) + 1]
            for word in dict.fromkeys(rarest):
                found.setdefault(word, []).append(place)
        return found


def word_edits(one: Sequence[str], other: Sequence[str], most: int) -> int | None:
    """Least number of words to change, add or leave out between two texts; None: more than ``most``."""
    if abs(len(one) - len(other)) > most:
        return None
    before = list(range(len(other) + 1))
    for row, word in enumerate(one, start=1):
        now = [row]
        for column, wanted in enumerate(other, start=1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (word != wanted)))
        if min(now) > most:
            return None
        before = now
    return before[-1] if before[-1] <= most else None
