"""What passes between the stages of one step.

Shape legend: N sequences and T tokens on this data-parallel rank, S tokens of a micro-batch (padding included),
V vocabulary, H hidden. Everything per
token is packed: sequence i owns tokens cu_seqlens[i] to cu_seqlens[i + 1], prompt first, response after it.
Index t always speaks of token t: ``logprobs_T[t]`` is log p(token t | the tokens before it in its sequence),
and 0 at the first token of a sequence, which nothing predicts. The shift happens in one function,
``prime_megatron.mcore.head``.

Example, one prompt [5, 6] with two responses [7, 8] and [9]:
    tokens_T        5 6 7 8 5 6 9
    cu_seqlens      0 4 7
    response_mask_T 0 0 1 1 0 0 1
    group_N         0 0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """One row of the data, tokenized."""

    uid: str
    """Unique in a run: how often the row came before, and the row, such as "0-17"."""
    draw: int
    """Position in the shuffled stream since the start of the run; seeds the sampling."""
    token_ids: tuple[int, ...]
    ability: str
    ground_truth: str
    data_source: str = ""
    text: str = ""
    """The prompt as the model reads it, for samples.jsonl and custom rewards."""
    extra_info: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The row's extra_info, JSON values, for custom rewards."""
    other_truths: tuple[str, ...] = ()
    """Further ground truths: an answer that equals any of them is right."""
    told_ids: tuple[int, ...] = ()
    """The prompt with its ground truth in it, for a teacher that is told (prm.teacher.mode rlsd); else empty."""


@dataclass(frozen=True)
class Sample:
    """One response to a prompt."""

    token_ids: tuple[int, ...]
    """Response tokens, the end-of-sequence token included when the engine stopped at one."""
    logprobs: tuple[float, ...]
    """The engine's log-prob of each response token at the sampling temperature (nats)."""
    finish: str
    """"stop" (end of sequence) or "length" (cut at the limit)."""
    version: int
    """Policy version (number of updates) of the weights that made it."""
    text: str | None = None
    """The response as text, on the rank that decoded it to verify it; None on the others."""
    outcome: float = 0.0
    """Verified reward in [0, 1]."""
    verdict: str = ""
    """One of ``verify.VERDICTS``."""
    reason: str | None = None
    """Why, in a line for a person; where the text is."""
    in_form: bool | None = None
    """Whether the text keeps the form of named actions; None: nobody asked (verify.action_form)."""
    token_ends: tuple[int, ...] | None = None
    """Where in the text each token ends, in characters (``data.token_ends``); of samples about to be written."""


@dataclass(frozen=True)
class Group:
    """A prompt and its K samples; siblings never part."""

    prompt: Prompt
    samples: tuple[Sample, ...]

    @property
    def outcomes(self) -> list[float]:
        return [sample.outcome for sample in self.samples]

    @property
    def mean_outcome(self) -> float:
        return sum(self.outcomes) / len(self.samples)


def sequence_lengths(groups: Sequence[Group]) -> list[int]:
    """Tokens of every sequence, prompt and response."""
    return [len(group.prompt.token_ids) + len(sample.token_ids) for group in groups for sample in group.samples]


@dataclass(frozen=True)
class MicroBatches:
    """One optimizer step's sequences on this rank, cut into micro-batches (indices into the batch).

    Every data-parallel rank has the same number of micro-batches; a rank with fewer sequences has empty ones.
    """

    micro: tuple[tuple[int, ...], ...]
    num_tokens: int
    """Valid response tokens of this mini-batch over all data-parallel ranks: the normaliser of token means."""
    num_sequences: int
    """Sequences of this mini-batch over all data-parallel ranks: the normaliser of sequence means."""


@dataclass(frozen=True)
class RolloutBatch:
    """The step's sequences on this data-parallel rank, packed.

    All ranks of one model-parallel block (TP, PP, CP) hold the same batch.
    """

    tokens_T: Tensor  # int64
    cu_seqlens: Tensor  # int64 [N + 1]
    response_mask_T: Tensor  # bool
    group_N: Tensor  # int64, 0 .. num_groups - 1, siblings adjacent
    outcome_N: Tensor  # float32
    truncated_N: Tensor  # bool, cut at the length limit
    version_N: Tensor  # int64, policy version that made the sequence
    engine_logprobs_T: Tensor  # float32, 0 outside the response
    step_end_T: Tensor  # bool, last token of a reasoning step (granularity "step"); the last response token always is
    num_tokens: int
    """Valid response tokens over all data-parallel ranks."""
    num_sequences: int
    """Sequences over all data-parallel ranks."""
    groups: tuple[Group, ...] = field(repr=False, default=())
    """This rank's groups, in the order of group_N."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, prompt and response."""
        return (self.cu_seqlens[1:] - self.cu_seqlens[:-1]).tolist()

    @property
    def num_groups(self) -> int:
        return int(self.group_N.max()) + 1 if self.group_N.numel() else 0

    @property
    def sequence_T(self) -> Tensor:
        """Sequence index of each token, int64 [T]."""
        sizes = self.cu_seqlens[1:] - self.cu_seqlens[:-1]
        return torch.repeat_interleave(torch.arange(sizes.numel(), device=sizes.device), sizes)


@dataclass(frozen=True)
class PackedSequences:
    """A micro-batch as a model reads it.

    Sequence i owns positions cu_seqlens[i] to cu_seqlens[i + 1]; the first `num_sequences` are real (each perhaps
    with padding after its last token), one more may be a dummy that fills the total up to a multiple. The mask is
    false on all padding. Causal attention never sees the padding after a token.

    Example: sequences [5, 6, 7] and [8, 9] of a batch [5, 6, 7, 8, 9], padded=True, total_multiple=4:
        tokens_S         5 6 7 | 8 9 0 | 0 0
        cu_seqlens       0 3 6 8
        positions_S      0 1 2 | 0 1 2 | 0 1
        source_S         0 1 2 | 3 4 -1 | -1 -1
    """

    tokens_S: Tensor  # int64
    cu_seqlens: Tensor  # int32, dummy included
    positions_S: Tensor  # int64, from 0 in each sequence
    response_mask_S: Tensor  # bool
    source_S: Tensor  # int64, index of the token in the batch; -1 on padding
    sequence_index: Tensor  # int64 [num_sequences], indices of the real sequences in the batch
    max_seqlen: int

    @property
    def num_sequences(self) -> int:
        """Real sequences."""
        return self.sequence_index.numel()

    @property
    def real_S(self) -> Tensor:
        """bool [S], true on tokens of the batch, false on padding."""
        return self.source_S >= 0

    def gather(self, values_T: Tensor) -> Tensor:
        """The micro-batch's part of a per-token tensor of the batch, 0 on padding: [T] to [S]."""
        values_S = values_T.new_zeros(self.source_S.numel())
        real_S = self.real_S
        values_S[real_S] = values_T[self.source_S[real_S].to(values_T.device)]
        return values_S

    def to(self, device: torch.device | str) -> PackedSequences:
        """The same on another device."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


@dataclass(frozen=True)
class MiniBatch:
    """One optimizer step's work on this rank."""

    micro: tuple[PackedSequences, ...]
    """Equally many on every data-parallel rank."""
    num_tokens: int
    """Valid response tokens over all data-parallel ranks: the normaliser of token means."""
    num_sequences: int
    """Sequences over all data-parallel ranks: the normaliser of sequence means."""


@dataclass(frozen=True)
class LogProbs:
    """A model's view of the tokens, float32 [T], nats; 0 where a token has no prediction."""

    logprobs_T: Tensor
    entropy_T: Tensor


@dataclass(frozen=True)
class Scores:
    """Log-probs of the batch under each model, float32 [T]; None where the step does not need one."""

    old_logprobs_T: Tensor | None
    """The policy before its update; None: identical by construction to the first mini-batch's own forward."""
    ref_logprobs_T: Tensor | None
    """The process reward's reference (old_logprobs_T with prm.reference=policy)."""
    policy_ref_logprobs_T: Tensor | None
    """The reference of the policy's KL term; the same tensor where both references are one model."""
    prm_logprobs_T: Tensor | None
    values_T: Tensor | None = None
    """The critic's value of the text before token t, 0 outside the response."""
    head_logits_T: Tensor | None = None
    """Of a PRM with a head: the logit of success of the text up to and including token t, on response tokens and each
    prompt's last token."""
    teacher_logprobs_T: Tensor | None = None
    """The teacher in the PRM's place, at the policy's temperature."""

    @property
    def judged(self) -> bool:
        """Whether there are process rewards: against a reference, by a head, or by a teacher."""
        judges = (self.ref_logprobs_T, self.head_logits_T, self.teacher_logprobs_T)
        return any(scored_T is not None for scored_T in judges)

    def with_prm(self, prm_logprobs_T: Tensor) -> Scores:
        """The same, scored by the PRM too."""
        return dataclasses.replace(self, prm_logprobs_T=prm_logprobs_T)

    def with_head(self, head_logits_T: Tensor) -> Scores:
        """The same, scored by a PRM with a head."""
        return dataclasses.replace(self, head_logits_T=head_logits_T)

    def with_teacher(self, teacher_logprobs_T: Tensor) -> Scores:
        """The same, scored by a teacher."""
        return dataclasses.replace(self, teacher_logprobs_T=teacher_logprobs_T)


@dataclass(frozen=True)
class Advantages:
    """Credit per token, float32 [T], 0 outside the response."""

    process_rewards_T: Tensor
    returns_T: Tensor
    advantages_T: Tensor


@dataclass(frozen=True)
class Bucket:
    """Weights on their way to the engine: HF-named tensors of one policy version."""

    names: Sequence[str]
    tensors: Sequence[Tensor]
    version: int
