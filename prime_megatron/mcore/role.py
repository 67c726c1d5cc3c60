"""One model in one role: policy, reference, PRM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from prime_megatron.algo.token_loss import TokenLoss
from prime_megatron.config import OptimizerConfig, ParallelConfig
from prime_megatron.config.model import Layers
from prime_megatron.device import current_device
from prime_megatron.families import FamilyConfig
from prime_megatron.families.read import read_config
from prime_megatron.mcore.context import LocalTokens, localize
from prime_megatron.mcore.head import Head, learn_next, predict_next, target_logits
from prime_megatron.mcore.host_memory import HostPool
from prime_megatron.mcore.model import build_model, unwrap
from prime_megatron.mcore.offload import GRADIENTS, OPTIMIZER, PARAMETERS, HostCopy
from prime_megatron.mcore.optimizer import Optimizer, UpdateResult
from prime_megatron.mcore.schedule import Consume, run_pipeline
from prime_megatron.mcore.weights import export_hf, load_hf, slices_at
from prime_megatron.parallel.shards import ShardSlice
from prime_megatron.parallel.topology import Topology
from prime_megatron.types import LogProbs, MiniBatch, PackedSequences

MakeLoss = Callable[[PackedSequences, MiniBatch], TokenLoss]
"""What a role learns from a micro-batch: a loss over its response tokens, in packed order.

The loss is already divided by the mini-batch's global counts, so that micro-batches, data-parallel and
context-parallel ranks only add up; so do its statistics, which are sums.
"""


@dataclass(frozen=True)
class Learning:
    """What a role's update did; the same on every rank of its data-parallel row."""

    stats: Mapping[str, float]
    """Sums over micro-batches, mini-batches and data-parallel ranks."""
    updates: tuple[UpdateResult, ...]
    """One per mini-batch."""


@dataclass(frozen=True)
class TrainResult(Learning):
    """The same, of a role that predicts tokens."""

    logprobs: LogProbs
    """Of the update's own forwards, float32 [T]: each mini-batch under the weights before its step."""

    def followed_by(self, later: Learning) -> TrainResult:
        """This pass over a batch and a later one over the same: sums and updates of both, log-probs of this one."""
        stats = {key: total + later.stats[key] for key, total in self.stats.items()}
        return TrainResult(stats, self.updates + later.updates, self.logprobs)


class Role:
    """A Megatron model laid out over the topology, with or without an optimizer.

    Args:
        name: "policy", "prm", "reference", ...: for logs and checkpoints.
        folder: HF folder to load.
        topology: sizes, groups and this rank's place.
        parallel: layout settings.
        dtype: compute dtype.
        optimizer: None for a frozen role.
        total_updates: optimizer steps of the whole run (decaying schedules).
        logprob_impl: implementation of the log-prob head.
        layers: whose layers it has.
        value_head: predict values instead of tokens (``critic.Critic``).
        pool: where its copy in host memory is, should it be moved (``memory``); None: a pool of its own.

    A role that is away from the device raises RoleAway wherever it would be read.

    Raises:
        InputError: the folder is missing, of an unknown family, or its tensors disagree with its config; or the layers
            are not to be had here.
    """

    def __init__(
        self,
        name: str,
        folder: str,
        topology: Topology,
        parallel: ParallelConfig,
        *,
        dtype: torch.dtype,
        optimizer: OptimizerConfig | None,
        total_updates: int = 1,
        logprob_impl: str = "auto",
        layers: Layers = Layers.auto,
        value_head: bool = False,
        pool: HostPool | None = None,
    ) -> None:
        self.name = name
        self.folder = folder
        self.topology = topology
        self.parallel = parallel
        self.family: FamilyConfig = read_config(folder, value_head=value_head)
        self.logprob_impl = logprob_impl
        self.chunks: list[nn.Module] = build_model(
            self.family, topology, parallel, dtype,
            wrap_ddp=optimizer is not None, value_head=value_head, layers=layers,
        )  # fmt: skip
        load_hf(self.chunks, folder, topology)
        self.optimizer = (
            Optimizer(self.chunks, optimizer, parallel, dtype, total_updates) if optimizer is not None else None
        )
        megatron = self.optimizer.megatron if self.optimizer is not None else None
        self.memory = HostCopy(name, self.chunks, megatron, pool or HostPool())
        # A frozen role keeps requires_grad: Megatron's linear layers take another product for frozen weights, and
        # then a PRM equal to its reference would not score equal to the last bit (batch_norm magnifies the rest).

    def logprobs(
        self, micro_batches: Sequence[PackedSequences], num_tokens: int, *, temperature: float = 1.0
    ) -> LogProbs:
        """Score a batch without learning: float32 [num_tokens] on every rank of the model-parallel block."""

        def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
            scored = predict_next(self.head(), hidden, micro, temperature)
            return scored.logprobs_T.sum(), {"scored": _rows(scored)}

        logprobs_T, entropy_T = self.forward(micro_batches, consume, num_tokens, num_rows=2)
        return LogProbs(logprobs_T, entropy_T)

    def target_logits(self, micro_batches: Sequence[PackedSequences], num_tokens: int, *, temperature: float) -> Tensor:
        """The logit of each response token: float32 [num_tokens], 0 elsewhere, as ``logprobs``."""

        def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
            logits_S = target_logits(self.head(), hidden, micro, temperature)
            return logits_S.sum(), {"scored": logits_S[None]}

        return self.forward(micro_batches, consume, num_tokens, num_rows=1)[0]

    def train(
        self, mini_batches: Sequence[MiniBatch], make_loss: MakeLoss, num_tokens: int, *, temperature: float = 1.0
    ) -> TrainResult:
        """One optimizer step per mini-batch. Collective over the world.

        A step whose gradient is not finite on any rank is skipped on all (``UpdateResult.applied``).
        """

        def consume_for(mini: MiniBatch) -> Consume:
            def consume(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
                learned = learn_next(self.head(), hidden, micro, make_loss(micro.packed, mini), temperature)
                return learned.loss, {"scored": _rows(learned.scored), "stats": learned.stats}

            return consume

        learning, kept = self.learn(mini_batches, consume_for)
        micro_batches = [micro for mini in mini_batches for micro in mini.micro]
        logprobs_T, entropy_T = self._scatter(micro_batches, [row["scored"] for row in kept], num_tokens, num_rows=2)
        return TrainResult(learning.stats, learning.updates, LogProbs(logprobs_T, entropy_T))

    def forward(
        self, micro_batches: Sequence[PackedSequences], consume: Consume, num_tokens: int, *, num_rows: int
    ) -> Tensor:
        """Run without learning; ``consume`` keeps "scored", float32 [num_rows, S]. Returns [num_rows, num_tokens]."""
        self.memory.need(PARAMETERS)
        for chunk in self.chunks:
            chunk.eval()
        # Megatron's schedules know no empty list; a step of one mini-batch has no later ones to score.
        kept = run_pipeline(self.chunks, self._localize(micro_batches), consume, train=False) if micro_batches else []
        return self._scatter(micro_batches, [row["scored"] for row in kept], num_tokens, num_rows=num_rows)

    def learn(
        self, mini_batches: Sequence[MiniBatch], consume_for: Callable[[MiniBatch], Consume]
    ) -> tuple[Learning, list[dict[str, Any]]]:
        """One optimizer step per mini-batch on what its ``consume`` returns, and what that kept (with "stats").

        A step whose loss or gradient is not finite on any rank is skipped on all (``UpdateResult.applied``).
        """
        assert self.optimizer is not None, f"{self.name} is frozen"
        self.memory.need(PARAMETERS, GRADIENTS)
        self.memory.changed(PARAMETERS, *self.memory.here & {OPTIMIZER})
        kept: list[dict[str, Any]] = []
        updates: list[UpdateResult] = []
        for chunk in self.chunks:
            chunk.train()
        for mini in mini_batches:
            for chunk in self.chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
            rows = run_pipeline(self.chunks, self._localize(mini.micro), _noting_finite(consume_for(mini)), train=True)
            fine = torch.stack([row["finite"] for row in rows]).all() if rows else torch.tensor(True)
            updates.append(self.optimizer.step(bool(fine), self.memory))
            kept += rows
        if self.parallel.overlap_param_gather and self.parallel.distributed_optimizer:
            # Otherwise gathered in the next forward; the engine, a checkpoint and an export read them before it.
            for chunk in self.chunks:
                chunk.start_param_sync(force_sync=True)
        return Learning(self._reduce([row["stats"] for row in kept]), tuple(updates)), kept

    def pieces(self, rank: int) -> list[ShardSlice]:
        """Which part of which Hugging Face tensor any rank of the world holds in its parameters."""
        return slices_at(unwrap(self.chunks[0]), self.topology, self.topology.sizes.coordinates(rank))

    @torch.no_grad()
    def copy_from(self, other: Role) -> None:
        """Take the weights of another role of the same model and layout, bit for bit."""
        theirs = other.params()
        self.memory.changed(PARAMETERS)
        for key, tensor in self.params().items():
            tensor.copy_(theirs[key])

    def export(self, folder: Path) -> None:
        """Write the weights as an HF folder, beside the source's config and tokenizer files. Collective."""
        self.memory.need(PARAMETERS)
        export_hf(self.chunks, folder, self.topology, self.folder)

    def params(self) -> dict[tuple[int, str], Tensor]:
        """This rank's parameters by (chunk, name): the live tensors, which the reshard reads."""
        self.memory.need(PARAMETERS)
        return {
            (index, name): param.data
            for index, chunk in enumerate(self.chunks)
            for name, param in unwrap(chunk).named_parameters()
        }

    def _localize(self, micro_batches: Sequence[PackedSequences]) -> list[LocalTokens]:
        return [
            localize(micro, context_size=self.topology.sizes.context, context_rank=self.topology.at.context)
            for micro in micro_batches
        ]

    def head(self) -> Head:
        """The output of the last stage."""
        self.memory.need(PARAMETERS)
        return Head(unwrap(self.chunks[-1]), self.topology, self.family.vocab, self.logprob_impl)

    def _scatter(
        self, micro_batches: Sequence[PackedSequences], scored: Sequence[Tensor], num_tokens: int, *, num_rows: int
    ) -> Tensor:
        """Micro-batch results [num_rows, S] back to the batch's order, from the last stage to all."""
        whole = torch.zeros(num_rows, num_tokens, device=current_device())
        for micro, part in zip(micro_batches, scored, strict=False):
            real = micro.real_S
            whole[:, micro.source_S[real]] = part[:, real]
        if self.topology.sizes.pipeline > 1:
            dist.broadcast(whole, self.topology.last_stage_rank, group=self.topology.pipeline)
        return whole

    def _reduce(self, rows: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """Sum the statistics over micro-batches and data-parallel ranks; known on every rank."""
        totals = {key: sum(float(row[key]) for row in rows) for key in (rows[0] if rows else {})}
        if self.topology.sizes.pipeline > 1:
            carrier = [totals]
            dist.broadcast_object_list(carrier, self.topology.last_stage_rank, group=self.topology.pipeline)
            totals = carrier[0]
        if self.topology.sizes.data > 1:
            sums = torch.tensor(list(totals.values()), dtype=torch.float64, device=current_device())
            dist.all_reduce(sums, group=self.topology.data)
            totals = dict(zip(totals, sums.tolist(), strict=True))
        return totals


def _rows(scored: LogProbs) -> Tensor:
    return torch.stack([scored.logprobs_T, scored.entropy_T])


def _noting_finite(consume: Consume) -> Consume:
    """The same, noting whether the loss is a finite number (read once per mini-batch)."""

    def noting(micro: LocalTokens, hidden: Tensor) -> tuple[Tensor, dict[str, Any]]:
        loss, kept = consume(micro, hidden)
        return loss, kept | {"finite": torch.isfinite(loss.detach()).all()}

    return noting
