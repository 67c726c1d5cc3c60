"""A PRM with a head of one value: a role that predicts whether a beginning of a response will succeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.config.model import Layers
from prime_megatron.mcore.context import LocalTokens, localize_beginnings
from prime_megatron.mcore.head import predict_values
from prime_megatron.mcore.host_memory import HostPool
from prime_megatron.mcore.role import Learning, Role
from prime_megatron.mcore.schedule import Consume
from prime_megatron.parallel.topology import Topology
from prime_megatron.types import MiniBatch, PackedSequences

PrefixLoss = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]
"""From a micro-batch's logits [S], 0 where no beginning of a response ends, to the loss (already divided by the
mini-batch's global counts) and its statistics, which are sums."""
MakePrefixLoss = Callable[[PackedSequences, MiniBatch], PrefixLoss]


@dataclass(frozen=True)
class HeadResult(Learning):
    """What an update of the head's PRM did."""

    logits_T: Tensor
    """Of the update's own forwards, as `HeadPrm.logits`: each mini-batch under the weights before its step."""

    def followed_by(self, later: Learning) -> HeadResult:
        """This pass over a batch and a later one over the same: sums and updates of both, logits of this one."""
        stats = {key: total + later.stats[key] for key, total in self.stats.items()}
        return HeadResult(stats, self.updates + later.updates, self.logits_T)


class HeadPrm(Role):
    """Starts from any model folder, a ...ForSequenceClassification with one label among them; its head starts at zero
    where the folder has none, so that its first logits are 0. Arguments and errors as ``Role``; optimizer None: frozen.
    """

    def __init__(
        self,
        folder: str,
        topology: Topology,
        parallel: ParallelConfig,
        *,
        dtype: torch.dtype,
        optimizer: OptimizerConfig | None,
        total_updates: int,
        layers: Layers = Layers.auto,
        pool: HostPool | None = None,
    ) -> None:
        super().__init__(
            "prm",
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

    def logits(self, micro_batches: Sequence[PackedSequences], num_tokens: int) -> Tensor:
        """The logit of success of the text up to and including a token: float32 [num_tokens], on every rank; of
        response tokens and each prompt's last token, 0 elsewhere."""

        def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
            logits_S = predict_values(self.head(), hidden, micro)
            return logits_S.sum(), {"scored": logits_S[None]}

        return self.forward(micro_batches, consume, num_tokens, num_rows=1)[0]

    def train_logits(self, mini_batches: Sequence[MiniBatch], make_loss: MakePrefixLoss, num_tokens: int) -> HeadResult:
        """One optimizer step per mini-batch. Collective over the world; skips as ``Role.train``."""

        def consume_for(mini: MiniBatch) -> Consume:
            def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
                logits_S = predict_values(self.head(), hidden, micro)
                loss, stats = make_loss(micro.packed, mini)(logits_S)
                return loss, {"scored": logits_S.detach()[None], "stats": stats}

            return consume

        learning, kept = self.learn(mini_batches, consume_for)
        micro_batches = [micro for mini in mini_batches for micro in mini.micro]
        logits_T = self._scatter(micro_batches, [row["scored"] for row in kept], num_tokens, num_rows=1)[0]
        return HeadResult(learning.stats, learning.updates, logits_T)

    def _localize(self, micro_batches: Sequence[PackedSequences]) -> list[LocalTokens]:
        sizes, at = self.topology.sizes, self.topology.at
        return [
            localize_beginnings(micro, context_size=sizes.context, context_rank=at.context) for micro in micro_batches
        ]
