"""The order in which rows are drawn: shuffled per epoch, resumable to the row, the same on every rank."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from prime_megatron.data.encode import Skip, encode_prompt, encode_sft
from prime_megatron.data.rows import PromptRow, SftRow
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.data.told import Telling
from prime_megatron.errors import InputError
from prime_megatron.types import Group, Prompt


class Row(Protocol):
    """What a stream is made from; its origin is "file, row n"."""

    @property
    def origin(self) -> str: ...


RowType = TypeVar("RowType", bound=Row)
Item = TypeVar("Item")


class RowStream(Generic[RowType, Item]):
    """Items made from rows, endlessly or for some epochs; rows that `encode` gives a Skip for are left out."""

    def __init__(
        self,
        rows: Sequence[RowType],
        encode: Callable[[RowType, str, int], Item | Skip],
        *,
        content: Callable[[RowType], object],
        seed: int,
        shuffle: bool,
        limit: str,
        epochs: int = 0,
    ) -> None:
        """
        Args:
            rows: all rows, in file order.
            encode: (row, uid, draw) to an item, or why it is none.
            content: what tells a row from another, by its repr.
            seed: of the order.
            shuffle: a new order every epoch; false: file order.
            limit: the key of the longest row, with its value, as "data.max_tokens 60".
            epochs: the stream ends after so many; 0: never.
        """
        assert rows
        self._rows, self._encode, self._content = rows, encode, content
        self._seed = seed
        self._shuffle = shuffle
        self._limit = limit
        self._epochs = epochs
        self._epoch = 0
        self._position = 0
        self._draw = 0
        self._order = self._permutation(0)
        self._digest: str | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._epoch

    @property
    def num_rows(self) -> int:
        """Rows of the data, those that are skipped included."""
        return len(self._rows)

    def origin(self, index: int) -> str:
        """File and row of a row of the data."""
        return self._rows[index].origin

    def skip_of(self, index: int) -> Skip | None:
        """Why this row of the data is skipped; None: it is not. Raises InputError, naming file and row."""
        item = self._encode(self._rows[index], "", 0)
        return item if isinstance(item, Skip) else None

    def why(self, counts: Mapping[Skip, int]) -> str:
        """In words why rows are skipped, each kind with its number."""
        return why_skipped(counts, self._limit)

    def check_usable(self) -> None:
        """Raise InputError where every row is skipped."""
        check_usable(self._rows, lambda row: self._encode(row, "", 0), self._limit)

    def take(self, num_items: int) -> list[Item]:
        """The next items; goes on into the next epoch where one ends. Fewer where the stream ends.

        Raises:
            InputError: every row of the data is skipped.
        """
        items: list[Item] = []
        skipped_in_a_row = 0
        while len(items) < num_items:
            if self._position == len(self._rows):
                if self._epoch + 1 == self._epochs:
                    break
                self._epoch += 1
                self._position = 0
                self._order = self._permutation(self._epoch)
            index = self._order[self._position]
            item = self._encode(self._rows[index], f"{self._epoch}-{index}", self._draw)
            self._position += 1
            self._draw += 1
            if not isinstance(item, Skip):
                items.append(item)
                skipped_in_a_row = 0
                continue
            skipped_in_a_row += 1
            if skipped_in_a_row >= 2 * len(self._rows):
                self.check_usable()
        return items

    def state(self) -> dict[str, int | bool | str]:
        """Where the stream stands, JSON-ready."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "draw": self._draw,
            "num_rows": len(self._rows),
            "seed": self._seed,
            "shuffle": self._shuffle,
            "data_sha256": self._data_digest(),
        }

    def restore(self, state: dict[str, int | bool | str]) -> None:
        """Go on exactly where `state` was taken.

        Raises:
            InputError: the data, the seed or the shuffling is not that of the state.
        """
        for key, mine in self.state().items():
            if key in ("epoch", "position", "draw"):
                continue
            if state[key] != mine:
                raise InputError(
                    f"cannot resume the data stream: {key} is {mine} now and was {state[key]} when saved; "
                    "resume with the same data files, run.seed and data.shuffle"
                )
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._draw = int(state["draw"])
        self._order = self._permutation(self._epoch)

    def _permutation(self, epoch: int) -> Sequence[int]:
        if not self._shuffle:
            return range(len(self._rows))
        order = list(range(len(self._rows)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order

    def _data_digest(self) -> str:
        if self._digest is None:
            sha = hashlib.sha256()
            for row in self._rows:
                sha.update(repr(self._content(row)).encode())
            self._digest = sha.hexdigest()
        return self._digest


def why_skipped(counts: Mapping[Skip, int], limit: str) -> str:
    """In words why rows are skipped, each kind with its number; limit: the key of the longest row, with its value."""
    said = {
        Skip.too_long: f"over {limit} (raise it)",
        Skip.no_tokens: "without a token",
        Skip.masked: "of weight 0 alone",
        Skip.open_thought: "with an answer that does not close the thought that the chat template opens",
        Skip.long_truth: "whose truth is over prm.teacher.max_truth_tokens (raise it)",
    }
    return ", ".join(f"{counts[skip]} {said[skip]}" for skip in Skip if counts.get(skip))


def check_usable(rows: Iterable[RowType], encode: Callable[[RowType], Item | Skip], limit: str) -> None:
    """Read rows up to the first that is not skipped. Raises InputError where there is none."""
    counts: Counter[Skip] = Counter()
    for row in rows:
        item = encode(row)
        if not isinstance(item, Skip):
            return
        counts[item] += 1
    raise InputError(f"every one of the {counts.total()} rows is skipped: {why_skipped(counts, limit)}")


class PromptStream(RowStream[PromptRow, Prompt]):
    """Tokenized training prompts; those over `max_prompt_tokens` are skipped.

    uid is "epoch-row"; draw is the position in the stream since the start of the run, skipped rows counted.
    """

    def __init__(
        self,
        rows: Sequence[PromptRow],
        tokenizer: Tokenizer,
        *,
        max_prompt_tokens: int,
        seed: int,
        shuffle: bool = True,
        telling: Telling | None = None,
    ) -> None:
        super().__init__(
            rows,
            lambda row, uid, draw: encode_prompt(row, tokenizer, uid, draw, max_prompt_tokens, telling),
            content=lambda row: (row.messages, row.tools, row.truths),
            seed=seed,
            shuffle=shuffle,
            limit=f"data.max_prompt_tokens {max_prompt_tokens}",
        )


class SftStream(RowStream[SftRow, Group]):
    """Supervised rows as groups of one sample, so that they pack and batch like rollouts."""

    def __init__(
        self,
        rows: Sequence[SftRow],
        tokenizer: Tokenizer,
        *,
        max_tokens: int,
        seed: int,
        shuffle: bool = True,
        epochs: int = 0,
    ) -> None:
        super().__init__(
            rows,
            lambda row, uid, draw: encode_sft(row, tokenizer, uid, draw, max_tokens),
            content=lambda row: (row.messages, row.tools, ()),
            seed=seed,
            shuffle=shuffle,
            limit=f"data.max_tokens {max_tokens}",
            epochs=epochs,
        )


def eval_prompts(
    rows: Sequence[PromptRow], tokenizer: Tokenizer, *, max_prompt_tokens: int, max_prompts: int | None
) -> tuple[list[Prompt], int]:
    """(held-out prompts in file order, number skipped for their length); uid is "eval-row", draw the row.

    Raises:
        InputError: all of the rows are skipped; one cannot be rendered.
    """
    prompts: list[Prompt] = []
    skipped = 0
    for index, row in enumerate(rows):
        if max_prompts is not None and len(prompts) == max_prompts:
            break
        prompt = encode_prompt(row, tokenizer, f"eval-{index}", index, max_prompt_tokens)
        if isinstance(prompt, Skip):
            skipped += 1
        else:
            prompts.append(prompt)
    if rows and not prompts:
        raise InputError(
            f"data.eval: every one of the {len(rows)} rows is skipped: over data.max_prompt_tokens {max_prompt_tokens}"
        )
    return prompts, skipped
