"""Names and definitions of the metrics made from reduced statistics; metrics whose sums are absent are left out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from prime_megatron.algo.statistics import Statistics

RATIOS: tuple[tuple[str, str, str], ...] = (
    # metric, sum, count
    ("response/length_mean", "response_length_sum", "num_sequences"),
    ("response/truncated", "response_truncated_sum", "num_sequences"),
    ("prompt/length_mean", "prompt_length_sum", "num_sequences"),
    ("outcome/mean", "outcome_sum", "num_sequences"),
    ("outcome/full", "outcome_full_sum", "num_sequences"),
    ("outcome/zero", "outcome_zero_sum", "num_sequences"),
    ("outcome/group_informative", "group_informative_sum", "num_groups"),
    ("outcome/group_solved", "group_solved_sum", "num_groups"),
    ("prm/accuracy", "prm_right_sum", "prm_sequences"),
    ("prm/ce", "prm_ce_sum", "prm_sequences"),
    ("prm/brier", "prm_brier_sum", "prm_sequences"),
    ("prm/pair_accuracy", "prm_pair_accuracy_sum", "prm_pair_groups"),
    ("prm/probability_mean", "prm_probability_sum", "prm_sequences"),
    ("prm/log_ratio_mean", "prm_log_ratio_sum", "prm_sequences"),
    ("prm/loss", "prm_loss_sum", "prm_num"),
    ("prm/train_accuracy", "prm_correct_sum", "prm_num"),
    ("process_reward/sequence_mean", "process_sequence_mean_sum", "advantage_sequences"),
    ("process_reward/total_mean", "process_total_sum", "advantage_sequences"),
    ("process_reward/mean", "process_reward_sum", "advantage_tokens"),
    ("return/mean", "return_sum", "advantage_tokens"),
    ("advantage/mean", "advantage_sum", "advantage_tokens"),
    ("policy/pg_loss", "policy_pg_loss_sum", "policy_num_tokens"),
    ("policy/clip_low", "policy_clip_low_sum", "policy_num_tokens"),
    ("policy/clip_high", "policy_clip_high_sum", "policy_num_tokens"),
    ("policy/approx_kl", "policy_kl_old_sum", "policy_num_tokens"),
    ("policy/ratio_mean", "policy_ratio_sum", "policy_num_tokens"),
    ("policy/entropy", "policy_entropy_sum", "policy_num_tokens"),
    ("policy/kl_reference", "policy_kl_ref_sum", "policy_num_tokens"),
    ("policy/importance_weight", "policy_weight_sum", "policy_num_tokens"),
    ("policy/importance_capped", "policy_weight_capped_sum", "policy_num_tokens"),
    ("policy/engine_difference", "engine_difference_sum", "policy_num_tokens"),
    ("critic/loss", "value_loss_sum", "value_num_tokens"),
    ("critic/clipped", "value_clipped_sum", "value_num_tokens"),
    ("critic/value_mean", "value_sum", "value_num_tokens"),
    ("critic/error", "value_error_sum", "value_num_tokens"),
)
SPREADS: tuple[tuple[str, str, str], ...] = (
    # metric, name of the moments, count
    ("response/length_std", "response_length", "num_sequences"),
    ("outcome/std", "outcome", "num_sequences"),
    ("prm/log_ratio_std", "prm_log_ratio", "prm_sequences"),
    ("process_reward/total_std", "process_total", "advantage_sequences"),
    ("process_reward/std", "process_reward", "advantage_tokens"),
    ("return/std", "return", "advantage_tokens"),
    ("advantage/std", "advantage", "advantage_tokens"),
    ("policy/ratio_std", "policy_ratio", "policy_num_tokens"),
)
EXTREMES: tuple[tuple[str, str], ...] = (
    ("response/length", "response_length"),
    ("prompt/length", "prompt_length"),
    ("process_reward/", "process_reward"),
    ("return/", "return"),
    ("advantage/", "advantage"),
)


def finish(statistics: Statistics) -> dict[str, float]:
    """Named metrics of reduced statistics; nan where a count is 0.

    Standard deviations are the population's. ``policy/clip_fraction`` adds both bounds. ``prm/calibration_error`` is
    the expected calibration error, sum over bins of (n_b / N) * |mean probability - mean outcome|.
    ``critic/explained_variance`` is 1 - mean((R - V)^2) / var(R).
    """
    sums, maxima = statistics.sums, statistics.maxima
    metrics: dict[str, float] = {}
    for name, total, count in RATIOS:
        if total in sums:
            metrics[name] = _ratio(float(sums[total]), float(sums[count]))
    for name, moments, count in SPREADS:
        if f"{moments}_square_sum" in sums:
            metrics[name] = math.sqrt(_variance(sums, moments, float(sums[count])))
    for name, key in EXTREMES:
        if f"{key}_max" in maxima:
            join = "" if name.endswith("/") else "_"
            metrics[f"{name}{join}max"] = _finite(float(maxima[f"{key}_max"]))
            metrics[f"{name}{join}min"] = _finite(-float(maxima[f"{key}_negated_min"]))
    if "policy_clip_low_sum" in sums:
        metrics["policy/clip_fraction"] = metrics["policy/clip_low"] + metrics["policy/clip_high"]
    if "prm_bin_count" in sums:
        gap = (sums["prm_bin_probability"] - sums["prm_bin_outcome"]).abs().sum()
        metrics["prm/calibration_error"] = _ratio(float(gap), float(sums["prm_sequences"]))
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
