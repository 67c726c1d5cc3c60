"""Bytes of activations and of the head's workspace on one rank: Korthikanti et al. 2022 (arXiv 2205.05198, section 4)
for packed micro-batches, grouped keys and values, gated feed-forward layers, experts, and what this project's own
layers keep (mcore/norm, swiglu, rotary, attention): no masks and no dropout, so nothing of one byte.

Kept by a layer for the backward, elements per token of a rank (h hidden, q and k widths of the rank's queries and keys,
f feed-forward width of the rank):

    norms and residuals   4 h            both norms keep their input and their output
    attention             3 q + 3 k      the product q, k, v (its parts are views), turned q and k, the output
    feed-forward          3 f            gate and up, and their gated product
    experts, per copy     h + 6 f        the tokens they receive; megatron's own gated activation

Norms of queries and keys keep one more q. Context parallelism keeps the keys and values of all its ranks in place of
the rank's own. With recomputation "selective" the core attention keeps its arguments alone, with "full" a layer
keeps h. Sequence parallelism divides the tokens of the h terms by the tensor-parallel size.
tests/distributed/test_saved_activations.py holds all of it against what autograd saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prime_megatron.config import ParallelConfig
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.count import local_groups
from prime_megatron.families.megatron_layout import padded_vocab
from prime_megatron.kernels.head_chunks import SCORE_BYTES, TRAIN_BYTES, tokens_within
from prime_megatron.parallel.layers import layer_ranges
from prime_megatron.parallel.topology import ParallelSizes

EXPERT_IMBALANCE = 1.5
"""What a run is planned with: routing drops no token. An assumption, not measured."""
FLOAT32 = 4


@dataclass(frozen=True)
class Activations:
    """One model's, for micro-batches of one size."""

    family: FamilyConfig
    parallel: ParallelConfig
    sizes: ParallelSizes
    itemsize: int
    """Bytes of an element in the compute dtype."""
    tokens: int
    """Of a micro-batch, over the context-parallel ranks."""
    micro_batches: int
    """Of a mini-batch, at most."""
    expert_imbalance: float
    """Tokens of the busiest rank's experts over the mean."""
    value_head: bool

    def training(self, stage: int) -> float:
        """Most that a rank of the stage holds in an update: what waits for its backward, and the larger of the head's
        workspace and the backward of one layer (the gradients of what it kept, which full recomputation makes anew)."""
        backward = self.layer * (2 if self.parallel.recompute == "full" else 1)
        head = self._head(TRAIN_BYTES) + self._weight_gradient if self._is_last(stage) else 0.0
        return self._waiting(stage) + max(head, backward)

    def scoring(self, stage: int) -> float:
        """Most that a rank of the stage holds in a forward without gradients: one layer's tensors, or the head's."""
        return max(self.layer, self._head(SCORE_BYTES) if self._is_last(stage) else 0.0)

    @property
    def layer(self) -> float:
        """What one layer keeps without recomputation."""
        return self._norms + self._attention(core=True) + self._feed_forward

    def kept(self) -> float:
        """What one layer keeps of a micro-batch as parallel.recompute says."""
        match self.parallel.recompute:
            case "full":
                return self._residual
            case "selective":
                return self._norms + self._attention(core=False) + self._feed_forward
            case _:
                return self.layer

    def _waiting(self, stage: int) -> float:
        """Of micro-batches whose backward is to come: of each its layers, and the output that is handed on."""
        ranges = layer_ranges(
            self.family.layers, self.sizes.pipeline, self.sizes.virtual_pipeline, self.parallel.pipeline_layers
        )[stage]
        return sum(layers * self.kept() + self._residual for layers in self._in_flight(stage, [*map(len, ranges)]))

    def _in_flight(self, stage: int, chunks: Sequence[int]) -> list[int]:
        """Layers of every forward that a stage runs ahead (megatron's schedules: one forward one backward, or
        interleaved, whose warm-up walks through the chunks in groups of as many micro-batches as there are stages)."""
        pipeline, virtual = self.sizes.pipeline, len(chunks)
        if virtual == 1:
            return [chunks[0]] * min(self.micro_batches, pipeline - stage)
        ahead = min(2 * (pipeline - stage - 1) + (virtual - 1) * pipeline + 1, virtual * self.micro_batches)
        return [chunks[index // pipeline % virtual] for index in range(ahead)]

    @property
    def _local(self) -> float:
        return self.tokens / self.sizes.context

    @property
    def _split(self) -> float:
        """Tokens of a rank between the tensor-parallel products."""
        return self._local / (self.sizes.tensor if self.parallel.sequence else 1)

    @property
    def _residual(self) -> float:
        return self.itemsize * self.family.hidden * self._split

    @property
    def _norms(self) -> float:
        return 4 * self._residual + 2 * FLOAT32 * self._split

    def _attention(self, *, core: bool) -> float:
        """core: with what the core attention itself keeps."""
        queries, keys = local_groups(self.family, self.sizes.tensor)
        elements, heads = 3 * queries + 2 * keys, (queries + keys) // self.family.head_dim
        kept = 0.0
        if self.family.qk_norm:
            elements += queries
            kept += FLOAT32 * heads * self._local
        if core or self.family.qk_norm:
            elements += keys
        if core:
            kept += FLOAT32 * queries // self.family.head_dim * self._local  # of every head's softmax
            if self.sizes.context > 1:
                elements -= 3 * keys
                kept += self.itemsize * 2 * keys * self.tokens
        return kept + self.itemsize * elements * self._local

    @property
    def _feed_forward(self) -> float:
        if not self.family.experts:
            return self.itemsize * 3 * self.family.ffn / self.sizes.tensor * self._local
        shards = self.sizes.expert_tensor
        copies = self.expert_imbalance * self.family.experts_per_token * self._split * shards
        router = 3 * FLOAT32 * self.family.experts * self._split
        return router + self.itemsize * copies * (self.family.hidden + 6 * self.family.expert_ffn / shards)

    def _is_last(self, stage: int) -> bool:
        return stage == self.sizes.pipeline - 1

    @property
    def _rows(self) -> int:
        return padded_vocab(self.family.vocab, self.sizes.tensor) // self.sizes.tensor

    def _head(self, num_bytes: int) -> float:
        """The last norm's output, hidden states gathered, selected and their gradient, a chunk's logits; every
        token is taken for one that predicts a response token. A critic has its hidden states in float32 instead."""
        hidden = self.family.hidden * self._local
        states = self._residual + 3 * self.itemsize * hidden
        if self.value_head:
            return states + 2 * FLOAT32 * hidden
        return states + FLOAT32 * self._rows * tokens_within(num_bytes, int(self._local), self._rows)

    @property
    def _weight_gradient(self) -> float:
        """What autograd hands to megatron for the output weight; its float32 sum is in the gradient buffer."""
        return 0.0 if self.value_head else float(self.itemsize * self._rows * self.family.hidden)
