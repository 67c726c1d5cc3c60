"""The critic: a role with a value head, for estimator gae (paper, appendix B.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.config.model import Layers
from prime_megatron.mcore.context import LocalTokens
from prime_megatron.mcore.head import predict_values
from prime_megatron.mcore.host_memory import HostPool
from prime_megatron.mcore.role import Learning, Role
from prime_megatron.mcore.schedule import Consume
from prime_megatron.parallel.topology import Topology
from prime_megatron.types import MiniBatch, PackedSequences

ValueLoss = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]
"""From the micro-batch's values [R] of its response tokens, in packed order, to the loss (already divided by the
mini-batch's global count) and its statistics, which are sums."""
MakeValueLoss = Callable[[PackedSequences, MiniBatch], ValueLoss]


class Critic(Role):
    """A role that predicts values instead of tokens; arguments and errors as ``Role``.

    Starts from any model folder; its head starts at zero where the folder has none, so its first values are 0.
    """

    def __init__(
        self,
        folder: str,
        topology: Topology,
        parallel: ParallelConfig,
        *,
        dtype: torch.dtype,
        optimizer: OptimizerConfig,
        total_updates: int,
        layers: Layers = Layers.auto,
        pool: HostPool | None = None,
    ) -> None:
        super().__init__(
            "critic",
            folder,
            topology,
            parallel,
            dtype=dtype,
            optimizer=optimizer,
            total_updates=total_updates,
            layers=layers,
            value_head=True,
            pool=pool,
        )

    def values(self, micro_batches: Sequence[PackedSequences], num_tokens: int) -> Tensor:
        """The value of the text before each response token: float32 [num_tokens], 0 elsewhere, on every rank."""

        def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
            values_S = predict_values(self.head(), hidden, micro)
            return values_S.sum(), {"scored": values_S[None]}

        return self.forward(micro_batches, consume, num_tokens, num_rows=1)[0]

    def train_values(self, mini_batches: Sequence[MiniBatch], make_loss: MakeValueLoss) -> Learning:
        """One optimizer step per mini-batch. Collective over the world; skips as ``Role.train``."""

        def consume_for(mini: MiniBatch) -> Consume:
            def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
                values_S = predict_values(self.head(), hidden, micro)
                loss, stats = make_loss(micro.packed, mini)(values_S[micro.packed.response_mask_S])
                return loss, {"stats": stats}

            return consume

        return self.learn(mini_batches, consume_for)[0]
