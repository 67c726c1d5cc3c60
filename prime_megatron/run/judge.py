"""A model asked for + or - behind every step, in any layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prime_megatron.config import ScoreConfig
from prime_megatron.evaluate.step_judge import Asked
from prime_megatron.mcore.context import LocalTokens
from prime_megatron.mcore.head import predict_next
from prime_megatron.parallel.collectives import gather_to_first
from prime_megatron.parallel.topology import Topology
from prime_megatron.run.prm_scorer import frozen_role
from prime_megatron.step.batch import Batcher
from prime_megatron.types import Group, Prompt, Sample


@dataclass(frozen=True)
class Signs:
    """Log-probs (nats) of the two signs behind each step of one solution."""

    index: int
    """Of the solution among those that were asked about."""
    plus: tuple[float, ...]
    minus: tuple[float, ...]


class Judge:
    """The model, laid out over the topology.

    Args:
        folder: HF folder.
        minus: token id of -; that of + is in what is asked.
        config: layout and batch.
        topology: sizes, groups and this rank's place.
    """

    def __init__(self, folder: str, minus: int, config: ScoreConfig, topology: Topology) -> None:
        self.topology = topology
        self.minus = minus
        self.batch_size = config.batch_size
        self.batcher = Batcher(topology, config.packing)
        self.model = frozen_role("judge", folder, config, topology)

    def signs(self, asked: Sequence[Asked]) -> Iterator[list[Signs]]:
        """Batch by batch in the order given, on the first rank; empty lists on the others. Collective."""
        for start in range(0, len(asked), self.batch_size):
            indices = range(start, min(start + self.batch_size, len(asked)))
            batch = self.batcher([_as_group(index, asked[index]) for index in indices])
            micro = [micro for mini in batch.prm for micro in mini.micro]
            both = self.model.forward(micro, self._consume, batch.num_local_tokens, num_rows=2).tolist()
            mine = []
            if self.topology.leads_model:
                ends = batch.rollout.cu_seqlens.tolist()[1:]
                for group, stop in zip(batch.rollout.groups, ends, strict=True):
                    one = asked[group.prompt.draw]
                    places = [stop - len(one.response_ids) + sign for sign in one.sign_at]
                    plus, minus = (tuple(row[place] for place in places) for row in both)
                    mine.append(Signs(group.prompt.draw, plus, minus))
            found = [one for part in gather_to_first(mine) for one in part]
            yield sorted(found, key=lambda one: one.index)

    def _consume(self, micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Log-prob of each response token as it is, and of - in its place."""
        head = self.model.head()
        own = predict_next(head, hidden, micro, 1.0).logprobs_T
        other = dataclasses.replace(micro, targets=torch.full_like(micro.targets, self.minus))
        minus = predict_next(head, hidden, other, 1.0).logprobs_T
        return own.sum(), {"scored": torch.stack([own, minus])}


def _as_group(index: int, asked: Asked) -> Group:
    zeros = (0.0,) * len(asked.response_ids)
    sample = Sample(asked.response_ids, zeros, "stop", 0)
    return Group(Prompt(str(index), index, asked.prompt_ids, "", ""), (sample,))
