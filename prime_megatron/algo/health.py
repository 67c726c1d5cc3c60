"""Whether a PRM is still right: how it ranks held-out responses, where its reward lies, and when that is an alarm.

Legend: N responses, Q_i = sum_t (log prm - log ref) of response i, o_i its outcome, right where o_i > 1/2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.prm_loss import intercepts
from prime_megatron.algo.process_reward import floored_log_ratio
from prime_megatron.algo.segments import last_mask, segment_sum
from prime_megatron.algo.statistics import prm_statistics
from prime_megatron.config import PrmAlgorithm
from prime_megatron.config.health import HealthConfig
from prime_megatron.types import RolloutBatch

RANKING = {"prm/pair_accuracy": "pair_accuracy", "prm/calibration_error": "calibration_error", "prm/brier": "brier"}
"""What `prm_statistics` says of held-out responses, by the name that it has in training."""


@dataclass(frozen=True)
class ResponseSums:
    """What one PRM gives every response, float64 [N] each."""

    prm_N: Tensor
    """Log-prob of the response under the PRM, nats."""
    ref_N: Tensor
    """The same under its reference."""
    reward_N: Tensor
    """Process rewards of its tokens, added up: beta * q_t, floored, before granularity, smoothing and norm."""
    size_N: Tensor
    """The same of their absolute values."""
    delimiter_size_N: Tensor
    """The part of size_N on delimiters and tags, the last token left out."""
    last_size_N: Tensor
    """The part of size_N on the last token."""
    delimiters_N: Tensor
    """How many delimiters and tags there are, the last token left out."""


def response_sums(
    batch: RolloutBatch, prm_logprobs_T: Tensor, ref_logprobs_T: Tensor, delimiter_V: Tensor, config: PrmAlgorithm
) -> ResponseSums:
    """Sums over the responses of a rank's batch; log-probs [T], delimiter_V bool [V]: tokens that only give form."""
    mask_T, sequence_T, count = batch.response_mask_T, batch.sequence_T, batch.outcome_N.numel()
    q_T = floored_log_ratio(prm_logprobs_T, ref_logprobs_T, mask_T, config.ratio_floor)
    reward_T = (config.beta if config.scale_by_beta else 1.0) * q_T.double()
    last_T = last_mask(mask_T, sequence_T, count)
    delimiter_T = mask_T & ~last_T & delimiter_V[batch.tokens_T]

    def summed(values_T: Tensor, chosen_T: Tensor) -> Tensor:
        return segment_sum(torch.where(chosen_T, values_T.double(), 0.0), sequence_T, count)

    return ResponseSums(
        prm_N=summed(prm_logprobs_T, mask_T),
        ref_N=summed(ref_logprobs_T, mask_T),
        reward_N=summed(reward_T, mask_T),
        size_N=summed(reward_T.abs(), mask_T),
        delimiter_size_N=summed(reward_T.abs(), delimiter_T),
        last_size_N=summed(reward_T.abs(), last_T),
        delimiters_N=summed(torch.ones_like(reward_T), delimiter_T),
    )


def ranking(q_N: Tensor, outcome_N: Tensor, group_N: Tensor, config: PrmAlgorithm) -> dict[str, float]:
    """pair_accuracy, auc, calibration_error and brier on all held-out responses; q_N: ``prm_loss.logit_scores``, [N].

    Pair accuracy, calibration and Brier score are those of training (``prm_statistics``), a loss's intercept
    included; auc is over all responses, of whatever prompt.
    """
    intercept_N = intercepts(outcome_N, group_N, config)
    told = finish(prm_statistics(q_N, outcome_N, group_N, config.beta, intercept_N))
    return {name: told[source] for source, name in RANKING.items()} | {"auc": auc(q_N, outcome_N > 0.5)}


def reward_place(sums: ResponseSums, outcome_N: Tensor, length_N: Tensor) -> dict[str, float]:
    """Where the reward lies: shares on delimiters and last tokens, correlation of Q with the length, and the mean over
    right and over wrong responses of the mean reward of a token. length_N: response tokens, [N]."""
    size = float(sums.size_N.sum())
    mean_N, right_N = sums.reward_N / length_N, outcome_N > 0.5
    return {
        "delimiter_share": float(sums.delimiter_size_N.sum()) / size if size else 0.0,
        "delimiter_tokens": float(sums.delimiters_N.sum() / length_N.sum()),
        "last_share": float(sums.last_size_N.sum()) / size if size else 0.0,
        "length_correlation": correlation(sums.prm_N - sums.ref_N, length_N),
        "reward_right": _mean(mean_N[right_N]),
        "reward_wrong": _mean(mean_N[~right_N]),
    }


def auc(score_N: Tensor, right_N: Tensor) -> float:
    """P(score of a right response > score of a wrong one), a tie counting one half; nan where one kind is missing.

    By mean ranks: (sum of the ranks of the m right ones - m (m + 1) / 2) / (m n), n wrong ones (Mann and Whitney 1947).
    """
    num_right = int(right_N.sum())
    num_wrong = right_N.numel() - num_right
    if not num_right or not num_wrong:
        return math.nan
    _, value_N, count_U = torch.unique(score_N, return_inverse=True, return_counts=True)
    count_U = count_U.double()
    rank_U = torch.cumsum(count_U, 0) - (count_U - 1.0) / 2.0
    below = float(rank_U[value_N][right_N].sum()) - num_right * (num_right + 1) / 2.0
    return below / (num_right * num_wrong)


def correlation(first_N: Tensor, second_N: Tensor) -> float:
    """Pearson's; 0 where one of them does not vary."""
    a_N, b_N = first_N - first_N.mean(), second_N - second_N.mean()
    spread = math.sqrt(float(a_N.square().sum() * b_N.square().sum()))
    return float((a_N * b_N).sum()) / spread if spread else 0.0


def _mean(values: Tensor) -> float:
    return float(values.mean()) if values.numel() else math.nan


class Alarm:
    """On after prm.health.checks failed checks in a row, off after as many passed ones.

    With d = pair accuracy of the PRM - that of its frozen copy, and the margin m, a check fails where d < -m and passes
    where d >= max(0, -m); one that does neither (in between, or without a pair) ends both rows.
    """

    def __init__(self, config: HealthConfig) -> None:
        self.config = config
        self.on = False
        self.failed = 0
        """Checks in a row up to now."""
        self.passed = 0

    def check(self, pair_accuracy: float, frozen_pair_accuracy: float) -> int:
        """Count a check; returns 1 where the alarm begins with it, -1 where it ends, else 0."""
        gained, margin = pair_accuracy - frozen_pair_accuracy, self.config.margin
        self.failed = self.failed + 1 if gained < -margin else 0
        self.passed = self.passed + 1 if gained >= max(0.0, -margin) else 0
        before = self.on
        if self.failed >= self.config.checks:
            self.on = True
        elif self.passed >= self.config.checks:
            self.on = False
        return int(self.on) - int(before)

    def state(self) -> dict[str, int | bool]:
        """What the next check builds on."""
        return {"on": self.on, "failed": self.failed, "passed": self.passed}

    def restore(self, state: Mapping[str, int | bool]) -> None:
        """Inverse of `state`."""
        self.on, self.failed, self.passed = bool(state["on"]), int(state["failed"]), int(state["passed"])
