"""What a policy objective is given and what it returns.

An objective is one function of `ObjectiveTokens`, written as the formula stands in its paper; autograd differentiates
it. It says what one token's loss is; which tokens count and what divides their sum (policy.loss_aggregation) is decided
outside of it, and so are entropy bonus, KL term and importance weights against the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prime_megatron.algo.kl import clamped_ratio


@dataclass(frozen=True)
class ObjectiveTokens:
    """Response tokens of whole sequences, one after the other, fp32 [t]."""

    logprobs_t: Tensor
    """log p of the policy, with gradient; nats."""
    old_logprobs_t: Tensor
    """log p of the policy before its update."""
    advantages_t: Tensor
    """Importance weights against the engine are factors of it already."""
    lengths: tuple[int, ...]
    """Tokens of each sequence; they add up to t. Of an objective that takes each token for itself the sequences may be
    cut, and the lengths are those of the parts."""
    clip_low: float
    """policy.clip_low."""
    clip_high: float
    """policy.clip_high."""
    dual_clip: float
    """policy.dual_clip."""

    @property
    def log_ratio_t(self) -> Tensor:
        """log (policy / old policy), [t], differentiable."""
        return self.logprobs_t - self.old_logprobs_t

    @property
    def ratio_t(self) -> Tensor:
        """policy / old policy, [t], held at e^20, where its gradient is 0 (see ``algo.kl``)."""
        return clamped_ratio(self.log_ratio_t)

    def clipped(self, ratio_t: Tensor) -> Tensor:
        """A ratio held within 1 - clip_low and 1 + clip_high."""
        return ratio_t.clamp(1.0 - self.clip_low, 1.0 + self.clip_high)

    def sequence_mean(self, values_t: Tensor) -> Tensor:
        """The mean of each sequence at its tokens, [t]; differentiable."""
        lengths_n = torch.tensor(self.lengths, dtype=torch.int64, device=values_t.device)
        sums_n = torch.segment_reduce(values_t, "sum", lengths=lengths_n, unsafe=True)  # in a fixed order
        return torch.repeat_interleave(sums_n / lengths_n.clamp(min=1), lengths_n, output_size=values_t.numel())


@dataclass(frozen=True)
class Surrogate:
    """An objective's answer, [t] each."""

    loss_t: Tensor
    """Differentiable in logprobs_t; smaller is better."""
    low_t: Tensor | None = None
    """bool: the lower bound holds the ratio and the token has no gradient for it; None: nowhere."""
    high_t: Tensor | None = None
    """bool: the same of the upper bound."""
    figures: Mapping[str, Tensor] = field(default_factory=dict)
    """Words and values whose means over the tokens that count are logged as policy/objective_<word>."""


@dataclass(frozen=True)
class Objective:
    """A policy objective by its name."""

    name: str
    surrogate: Callable[[ObjectiveTokens], Surrogate]
    whole_sequences: bool
    """It needs all tokens of a sequence together."""
