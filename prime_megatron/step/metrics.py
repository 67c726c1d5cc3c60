"""What a step tells: its metrics by name and its samples. Everything here is reduced over all ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prime_megatron.algo.diagnostics import largest_share, reward_statistics
from prime_megatron.algo.head_value import response_logits
from prime_megatron.algo.importance import importance
from prime_megatron.algo.kl import kl_estimate
from prime_megatron.algo.metric_table import finish
from prime_megatron.algo.overlong import overlong_statistics
from prime_megatron.algo.prm_loss import intercepts
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.statistics import (
    Statistics,
    advantage_statistics,
    importance_statistics,
    prm_probability,
    prm_statistics,
    response_statistics,
)
from prime_megatron.algo.teacher import clip_statistics, mix_at
from prime_megatron.config import KlEstimator, TrainConfig
from prime_megatron.config.roles import has_told_teacher
from prime_megatron.mcore.head_prm import HeadResult
from prime_megatron.mcore.role import Learning, TrainResult
from prime_megatron.rollout.collect import Collected
from prime_megatron.step.batch import StepBatch
from prime_megatron.step.breakdown import prm_figures, prm_sums, rollout_figures
from prime_megatron.step.prm import log_ratios
from prime_megatron.types import Advantages, Scores, sequence_lengths


@dataclass(frozen=True)
class StepRecord:
    """Everything one step made."""

    version: int
    """Policy version that was trained in this step (before its update)."""
    collected: Collected
    batch: StepBatch
    scores: Scores
    advantages: Advantages
    prm: TrainResult | HeadResult | None
    policy: TrainResult
    critic: Learning | None = None
    prm_held_out: Mapping[str, float] = field(default_factory=dict)
    """The PRM on labelled responses that no one learns from, when it was due."""
    gap_limit: float | None = None
    """Largest sound mean |engine - trainer| log-prob difference, as measured; None: it was not."""

    @property
    def results(self) -> dict[str, TrainResult | Learning]:
        """What each role that learned made of it, in the order of the updates."""
        results = {"prm": self.prm, "policy": self.policy, "critic": self.critic}
        return {role: result for role, result in results.items() if result is not None}

    @property
    def tensors(self) -> dict[str, Any]:
        """The batch's parts that have tensors, by name."""
        return {"rollout": self.batch.rollout, "scores": self.scores, "advantages": self.advantages}

    @property
    def start_logprobs_T(self) -> Tensor:
        """The policy before its update, float32 [T]: the first mini-batch's own forward, old log-probs beyond it."""
        own_T = self.policy.logprobs.logprobs_T
        if self.scores.old_logprobs_T is None:
            return own_T
        first = torch.zeros_like(self.batch.rollout.response_mask_T)
        for micro in self.batch.policy[0].micro:
            first[micro.source_S[micro.real_S]] = True
        return torch.where(first, own_T, self.scores.old_logprobs_T)


@dataclass(frozen=True)
class PrmJudgement:
    """The PRM on this rank's responses before its update: the logit of success is beta * Q + intercept."""

    q_N: Tensor
    beta: float
    intercept_N: Tensor | None

    @property
    def probability_N(self) -> Tensor:
        """Of outcome 1, float64 [N]."""
        return prm_probability(self.q_N, self.beta, self.intercept_N)


def prm_judgement(record: StepRecord, config: TrainConfig) -> PrmJudgement | None:
    """None where no PRM judged the step (outcomes alone, a teacher).

    From the update's own forward, or the scores where there was no update (or one after them).
    """
    batch, scores, prm = record.batch.rollout, record.scores, config.prm
    if scores.prm_logprobs_T is not None:
        before_T = record.prm.logprobs.logprobs_T if isinstance(record.prm, TrainResult) else scores.prm_logprobs_T
        assert scores.ref_logprobs_T is not None
        q_N = log_ratios(batch, before_T, scores.ref_logprobs_T, prm.loss)
        return PrmJudgement(q_N, prm.beta, intercepts(batch.outcome_N, batch.group_N, prm))
    if scores.head_logits_T is not None:
        logits_T = record.prm.logits_T if isinstance(record.prm, HeadResult) else scores.head_logits_T
        return PrmJudgement(response_logits(logits_T, batch), 1.0, None)
    return None


def step_figures(record: StepRecord, reduce: Reduction, config: TrainConfig) -> dict[str, float]:
    """The step's metrics, the same on every rank. Collective over the data-parallel ranks."""
    batch, scores = record.batch.rollout, record.scores
    statistics = response_statistics(batch).merged(advantage_statistics(batch, record.advantages))
    statistics = statistics.merged(_engine_gap(record))
    if (judged := prm_judgement(record, config)) is not None:
        q_N, outcome_N = judged.q_N, batch.outcome_N
        statistics = statistics.merged(
            prm_statistics(q_N, outcome_N, batch.group_N, judged.beta, judged.intercept_N)
        ).merged(prm_sums(q_N, outcome_N, batch.groups, record.collected.groups))
    rewards_T = record.advantages.process_rewards_T
    if scores.judged:
        statistics = statistics.merged(reward_statistics(batch, rewards_T, scores.ref_logprobs_T))
    if scores.teacher_logprobs_T is not None and has_told_teacher(config):
        statistics = statistics.merged(clip_statistics(batch, record.advantages, config.prm.teacher))
    if config.policy.importance_cap is not None:
        assert scores.old_logprobs_T is not None
        correction = importance(batch, scores.old_logprobs_T, config.policy)
        statistics = statistics.merged(importance_statistics(batch, correction))
    if config.advantage.overlong_buffer is not None:
        limit = config.rollout.sampling.max_response_tokens
        statistics = statistics.merged(overlong_statistics(batch, config.advantage, limit))
    reduced = statistics.reduced(reduce)
    figures = _engine_figures(reduced) | finish(reduced.merged(_learned(record))) | prm_figures(reduced)
    figures |= _collected(record.collected) | _update("policy", record.policy)
    figures |= rollout_figures(record.collected, config.rollout.filter)
    figures |= record.prm_held_out
    if scores.judged:
        figures["process_reward/largest_share"] = largest_share(rewards_T, batch.response_mask_T, reduce)
    if has_told_teacher(config):
        figures["teacher/mix"] = mix_at(config.prm.teacher, record.version + 1)
    figures["step/tokens"] = sum(sequence_lengths(record.collected.groups))
    if record.prm is not None:
        figures |= _update("prm", record.prm)
    if record.critic is not None:
        figures |= _update("critic", record.critic)
    return {key: float(value) for key, value in figures.items()}


def _learned(record: StepRecord) -> Statistics:
    """What the updates' losses summed up, which is reduced already."""
    sums = dict(record.policy.stats)
    if record.prm is not None:
        sums |= record.prm.stats
        sums["prm_updates"] = len(record.prm.updates)
    if record.critic is not None:
        sums |= record.critic.stats
    return Statistics({key: torch.tensor(value, dtype=torch.float64) for key, value in sums.items()})


def _engine_gap(record: StepRecord) -> Statistics:
    """Engine against trainer on the tokens that the current policy made (older groups differ by design)."""
    batch = record.batch.rollout
    fresh_T = batch.response_mask_T & (batch.version_N == record.version)[batch.sequence_T]
    gap_T = (record.start_logprobs_T - batch.engine_logprobs_T)[fresh_T].double()  # - log(engine / trainer)
    sums = {
        "engine_tokens": fresh_T.double().sum(),
        "engine_gap_sum": gap_T.abs().sum(),
        "engine_kl_sum": kl_estimate(-gap_T, KlEstimator.k3).sum(),
    }
    return Statistics(sums, {"engine_gap_max": torch.cat([gap_T.abs(), gap_T.new_zeros(1)]).max()})


def _engine_figures(reduced: Statistics) -> dict[str, float]:
    sums = reduced.sums
    tokens = max(float(sums["engine_tokens"]), 1.0)
    return {
        "engine/tokens": float(sums["engine_tokens"]),
        "engine/logprob_gap_mean": float(sums["engine_gap_sum"]) / tokens,
        "engine/logprob_gap_max": float(reduced.maxima["engine_gap_max"]),
        "engine/kl": float(sums["engine_kl_sum"]) / tokens,
    }


def _collected(collected: Collected) -> dict[str, float]:
    tally = collected.tally
    outcomes = [outcome for group in collected.generated for outcome in group.outcomes]
    failures = collected.verifier_failures
    forms = [sample.in_form for group in collected.generated for sample in group.samples if sample.in_form is not None]
    counted = {"rollout/action_form": sum(forms) / len(forms)} if forms else {}
    return (
        counted
        | {
            "rollout/outcome": sum(outcomes) / max(len(outcomes), 1),
            "rollout/pass_rate": tally.pass_rate,
            "rollout/too_easy": tally.too_easy,
            "rollout/too_hard": tally.too_hard,
            "rollout/truncated_groups": tally.truncated,
            "rollout/rounds": collected.rounds,
            "rollout/carried_in": collected.carried_in,
            "rollout/expired": collected.expired,
            "rollout/missing": collected.missing,
            "rollout/verifier_errors": sum(failures.values()),
        }
        | {f"rollout/verifier_{kind}": count for kind, count in failures.items()}
    )


def _update(role: str, result: Learning) -> dict[str, float]:
    applied = [update for update in result.updates if update.applied]
    return {
        f"{role}/grad_norm": sum(update.grad_norm for update in result.updates) / len(result.updates),
        f"{role}/lr": result.updates[-1].lr,
        f"{role}/skipped_updates": len(result.updates) - len(applied),
    }
