"""The metrics made from reduced statistics: name, definition, unit and meaning. Without its sums a metric is left out.

The metrics that no statistic is needed for are in ``metrics.table``; docs/reference/metrics.md is made of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from prime_megatron.algo.statistics import Statistics


@dataclass(frozen=True)
class Ratio:
    """A mean or a share: total / count, both keys of reduced sums."""

    name: str
    total: str
    count: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Spread:
    """A population standard deviation, from the sums <moments>_sum and <moments>_square_sum."""

    name: str
    moments: str
    count: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Extreme:
    """<name>max and <name>min, from the maxima <key>_max and <key>_negated_min."""

    name: str
    key: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Derived:
    """A metric that ``finish`` makes of several sums."""

    name: str
    unit: str
    meaning: str


_SEQUENCES, _TOKENS, _PRM = "num_sequences", "advantage_tokens", "prm_sequences"
_POLICY, _VALUE, _IMPORTANCE = "policy_num_tokens", "value_num_tokens", "importance_tokens"

RATIOS = (
    Ratio("response/length_mean", "response_length_sum", _SEQUENCES, "tokens", "Length of a response."),
    Ratio("response/truncated", "response_truncated_sum", _SEQUENCES, "share", "Responses cut at the length limit."),
    Ratio("prompt/length_mean", "prompt_length_sum", _SEQUENCES, "tokens", "Length of a prompt."),
    Ratio("outcome/mean", "outcome_sum", _SEQUENCES, "1", "Outcome of the responses that are trained on."),
    Ratio("outcome/full", "outcome_full_sum", _SEQUENCES, "share", "Responses of outcome 1."),
    Ratio("outcome/zero", "outcome_zero_sum", _SEQUENCES, "share", "Responses of outcome 0."),
    Ratio("outcome/group_informative", "group_informative_sum", "num_groups", "share",
          "Prompts whose responses differ in outcome."),
    Ratio("outcome/group_solved", "group_solved_sum", "num_groups", "share", "Prompts with a response of outcome 1."),
    Ratio("prm/accuracy", "prm_right_sum", _PRM, "share",
          "Responses whose Q = sum_t (log PRM - log reference), with prm.loss prefix_value the mean over t, has "
          "the sign of outcome - 1/2, before the update; Q = 0 counts one half."),
    Ratio("prm/ce", "prm_ce_sum", _PRM, "nats", "Cross-entropy of p against the outcome, p = sigmoid(beta Q); with "
          "an intercept (prm.loss ce_intercept, prm.adaptive_boundary) p = sigmoid(beta Q + the intercept). With "
          "prm.kind head beta is 1 and Q, here and below, the head's logit of the whole response."),
    Ratio("prm/brier", "prm_brier_sum", _PRM, "1", "Squared difference of prm/ce's p and the outcome."),
    Ratio("prm/pair_accuracy", "prm_pair_accuracy_sum", "prm_pair_groups", "share",
          "Pairs of a prompt's responses with different outcomes that Q orders alike, over prompts with such a pair."),
    Ratio("prm/probability_mean", "prm_probability_sum", _PRM, "1", "prm/ce's p."),
    Ratio("prm/log_ratio_mean", "prm_log_ratio_sum", _PRM, "nats", "Q."),
    Ratio("prm/loss", "prm_loss_sum", "prm_updates", "nats",
          "The loss that the PRM learns from (prm.loss), the mean over its mini-batches and prm.passes."),
    Ratio("process_reward/sequence_mean", "process_sequence_mean_sum", "advantage_sequences", "1",
          "Mean over responses of the mean process reward in each."),
    Ratio("process_reward/total_mean", "process_total_sum", "advantage_sequences", "1",
          "Process rewards summed over a response."),
    Ratio("process_reward/mean", "process_reward_sum", _TOKENS, "1", "Process reward of a response token."),
    Ratio("process_reward/improbable_tokens", "reward_improbable_tokens", "reward_tokens", "share",
          "Response tokens of a probability below 0.01 under the PRM's reference."),
    Ratio("return/mean", "return_sum", _TOKENS, "1", "Return of a response token, before whitening."),
    Ratio("advantage/mean", "advantage_sum", _TOKENS, "1", "Advantage of a response token."),
    Ratio("teacher/clipped", "teacher_clipped_sum", "teacher_tokens", "share",
          "Tokens whose weight the clip holds (prm.teacher.mode rlsd)."),
    Ratio("policy/loss", "policy_loss_sum", _POLICY, "1",
          "The objective's loss a token (policy.objective), importance weights included, entropy and KL terms not."),
    Ratio("policy/clip_low", "policy_clip_low_sum", _POLICY, "share",
          "Tokens without a gradient because the ratio is below 1 - clip_low and the advantage negative."),
    Ratio("policy/clip_high", "policy_clip_high_sum", _POLICY, "share",
          "Tokens without a gradient because the ratio is above 1 + clip_high and the advantage positive."),
    Ratio("policy/beyond_clamp", "policy_beyond_clamp_sum", _POLICY, "share",
          "Tokens whose ratio is held at e^20, which have no gradient either."),
    Ratio("policy/approx_kl", "policy_kl_old_sum", _POLICY, "nats",
          "KL(old policy || policy), estimator k3: ratio - 1 - log ratio."),
    Ratio("policy/ratio_mean", "policy_ratio_sum", _POLICY, "1", "Probability ratio policy / old policy."),
    Ratio("policy/entropy", "policy_entropy_sum", _POLICY, "nats", "Entropy of the policy's next-token distribution."),
    Ratio("policy/kl_reference", "policy_kl_ref_sum", _POLICY, "nats",
          "KL(policy || reference), estimator policy.kl_estimator; with policy.kl_place loss."),
    Ratio("policy/importance_weight", "importance_weight_sum", _IMPORTANCE, "1",
          "Weight made of the trainer's probability over the engine's; with policy.importance_cap."),
    Ratio("policy/importance_capped", "importance_capped_sum", _IMPORTANCE, "share",
          "Tokens whose ratio is above policy.importance_cap."),
    Ratio("policy/importance_below", "importance_below_sum", _IMPORTANCE, "share",
          "Tokens whose ratio is below policy.importance_floor; in the modes mask and reject."),
    Ratio("policy/importance_dropped", "importance_dropped_sum", _IMPORTANCE, "share",
          "Tokens that policy.importance_mode mask or reject takes out of the loss."),
    Ratio("outcome/overlong", "overlong_sum", "overlong_sequences", "share",
          "Responses with a penalty for their length; with advantage.overlong_buffer."),
    Ratio("outcome/overlong_penalty", "overlong_penalty_sum", "overlong_sequences", "1",
          "What their length takes from the outcomes; with advantage.overlong_buffer."),
    Ratio("critic/loss", "value_loss_sum", _VALUE, "1", "The critic's clipped squared error, halved."),
    Ratio("critic/clipped", "value_clipped_sum", _VALUE, "share", "Tokens whose value the clip holds."),
    Ratio("critic/value_mean", "value_sum", _VALUE, "1", "Value of the text before a response token."),
    Ratio("critic/error", "value_error_sum", _VALUE, "1", "Absolute difference of value and return."),
)  # fmt: skip
SPREADS = (
    Spread("response/length_std", "response_length", _SEQUENCES, "tokens", "Deviation of response/length_mean."),
    Spread("outcome/std", "outcome", _SEQUENCES, "1", "Deviation of outcome/mean."),
    Spread("prm/log_ratio_std", "prm_log_ratio", _PRM, "nats", "Deviation of prm/log_ratio_mean."),
    Spread("process_reward/total_std", "process_total", "advantage_sequences", "1",
           "Deviation of process_reward/total_mean."),
    Spread("process_reward/std", "process_reward", _TOKENS, "1", "Deviation of process_reward/mean."),
    Spread("return/std", "return", _TOKENS, "1", "Deviation of return/mean."),
    Spread("advantage/std", "advantage", _TOKENS, "1", "Deviation of advantage/mean."),
    Spread("policy/ratio_std", "policy_ratio_shift", _POLICY, "1", "Deviation of policy/ratio_mean."),
)  # fmt: skip
EXTREMES = (
    Extreme("response/length_", "response_length", "tokens", "response length"),
    Extreme("prompt/length_", "prompt_length", "tokens", "prompt length"),
    Extreme("process_reward/", "process_reward", "1", "process reward of a response token"),
    Extreme("return/", "return", "1", "return of a response token"),
    Extreme("advantage/", "advantage", "1", "advantage of a response token"),
)
DERIVED = (
    Derived("policy/clip_fraction", "share", "policy/clip_low + policy/clip_high."),
    Derived("policy/kept", "share",
            "Response tokens in the policy's loss: not of a masked truncated response, not rejected."),
    Derived("policy/objective_<figure>", "1",
            "Mean over tokens of a figure of the objective's own: dual_clip (share held by the second clip), "
            "sequence_ratio (gspo's ratio), weight_low and weight_high (cispo's weights at a bound), or a user's."),
    Derived("prm/calibration_error", "1",
            "Expected calibration error: sum over 10 bins of (n_b / N) |mean probability - mean outcome|."),
    Derived("process_reward/improbable_share", "share",
            "Part of the sum of |process reward| on tokens of a probability below 0.01 under the PRM's reference; far "
            "above process_reward/improbable_tokens, the PRM pays for what the reference holds impossible."),
    Derived("process_reward/outcome_correlation", "1",
            "Correlation over responses of the mean process reward with the outcome, each less its siblings' mean."),
    Derived("critic/explained_variance", "1", "1 - mean((return - value)^2) / var(return)."),
)  # fmt: skip


def finish(statistics: Statistics) -> dict[str, float]:
    """Named metrics of reduced statistics; nan where a count is 0."""
    sums, maxima = statistics.sums, statistics.maxima
    metrics: dict[str, float] = {}
    for ratio in RATIOS:
        if ratio.total in sums:
            metrics[ratio.name] = _ratio(float(sums[ratio.total]), float(sums[ratio.count]))
    for spread in SPREADS:
        if f"{spread.moments}_square_sum" in sums:
            metrics[spread.name] = math.sqrt(_variance(sums, spread.moments, float(sums[spread.count])))
    for extreme in EXTREMES:
        if f"{extreme.key}_max" in maxima:
            metrics[f"{extreme.name}max"] = _finite(float(maxima[f"{extreme.key}_max"]))
            metrics[f"{extreme.name}min"] = _finite(-float(maxima[f"{extreme.key}_negated_min"]))
    if "policy_clip_low_sum" in sums:
        if _TOKENS in sums:
            metrics["policy/kept"] = _ratio(float(sums[_POLICY]), float(sums[_TOKENS]))
        metrics["policy/clip_fraction"] = metrics["policy/clip_low"] + metrics["policy/clip_high"]
    for key, total in sums.items():
        if key.startswith("policy_objective_"):
            name = key.removeprefix("policy_").removesuffix("_sum")
            metrics[f"policy/{name}"] = _ratio(float(total), float(sums[_POLICY]))
    if "prm_bin_count" in sums:
        gap = (sums["prm_bin_probability"] - sums["prm_bin_outcome"]).abs().sum()
        metrics["prm/calibration_error"] = _ratio(float(gap), float(sums["prm_sequences"]))
    if "reward_size_sum" in sums:
        size = float(sums["reward_size_sum"])
        metrics["process_reward/improbable_share"] = float(sums["reward_improbable_sum"]) / size if size else 0.0
    if "reward_outcome_product" in sums:
        product = float(sums["reward_outcome_product"])
        deviations = math.sqrt(float(sums["reward_centred_square"] * sums["outcome_centred_square"]))
        metrics["process_reward/outcome_correlation"] = product / deviations if deviations else 0.0
    if "value_residual_square_sum" in sums:
        num_tokens = float(sums["value_num_tokens"])
        residual = _ratio(float(sums["value_residual_square_sum"]), num_tokens)
        metrics["critic/explained_variance"] = 1.0 - _ratio(residual, _variance(sums, "value_return", num_tokens))
    return metrics


def _ratio(total: float, count: float) -> float:
    return total / count if count else math.nan


def _finite(extreme: float) -> float:
    return extreme if math.isfinite(extreme) else math.nan


def _variance(sums: Mapping[str, Tensor], moments: str, count: float) -> float:
    """Population variance; the difference of squares may round below 0."""
    if not count:
        return math.nan
    mean = float(sums[f"{moments}_sum"]) / count
    return max(float(sums[f"{moments}_square_sum"]) / count - mean * mean, 0.0)
