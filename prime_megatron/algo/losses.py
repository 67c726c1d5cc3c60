"""The losses of the policy, the PRM and SFT: each as its plain definition and in closed form with its statistics.

`plain` is the definition, which autograd differentiates; `terms` is what the fused head calls on chunks. A policy's
objective is one formula for both (`algo.objectives`). Weights
already hold the division by the counts of the mini-batch over all ranks, so that packing, micro-batching and layout
cannot change a loss (both public codes take a mean of micro-batch means). Statistics are sums over valid tokens or
sequences; `algo.metric_table` names them. The critic's loss is in `value_loss`.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F

from prime_megatron.algo.kl import MAX_LOG_RATIO, beyond_clamp, clamped_ratio, kl_estimate, kl_slope
from prime_megatron.algo.objectives import OBJECTIVES, Objective, ObjectiveTokens, Surrogate
from prime_megatron.algo.token_loss import TokenTerms, sequences_of
from prime_megatron.config.algorithm import KlEstimator


@dataclass(frozen=True)
class NllLoss:
    """sum_t -weight_t * log p_t: SFT.

    weights_T: fp32 [T], 0 where a token does not count.
    """

    weights_T: torch.Tensor
    needs_entropy: bool = field(default=False, init=False)
    boundaries: tuple[int, ...] | None = field(default=None, init=False)

    def terms(self, logprobs_t: torch.Tensor, entropy_t: torch.Tensor, tokens: slice) -> TokenTerms:
        """Stats: sft_num_tokens, sft_loss_sum (unweighted)."""
        weights_t = self.weights_T[tokens]
        valid_t = (weights_t != 0).float()
        stats = {"sft_num_tokens": valid_t.sum(), "sft_loss_sum": -(valid_t * logprobs_t).sum()}
        return TokenTerms(-(weights_t * logprobs_t).sum(), -weights_t, None, stats)

    def plain(self, logprobs_T: torch.Tensor, entropy_T: torch.Tensor) -> torch.Tensor:
        return -(self.weights_T * logprobs_T).sum()


@dataclass(frozen=True)
class PolicyLoss:
    """A policy objective with an entropy bonus and a KL term: sum_t w_t (L_t - entropy_coef H_t + kl_coef KL_t).

    L_t is the objective's loss of token t (``algo.objectives``: one formula, differentiated by autograd), KL_t that of
    the log-ratio logprob - ref_logprob; exponentials behind the clamp of `algo.kl`.
    advantages_T, weights_T, old_logprobs_T, ref_logprobs_T: fp32 [T]; weight 0 where a token does not count. An
    importance weight of a token is a factor of its advantage. old_logprobs_T None: the policy has not moved since it
    sampled, so that its ratio is 1 by construction. ref_logprobs_T is needed where kl_coef is not 0. needs_entropy also
    asks for entropy as a statistic. boundaries: cu_seqlens from 0 to T, needed by an objective of whole sequences.
    """

    advantages_T: torch.Tensor
    weights_T: torch.Tensor
    old_logprobs_T: torch.Tensor | None
    objective: Objective = OBJECTIVES["ppo"]
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 3.0
    entropy_coef: float = 0.0
    kl_coef: float = 0.0
    kl_estimator: KlEstimator = KlEstimator.k3
    ref_logprobs_T: torch.Tensor | None = None
    needs_entropy: bool = True
    boundaries: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kl_coef != 0 and self.ref_logprobs_T is None:
            raise ValueError("kl_coef needs ref_logprobs_T")
        if self.entropy_coef != 0 and not self.needs_entropy:
            raise ValueError("entropy_coef needs needs_entropy=True")
        if self.objective.whole_sequences and self.boundaries is None:
            raise ValueError(f"{self.objective.name} needs boundaries")

    def terms(self, logprobs_t: torch.Tensor, entropy_t: torch.Tensor, tokens: slice) -> TokenTerms:
        """Stats: those of `_policy_stats`, the objective's figures, and where asked policy_entropy_sum,
        policy_kl_ref_sum."""
        weights_t = self.weights_T[tokens]
        valid_t = (weights_t != 0).float()
        with torch.enable_grad():
            leaf_t = logprobs_t.detach().requires_grad_()
            surrogate = self._surrogate(leaf_t, tokens)
            (slope_t,) = torch.autograd.grad((weights_t * surrogate.loss_t).sum(), leaf_t)
        log_ratio_t = logprobs_t - self._old(logprobs_t, tokens)
        loss_t = surrogate.loss_t.detach()
        stats = _policy_stats(valid_t, loss_t, log_ratio_t, surrogate)
        dentropy_t = None
        if self.needs_entropy:
            stats["policy_entropy_sum"] = (valid_t * entropy_t).sum()
        if self.entropy_coef != 0:
            loss_t = loss_t - self.entropy_coef * entropy_t
            dentropy_t = -self.entropy_coef * weights_t
        if self.ref_logprobs_T is not None:
            above_ref_t = logprobs_t - self.ref_logprobs_T[tokens]
            kl_t = kl_estimate(above_ref_t, self.kl_estimator)
            stats["policy_kl_ref_sum"] = (valid_t * kl_t).sum()
            loss_t = loss_t + self.kl_coef * kl_t
            slope_t = slope_t + weights_t * (self.kl_coef * kl_slope(above_ref_t, self.kl_estimator))
        return TokenTerms((weights_t * loss_t).sum(), slope_t, dentropy_t, stats)

    def plain(self, logprobs_T: torch.Tensor, entropy_T: torch.Tensor) -> torch.Tensor:
        loss_T = self._surrogate(logprobs_T, slice(0, logprobs_T.shape[0])).loss_t - self.entropy_coef * entropy_T
        if self.kl_coef != 0:
            assert self.ref_logprobs_T is not None
            loss_T = loss_T + self.kl_coef * kl_estimate(logprobs_T - self.ref_logprobs_T, self.kl_estimator)
        return (self.weights_T * loss_T).sum()

    def _old(self, logprobs_t: torch.Tensor, tokens: slice) -> torch.Tensor:
        return logprobs_t.detach() if self.old_logprobs_T is None else self.old_logprobs_T[tokens]

    def _surrogate(self, logprobs_t: torch.Tensor, tokens: slice) -> Surrogate:
        lengths: tuple[int, ...] = (logprobs_t.shape[0],)
        if self.boundaries is not None:
            _, lengths = sequences_of(self.boundaries, tokens)
        return self.objective.surrogate(
            ObjectiveTokens(
                logprobs_t=logprobs_t,
                old_logprobs_t=self._old(logprobs_t, tokens),
                advantages_t=self.advantages_T[tokens],
                lengths=lengths,
                clip_low=self.clip_low,
                clip_high=self.clip_high,
                dual_clip=self.dual_clip,
            )
        )


def _policy_stats(
    valid_t: torch.Tensor, loss_t: torch.Tensor, log_ratio_t: torch.Tensor, surrogate: Surrogate
) -> dict[str, torch.Tensor]:
    """Sums over valid tokens: their number, the objective's loss, tokens that its clip (by bound) or the clamp leaves
    without a gradient, k3 of KL(old || new), the ratio, moments of ratio - 1 (of the ratio itself they would cancel),
    and the objective's figures."""
    shift_t = torch.expm1(log_ratio_t.clamp(max=MAX_LOG_RATIO))
    nowhere_t = torch.zeros_like(valid_t)
    sums = {
        "num_tokens": torch.ones_like(valid_t),
        "loss_sum": loss_t,
        "clip_low_sum": nowhere_t if surrogate.low_t is None else surrogate.low_t,
        "clip_high_sum": nowhere_t if surrogate.high_t is None else surrogate.high_t,
        "beyond_clamp_sum": beyond_clamp(log_ratio_t),
        "kl_old_sum": kl_estimate(-log_ratio_t, KlEstimator.k3),
        "ratio_sum": clamped_ratio(log_ratio_t),
        "ratio_shift_sum": shift_t,
        "ratio_shift_square_sum": shift_t.square(),
        **{f"objective_{word}_sum": value_t.detach() for word, value_t in surrogate.figures.items()},
    }
    return {f"policy_{name}": (valid_t * values_t).sum() for name, values_t in sums.items()}


@dataclass(frozen=True)
class PrmLoss:
    """The implicit PRM's loss: sum_i w_i BCEWithLogits(beta * (Q_i - b_i), o_i), Q_i = sum_t mask_t (logp_t - ref_t).

    With b = 0 this is PRIME's cross-entropy (arXiv 2502.01456, eq. 4); `prm_loss` has the forms with siblings.
    Linear in a stray token's log-ratio and of a bounded gradient, so it needs no clamp.
    ref_logprobs_T fp32 [T]; mask_T bool [T]; cu_seqlens: N + 1 token offsets from 0 on the host; targets_N in [0, 1],
    baselines_N and weights_N fp32 [N]. All tokens of a sequence share one derivative, known at its last token, so
    chunks of the head end between sequences.
    """

    ref_logprobs_T: torch.Tensor
    mask_T: torch.Tensor
    boundaries: tuple[int, ...]
    targets_N: torch.Tensor
    beta: float
    baselines_N: torch.Tensor | None = None
    weights_N: torch.Tensor | None = None
    needs_entropy: bool = field(default=False, init=False)

    def terms(self, logprobs_t: torch.Tensor, entropy_t: torch.Tensor, tokens: slice) -> TokenTerms:
        """Stats: prm_loss_sum, weighted."""
        (sequences, lengths), mask_t = sequences_of(self.boundaries, tokens), self.mask_T[tokens]
        lengths_n = torch.tensor(lengths, dtype=torch.int64).to(logprobs_t.device, non_blocking=True)
        q_t = torch.where(mask_t, logprobs_t - self.ref_logprobs_T[tokens], 0.0)
        sums_n = torch.segment_reduce(q_t, "sum", lengths=lengths_n, unsafe=True)
        logits_n, targets_n = self._logits(sums_n, sequences), self.targets_N[sequences]
        loss_n = F.binary_cross_entropy_with_logits(logits_n, targets_n, reduction="none")
        slope_n = self.beta * (torch.sigmoid(logits_n) - targets_n)
        if self.weights_N is not None:
            loss_n, slope_n = loss_n * self.weights_N[sequences], slope_n * self.weights_N[sequences]
        slope_t = torch.repeat_interleave(slope_n, lengths_n, output_size=tokens.stop - tokens.start)
        return TokenTerms(loss_n.sum(), torch.where(mask_t, slope_t, 0.0), None, {"prm_loss_sum": loss_n.sum()})

    def _logits(self, sums_n: torch.Tensor, sequences: slice) -> torch.Tensor:
        return self.beta * (sums_n if self.baselines_N is None else sums_n - self.baselines_N[sequences])

    def plain(self, logprobs_T: torch.Tensor, entropy_T: torch.Tensor) -> torch.Tensor:
        q_T = torch.where(self.mask_T, logprobs_T - self.ref_logprobs_T, 0.0)
        if len(self.boundaries) == 1:
            return q_T.sum()  # no sequence: 0, with a gradient of its own
        sums_N = torch.stack([q_T[a:b].sum() for a, b in pairwise(self.boundaries)])
        logits_N = self._logits(sums_N, slice(None))
        # p = sigmoid(logit); the log of a saturated p is what the logits form avoids.
        loss_N = -self.targets_N * F.logsigmoid(logits_N) - (1 - self.targets_N) * F.logsigmoid(-logits_N)
        return (loss_N if self.weights_N is None else self.weights_N * loss_N).sum()
