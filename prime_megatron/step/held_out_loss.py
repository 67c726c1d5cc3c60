"""The supervised loss on rows that no one learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from prime_megatron.algo.reduction import Reduction
from prime_megatron.mcore.role import Role
from prime_megatron.step.batch import Batcher
from prime_megatron.types import Group

MAX_LOSS = 700.0
"""Nats whose exponential a float still holds."""


class HeldOutLoss:
    """Loss and perplexity on held-out rows.

    Args:
        groups: rows as groups of one, the same on every rank; none: nothing is ever measured.
        batcher: lays them out.
        reduce: over the data-parallel ranks.
        at_once: rows of one batch.
    """

    def __init__(self, groups: Sequence[Group], batcher: Batcher, *, reduce: Reduction, at_once: int) -> None:
        self.groups = groups
        self.batcher = batcher
        self.reduce = reduce
        self.at_once = at_once

    def due(self, step: int, last_step: int, every: int) -> bool:
        """Whether to measure after this many updates: before the first, after the last, and every n (0: never)."""
        return bool(self.groups) and (step in (0, last_step) or (every > 0 and step % every == 0))

    def measure(self, model: Role) -> dict[str, float]:
        """Mean -log p of a response token over all rows, and its exponential; the same on every rank. Collective."""
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(self.groups), self.at_once):
            batch = self.batcher(self.groups[start : start + self.at_once])
            micro = [micro for mini in batch.policy for micro in mini.micro]
            mask_T = batch.rollout.response_mask_T
            logprobs_T = model.logprobs(micro, batch.num_local_tokens).logprobs_T[mask_T].double()
            sums = sums.to(mask_T.device) + torch.stack([-logprobs_T.sum(), mask_T.sum().double()])
        total, count = self.reduce.sum(sums).tolist()
        loss = total / count
        return {"eval/loss": loss, "eval/perplexity": math.exp(loss) if loss < MAX_LOSS else math.inf}
