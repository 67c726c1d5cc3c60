"""The rows of a supervised run, read and checked before anything is written."""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.config import SftConfig
from prime_megatron.data.chat import ChatOptions
from prime_megatron.data.encode import Skip, encode_sft
from prime_megatron.data.hold_out import hold_out
from prime_megatron.data.rows import Remarks, SftRow, read_sft_rows
from prime_megatron.data.stream import SftStream, check_usable, why_skipped
from prime_megatron.data.tokenizer import Tokenizer, load_tokenizer
from prime_megatron.families.read import read_config
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.survey import Survey, survey
from prime_megatron.types import Group


@dataclass(frozen=True)
class Supervised:
    """The same on every rank."""

    stream: SftStream
    survey: Survey
    held_out: Sequence[Group]
    """Of data.held_out or data.held_out_share."""
    told: tuple[str, ...]
    """What the run says of its data at the start, a line each."""

    @property
    def num_learned(self) -> int:
        """Rows of an epoch."""
        return self.survey.num_rows - self.survey.num_skipped


def read_supervised(config: SftConfig, topology: Topology) -> Supervised:
    """Rows to learn and rows to measure. Collective over the world.

    Raises:
        InputError: a tokenizer, a file or a row that cannot be used; no row to learn, or none of those to measure.
    """
    data = config.data
    tokenizer = load_tokenizer(
        config.model,
        read_config(config.model).vocab,
        trust_remote_code=config.trust_remote_code,
        options=ChatOptions(*data.template_options()),
    )
    remarks, all_answers = Remarks(), data.answers == "all"
    rows = read_sft_rows(data.train, remarks, all_answers=all_answers)
    held = read_sft_rows(data.held_out, remarks, all_answers=all_answers)
    if data.held_out_share:
        rows, held = hold_out(rows, data.held_out_share, config.run.seed)
    stream = SftStream(rows, tokenizer, max_tokens=data.max_tokens, seed=config.run.seed, epochs=config.run.epochs)
    found = survey(stream, topology)
    groups, skipped = _measured(held, tokenizer, data.max_tokens)
    warnings = [line for line in (found.line, skipped, *remarks.lines()) if line is not None]
    return Supervised(stream, found, groups, (*tokenizer.told, *(f"warning: {line}" for line in warnings)))


def _measured(rows: Sequence[SftRow], tokenizer: Tokenizer, max_tokens: int) -> tuple[list[Group], str | None]:
    """The held-out rows in file order, and a line on those that are skipped."""
    limit = f"data.max_tokens {max_tokens}"
    items = [encode_sft(row, tokenizer, f"held-out-{i}", i, max_tokens) for i, row in enumerate(rows)]
    skips = collections.Counter(item for item in items if isinstance(item, Skip))
    groups = [item for item in items if not isinstance(item, Skip)]
    if rows and not groups:
        check_usable(items, lambda item: item, limit)
    if not skips:
        return groups, None
    return groups, f"held-out rows: {skips.total()} of {len(rows)} are skipped: {why_skipped(skips, limit)}"
