"""Statistics of a step as additive sums and maxima, so that reducing over ranks and micro-batches is exact.

``*_statistics`` functions collect on one rank, ``Statistics.reduced`` adds the ranks up,
``algo.metric_table.finish`` turns sums into named metrics. Collecting needs no communication. The losses bring sums of
their own, which the roles reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import softplus

from prime_megatron.algo.importance import Importance
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.segments import Siblings, segment_count, segment_mean, segment_sum
from prime_megatron.types import Advantages, RolloutBatch

NUM_BINS = 10
"""Equal-width bins of the PRM's probability, for the expected calibration error."""


@dataclass(frozen=True)
class Statistics:
    """Sums and maxima, float64, scalars or vectors; keys are unique within a step."""

    sums: Mapping[str, Tensor] = field(default_factory=dict)
    maxima: Mapping[str, Tensor] = field(default_factory=dict)
    """-inf where a rank has nothing; a minimum is kept as the maximum of the negated values."""

    def merged(self, other: Statistics) -> Statistics:
        """Both, which must not share a key."""
        assert not (self.sums.keys() & other.sums.keys() or self.maxima.keys() & other.maxima.keys())
        return Statistics({**self.sums, **other.sums}, {**self.maxima, **other.maxima})

    def reduced(self, reduce: Reduction) -> Statistics:
        """The same over all data-parallel ranks: one reduce.sum, one reduce.max. Ranks must hold the same keys."""
        return Statistics(_packed(self.sums, reduce.sum), _packed(self.maxima, reduce.max))


def response_statistics(batch: RolloutBatch) -> Statistics:
    """Lengths and outcomes of this rank's sequences."""
    num_sequences = batch.outcome_N.numel()
    sequence_T, outcome_N = batch.sequence_T, batch.outcome_N.double()
    length_N = segment_count(batch.response_mask_T, sequence_T, num_sequences)
    prompt_N = segment_count(~batch.response_mask_T, sequence_T, num_sequences)
    siblings = Siblings.of(batch.group_N)
    outcome_GK = siblings.table(outcome_N)
    highest_G = torch.where(siblings.present_GK, outcome_GK, -torch.inf).amax(1) if siblings.num_groups else outcome_N
    lowest_G = torch.where(siblings.present_GK, outcome_GK, torch.inf).amin(1) if siblings.num_groups else outcome_N
    sums = {
        "num_sequences": _count(num_sequences, outcome_N),
        "num_groups": _count(siblings.num_groups, outcome_N),
        "prompt_length_sum": prompt_N.sum(),
        "response_truncated_sum": batch.truncated_N.double().sum(),
        "outcome_full_sum": (outcome_N >= 1.0).double().sum(),
        "outcome_zero_sum": (outcome_N <= 0.0).double().sum(),
        "group_informative_sum": (highest_G > lowest_G).double().sum(),
        "group_solved_sum": (highest_G >= 1.0).double().sum(),
        **_moments("response_length", length_N),
        **_moments("outcome", outcome_N),
    }
    return Statistics(sums, _extremes("response_length", length_N) | _extremes("prompt_length", prompt_N))


def prm_right(q_N: Tensor, outcome_N: Tensor) -> Tensor:
    """1 where Q > 0 agrees with outcome > 1/2, 0 where not, and 1/2 where Q = 0; float64 [N]."""
    return torch.where(q_N == 0.0, 0.5, ((q_N > 0.0) == (outcome_N > 0.5)).double())


def prm_probability(q_N: Tensor, beta: float, intercept_N: Tensor | None) -> Tensor:
    """The PRM's probability of outcome 1, sigmoid(beta * Q + intercept), float64 [N]; arguments as `prm_statistics`."""
    return torch.sigmoid(_prm_logit(q_N, beta, intercept_N))


def _prm_logit(q_N: Tensor, beta: float, intercept_N: Tensor | None) -> Tensor:
    logit_N = beta * q_N.detach().double()
    return logit_N if intercept_N is None else logit_N + intercept_N.double()


def prm_statistics(
    q_N: Tensor, outcome_N: Tensor, group_N: Tensor, beta: float, intercept_N: Tensor | None = None
) -> Statistics:
    """How well Q = sum_t (log prm - log ref), [N], not scaled by beta, tells the outcomes.

    accuracy: Q > 0 against outcome > 1/2; Q = 0 (a PRM equal to its reference) counts one half. Pair accuracy within
    a prompt: pairs with different outcomes, weighted by the difference, ordered alike by Q (a tie counts one half),
    averaged over the prompts that have such a pair; the public codes' dpo_acc gives the others 1/2 instead.
    Calibration: probability sigmoid(beta * Q + intercept) and outcome summed in NUM_BINS bins. Brier score and loss
    (ce). intercept_N: [N], that of prm.loss ce_intercept; None: 0.
    """
    q_N, outcome_N = q_N.detach().double(), outcome_N.double()
    logit_N = _prm_logit(q_N, beta, intercept_N)
    probability_N = torch.sigmoid(logit_N)
    right_N = prm_right(q_N, outcome_N)
    siblings = Siblings.of(group_N)
    q_GK, outcome_GK = siblings.table(q_N), siblings.table(outcome_N)
    score_GKK = q_GK[:, :, None] - q_GK[:, None, :]
    gap_GKK = outcome_GK[:, :, None] - outcome_GK[:, None, :]
    pair_GKK = siblings.present_GK[:, :, None] & siblings.present_GK[:, None, :]
    weight_GKK = torch.where(pair_GKK, gap_GKK, 0.0).clamp(min=0.0)  # each unordered pair once, better sibling first
    agree_GKK = torch.where(score_GKK == 0.0, 0.5, (score_GKK > 0.0).double())
    weight_G = weight_GKK.sum((1, 2))
    accuracy_G = (weight_GKK * agree_GKK).sum((1, 2)) / torch.where(weight_G > 0.0, weight_G, 1.0)
    bin_N = (probability_N * NUM_BINS).long().clamp(0, NUM_BINS - 1)  # NaN as a whole number is any
    loss_N = softplus(logit_N) - outcome_N * logit_N
    return Statistics(
        {
            "prm_sequences": _count(q_N.numel(), q_N),
            "prm_right_sum": right_N.sum(),
            "prm_ce_sum": loss_N.sum(),
            "prm_brier_sum": (probability_N - outcome_N).square().sum(),
            "prm_pair_accuracy_sum": accuracy_G.sum(),
            "prm_pair_groups": (weight_G > 0.0).double().sum(),
            "prm_bin_count": segment_sum(torch.ones_like(q_N), bin_N, NUM_BINS),
            "prm_bin_probability": segment_sum(probability_N, bin_N, NUM_BINS),
            "prm_bin_outcome": segment_sum(outcome_N, bin_N, NUM_BINS),
            "prm_probability_sum": probability_N.sum(),
            **_moments("prm_log_ratio", q_N),
        }
    )


def importance_statistics(batch: RolloutBatch, correction: Importance) -> Statistics:
    """Importance weights over response tokens; how many ratios lie above and below the bounds, and are left without a
    weight."""
    mask_T = batch.response_mask_T
    dropped_T = mask_T & (~correction.keep_T | (correction.weights_T == 0))
    return Statistics(
        {
            "importance_tokens": mask_T.double().sum(),
            "importance_weight_sum": correction.weights_T[mask_T].double().sum(),
            "importance_capped_sum": correction.above_T.double().sum(),
            "importance_below_sum": correction.below_T.double().sum(),
            "importance_dropped_sum": dropped_T.double().sum(),
        }
    )


def advantage_statistics(batch: RolloutBatch, advantages: Advantages) -> Statistics:
    """Process rewards, returns and advantages over response tokens, and the process reward summed per sequence."""
    mask_T = batch.response_mask_T
    num_sequences = batch.outcome_N.numel()
    summed_N = segment_sum(advantages.process_rewards_T.double(), batch.sequence_T, num_sequences)
    mean_N = segment_mean(advantages.process_rewards_T.double(), mask_T, batch.sequence_T, num_sequences)
    sums = {
        "advantage_sequences": _count(num_sequences, summed_N),
        "advantage_tokens": mask_T.double().sum(),
        "process_sequence_mean_sum": mean_N.sum(),
        **_moments("process_total", summed_N),
    }
    maxima: dict[str, Tensor] = {}
    for name, values_T in (
        ("process_reward", advantages.process_rewards_T),
        ("return", advantages.returns_T),
        ("advantage", advantages.advantages_T),
    ):
        values = values_T[mask_T].double()
        sums |= _moments(name, values)
        maxima |= _extremes(name, values)
    return Statistics(sums, maxima)


def _count(number: int, like: Tensor) -> Tensor:
    return torch.tensor(float(number), dtype=torch.float64, device=like.device)


def _moments(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}_sum": values.double().sum(), f"{name}_square_sum": values.double().square().sum()}


def _extremes(name: str, values: Tensor) -> dict[str, Tensor]:
    nothing = torch.full((1,), -torch.inf, dtype=torch.float64, device=values.device)
    return {
        f"{name}_max": torch.cat([values.double(), nothing]).max(),
        f"{name}_negated_min": torch.cat([-values.double(), nothing]).max(),
    }


def _packed(parts: Mapping[str, Tensor], collective: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Apply a collective to all values at once, in the order of their names."""
    if not parts:
        return {}
    names = sorted(parts)
    flat = collective(torch.cat([parts[name].reshape(-1).double() for name in names]))
    pieces = torch.split(flat, [parts[name].numel() for name in names])
    return {name: piece.reshape(parts[name].shape) for name, piece in zip(names, pieces)}
