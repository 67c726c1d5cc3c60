"""Rows of the data as a stream of what a step takes, resumable to the row, the same on every rank."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from prime_megatron.config.rollout import TeachingConfig
from prime_megatron.data.encode import Skip, encode_prompt, encode_sft
from prime_megatron.data.order import EpochOrder, Order
from prime_megatron.data.rows import PromptRow, SftRow
from prime_megatron.data.teaching import TeachingOrder
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
    """Items made from rows in an order; rows that `encode` gives a Skip for are left out."""

    def __init__(
        self,
        rows: Sequence[RowType],
        encode: Callable[[RowType, str, int], Item | Skip],
        *,
        content: Callable[[RowType], object],
        order: Order,
        limit: str,
    ) -> None:
        """
        Args:
            rows: all rows, in file order.
            encode: (row, uid, draw) to an item, or why it is none.
            content: what tells a row from another, by its repr.
            order: which row comes next.
            limit: the key of the longest row, with its value, as "data.max_tokens 60".
        """
        assert rows
        self._rows, self._encode, self._content = rows, encode, content
        self._order = order
        self._limit = limit
        self._draw = 0
        self._digest: str | None = None

    @property
    def epoch(self) -> int:
        """Passes over the data that are over."""
        return self._order.epoch

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

    def begin(self, step: int) -> None:
        """A step asks for its items."""
        self._order.begin(step)

    def observe(self, groups: Sequence[Group]) -> None:
        """What came of items that this step took; the same on every rank."""
        self._order.observe(groups)

    def figures(self) -> dict[str, float]:
        """Metrics of the order's own."""
        return self._order.figures()

    def take(self, num_items: int) -> list[Item]:
        """The next items, fewer where the order ends.

        Raises:
            InputError: every row of the data is skipped.
        """
        items: list[Item] = []
        skipped_in_a_row = 0
        while len(items) < num_items and (place := self._order.next()) is not None:
            item = self._encode(self._rows[place.index], f"{place.visit}-{place.index}", self._draw)
            self._draw += 1
            if not isinstance(item, Skip):
                items.append(item)
                skipped_in_a_row = 0
                continue
            self._order.skip(place.index)
            skipped_in_a_row += 1
            if skipped_in_a_row >= 2 * len(self._rows):
                self.check_usable()
        if num_items and not items:
            self.check_usable()
        return items

    def state(self) -> dict[str, Any]:
        """Where the stream stands, JSON-ready."""
        return {**self._order.state(), "draw": self._draw, **self._identity()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken.

        Raises:
            InputError: the data, the seed or the order is not that of the state.
        """
        for key, mine in self._identity().items():
            if state[key] != mine:
                raise InputError(
                    f"cannot resume the data stream: {key} is {mine} now and was {state[key]} when saved; "
                    "resume with the same data files, run.seed and data.shuffle"
                )
        self._draw = int(state["draw"])
        self._order.restore(state)

    def _identity(self) -> dict[str, int | bool | str]:
        return {"num_rows": len(self._rows), **self._order.settings, "data_sha256": self._data_digest()}

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

    uid is "visit-row", visits counted from 0; draw is the position in the stream since the start of the run, skipped
    rows counted.
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
        teaching: TeachingConfig | None = None,
    ) -> None:
        """teaching: how rows are drawn by what they teach; None: every row once an epoch."""

        def content(row: PromptRow) -> object:
            plain = (row.messages, row.tools, row.truths)
            return plain if teaching is None else (*plain, row.difficulty)

        order: Order = EpochOrder(len(rows), seed=seed, shuffle=shuffle)
        if teaching is not None:
            order = TeachingOrder([row.difficulty for row in rows], teaching, seed=seed)
        super().__init__(
            rows,
            lambda row, uid, draw: encode_prompt(row, tokenizer, uid, draw, max_prompt_tokens, telling),
            content=content,
            order=order,
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
            order=EpochOrder(len(rows), seed=seed, shuffle=shuffle, epochs=epochs),
            limit=f"data.max_tokens {max_tokens}",
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
