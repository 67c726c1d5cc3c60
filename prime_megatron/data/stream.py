"""The order in which rows are drawn: shuffled per epoch, resumable to the row, the same on every rank."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from prime_megatron.data.rows import PromptRow, SftRow
from prime_megatron.data.tokenizer import Tokenizer
from prime_megatron.errors import InputError
from prime_megatron.types import Group, Prompt, Sample

Row = TypeVar("Row")
Item = TypeVar("Item")


class RowStream(Generic[Row, Item]):
    """Endless stream of items made from rows; rows that `encode` refuses are skipped and counted."""

    def __init__(
        self,
        rows: Sequence[Row],
        encode: Callable[[Row, str, int], Item | None],
        *,
        content: Callable[[Row], object],
        seed: int,
        shuffle: bool,
        why_skipped: str,
    ) -> None:
        """
        Args:
            rows: all rows, in file order.
            encode: (row, uid, draw) to an item, or None when the row is too long.
            content: what tells a row from another, by its repr.
            seed: of the order.
            shuffle: a new order every epoch; false: file order.
            why_skipped: ends the error when every row is skipped.
        """
        assert rows
        self._rows: Sequence[Row] = rows
        self._encode: Callable[[Row, str, int], Item | None] = encode
        self._content: Callable[[Row], object] = content
        self._seed = seed
        self._shuffle = shuffle
        self._why_skipped = why_skipped
        self._epoch = 0
        self._position = 0
        self._draw = 0
        self._skipped = 0
        self._order = self._permutation(0)
        self._digest: str | None = None

    @property
    def epoch(self) -> int:
        """Epochs that are over."""
        return self._epoch

    @property
    def skipped(self) -> int:
        """Rows skipped since the start of the run (once for every epoch that met them)."""
        return self._skipped

    def take(self, num_items: int) -> list[Item]:
        """The next items; goes on into the next epoch where one ends.

        Raises:
            InputError: every row of the data is skipped.
        """
        items: list[Item] = []
        skipped_in_a_row = 0
        while len(items) < num_items:
            if self._position == len(self._rows):
                self._epoch += 1
                self._position = 0
                self._order = self._permutation(self._epoch)
            index = self._order[self._position]
            item = self._encode(self._rows[index], f"{self._epoch}-{index}", self._draw)
            self._position += 1
            self._draw += 1
            if item is not None:
                items.append(item)
                skipped_in_a_row = 0
                continue
            self._skipped += 1
            skipped_in_a_row += 1
            if skipped_in_a_row >= 2 * len(self._rows):
                raise InputError(f"every one of the {len(self._rows)} rows is skipped: {self._why_skipped}")
        return items

    def state(self) -> dict[str, int | bool | str]:
        """Where the stream stands, JSON-ready."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "draw": self._draw,
            "skipped": self._skipped,
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
            if key in ("epoch", "position", "draw", "skipped"):
                continue
            if state[key] != mine:
                raise InputError(
                    f"cannot resume the data stream: {key} is {mine} now and was {state[key]} when saved; "
                    "resume with the same data files, run.seed and data.shuffle"
                )
        self._epoch = int(state["epoch"])
        self._position = int(state["position"])
        self._draw = int(state["draw"])
        self._skipped = int(state["skipped"])
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


class PromptStream(RowStream[PromptRow, Prompt]):
    """Tokenized training prompts; those over `max_prompt_tokens` are skipped and counted.

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
    ) -> None:
        super().__init__(
            rows,
            lambda row, uid, draw: encode_prompt(row, tokenizer, uid, draw, max_prompt_tokens),
            content=lambda row: (row.messages, row.ground_truth),
            seed=seed,
            shuffle=shuffle,
            why_skipped=f"no prompt has 1 to {max_prompt_tokens} tokens; raise data.max_prompt_tokens",
        )


class SftStream(RowStream[SftRow, Group]):
    """Supervised rows as groups of one sample, so that they pack and batch like rollouts."""

    def __init__(
        self, rows: Sequence[SftRow], tokenizer: Tokenizer, *, max_tokens: int, seed: int, shuffle: bool = True
    ) -> None:
        super().__init__(
            rows,
            lambda row, uid, draw: encode_sft(row, tokenizer, uid, draw, max_tokens),
            content=lambda row: (row.messages, ""),
            seed=seed,
            shuffle=shuffle,
            why_skipped=f"no row has 1 to {max_tokens} tokens; raise data.max_tokens",
        )


def encode_prompt(row: PromptRow, tokenizer: Tokenizer, uid: str, draw: int, max_prompt_tokens: int) -> Prompt | None:
    """A row as the model reads it; None when it is longer than `max_prompt_tokens` or has no tokens.

    Raises:
        InputError: the row's chat cannot be rendered, by file and row.
    """
    try:
        text, token_ids = tokenizer.encode_chat(row.messages)
    except InputError as error:
        raise InputError(f"{row.origin}: {error}") from None
    if not 0 < len(token_ids) <= max_prompt_tokens:
        return None
    return Prompt(uid, draw, tuple(token_ids), row.ability, row.ground_truth, row.data_source, text, row.extra_info)


def encode_sft(row: SftRow, tokenizer: Tokenizer, uid: str, draw: int, max_tokens: int) -> Group | None:
    """A supervised row as a group of one; None when it is longer than `max_tokens`. Raises as `encode_prompt`."""
    try:
        prompt_ids, response_ids = tokenizer.encode_answer(row.messages)
    except InputError as error:
        raise InputError(f"{row.origin}: {error}") from None
    if not prompt_ids or len(prompt_ids) + len(response_ids) > max_tokens:
        return None
    prompt = Prompt(uid, draw, tuple(prompt_ids), "", "")
    zeros = (0.0,) * len(response_ids)
    return Group(prompt, (Sample(tuple(response_ids), zeros, "stop", 0, row.messages[-1].content),))


def eval_prompts(
    rows: Sequence[PromptRow], tokenizer: Tokenizer, *, max_prompt_tokens: int, max_prompts: int | None
) -> tuple[list[Prompt], int]:
    """(held-out prompts in file order, number skipped for their length); uid is "eval-row", draw the row."""
    prompts: list[Prompt] = []
    skipped = 0
    for index, row in enumerate(rows):
        if max_prompts is not None and len(prompts) == max_prompts:
            break
        prompt = encode_prompt(row, tokenizer, f"eval-{index}", index, max_prompt_tokens)
        if prompt is None:
            skipped += 1
        else:
            prompts.append(prompt)
    return prompts, skipped
