"""What ranks tell each other of responses: the numbers to all, the text to the first rank, and only what it writes.

A response is decoded once, for its verification, by the rank that speaks for the replica that made it. That rank keeps
text and reason. To all ranks go token ids, log-probs, finish, outcome and verdict: what training, filtering and metrics
read, and whether the text keeps a form, where a metric asks for it. It travels as one flat buffer from each speaking
rank, with these parts in this order (C responses, T tokens):

    outcomes  float64 [C]
    heads     int64   [C, 4]   prompt index, number of tokens, finish with form, verdict
    tokens    int32   [T]
    logprobs  float32 [T]
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from prime_megatron.device import current_device
from prime_megatron.parallel.collectives import gather_bytes, gather_to_first
from prime_megatron.types import Group, Sample
from prime_megatron.verify import VERDICTS

ENDS = tuple(itertools.product(("stop", "length"), (None, False, True)))
"""Finish, and `Sample.in_form`."""
_HEADS = 4
_BYTES_PER_RESPONSE = 8 + 8 * _HEADS
_BYTES_PER_TOKEN = 4 + 4


@dataclass(frozen=True)
class Response:
    """A verified response on its way into its group."""

    prompt: int
    """Index of its prompt among those of the round."""
    sample: Sample


def exchange(mine: Sequence[Response], counts: Sequence[tuple[int, int]], version: int) -> list[Response]:
    """Every rank's responses, in rank order, on every rank; text and reason on the rank that gave them.

    Collective over the world.

    Args:
        mine: this rank's.
        counts: (responses, tokens) of each rank, see `count`.
        version: the policy version that made all of them.
    """
    sizes = [responses * _BYTES_PER_RESPONSE + tokens * _BYTES_PER_TOKEN for responses, tokens in counts]
    parts = gather_bytes(_packed(mine).to(current_device()), sizes)
    everyones: list[Response] = []
    for rank, (part, (responses, _)) in enumerate(zip(parts, counts, strict=True)):
        made = _unpacked(part.cpu(), responses, version)
        if rank == dist.get_rank():
            made = [_with_text(one, own.sample) for one, own in zip(made, mine, strict=True)]
        everyones += made
    return everyones


def count(mine: Sequence[Response]) -> tuple[int, int]:
    """(responses, tokens) of this rank."""
    return len(mine), sum(len(response.sample.token_ids) for response in mine)


def with_texts(
    groups: Sequence[Group], token_ends: Callable[[Sequence[int], str], Sequence[int]] | None = None
) -> list[Group]:
    """The groups with the text and reason of every sample on the first rank; as they are on the others.

    token_ends: where each token ends in the text; asked by the rank that has the text. None: the samples are without.
    Collective over the world; every rank gives the same groups.
    """
    mine = [
        (g, s, sample.text, sample.reason, token_ends and tuple(token_ends(sample.token_ids, sample.text)))
        for g, group in enumerate(groups)
        for s, sample in enumerate(group.samples)
        if sample.text is not None
    ]
    samples = [list(group.samples) for group in groups]
    for part in gather_to_first(mine):
        for g, s, text, reason, ends in part:
            samples[g][s] = dataclasses.replace(samples[g][s], text=text, reason=reason, token_ends=ends)
    return [dataclasses.replace(group, samples=tuple(own)) for group, own in zip(groups, samples, strict=True)]


def on_first(group: Group) -> Group:
    """A group that every rank has read with its texts: they stay on the first rank, which from now on owns them."""
    if dist.get_rank() == 0:
        return group
    return dataclasses.replace(
        group, samples=tuple(dataclasses.replace(sample, text=None, reason=None) for sample in group.samples)
    )


def _packed(responses: Sequence[Response]) -> Tensor:
    """uint8, laid out as the module says; the float64s come first, so that every part is aligned."""
    samples = [response.sample for response in responses]
    heads = [
        (
            response.prompt,
            len(response.sample.token_ids),
            ENDS.index((response.sample.finish, response.sample.in_form)),
            VERDICTS.index(response.sample.verdict),
        )
        for response in responses
    ]
    parts = (
        torch.tensor([sample.outcome for sample in samples], dtype=torch.float64),
        torch.tensor(heads, dtype=torch.int64).flatten(),
        torch.tensor([token for sample in samples for token in sample.token_ids], dtype=torch.int32),
        torch.tensor([logprob for sample in samples for logprob in sample.logprobs], dtype=torch.float32),
    )
    return torch.cat([part.view(torch.uint8) for part in parts])


def _unpacked(part: Tensor, responses: int, version: int) -> list[Response]:
    """Inverse of `_packed`, texts and reasons left out."""
    num_tokens = (part.numel() - responses * _BYTES_PER_RESPONSE) // _BYTES_PER_TOKEN
    sizes = [8 * responses, 8 * _HEADS * responses, 4 * num_tokens, 4 * num_tokens]
    outcomes, heads, tokens, logprobs = part.split(sizes)
    made: list[Response] = []
    start = 0
    lists = tokens.view(torch.int32).tolist(), logprobs.view(torch.float32).tolist()
    for outcome, (prompt, length, end, verdict) in zip(
        outcomes.view(torch.float64).tolist(), heads.view(torch.int64).view(-1, _HEADS).tolist(), strict=True
    ):
        span = slice(start, start + length)
        start += length
        sample = Sample(
            token_ids=tuple(lists[0][span]),
            logprobs=tuple(lists[1][span]),
            finish=ENDS[end][0],
            version=version,
            outcome=outcome,
            verdict=VERDICTS[verdict],
            in_form=ENDS[end][1],
        )
        made.append(Response(prompt, sample))
    return made


def _with_text(response: Response, own: Sample) -> Response:
    return Response(response.prompt, dataclasses.replace(response.sample, text=own.text, reason=own.reason))
