"""From process rewards and outcomes to advantages (paper, equation 5 and appendix B.3).

For sequence i of a group of K, response tokens t up to the last one L, process reward r_t (after its granularity and
norm), outcome o, m_j the mean of r^j over the tokens that carry a process reward (every response token with
granularity "token", the closing tokens with "step" and "whole"), weights w_p and w_o, discounts g_p and g_o, and a
KL penalty k_t (kl_coef times the estimate; 0 unless policy.kl_place is "reward"):

    G_t = sum_{s >= t} g_p^(s-t) * (w_p * r~_s - k~_s) + g_o^(L-t) * w_o * o~

| estimator   | r~_s                            | o~                       | k~_s             | advantage          |
| rloo, paper | r_s - mean_{j != i} m_j         | o - mean_{j != i} o_j    | the form of r~_s | G_t                |
| rloo, code  | K/(K-1) r_s - sum_j m_j / (K-1) | the same                 | the form of r~_s | G_t                |
| grpo        | (r_s - mean_j m_j) / std_j m_j  | (o - mean_j o) / std_j o | k_s              | G_t                |
| reinforce   | r_s                             | o                        | k_s              | G_t                |
| reinforce++ | r_s                             | o                        | k_s              | G_t, whitened      |
| gae         | r_s                             | o                        | k_s              | see gae()          |
| prime_value | 0                               | o                        | k_s              | G_t + w_p * c_t    |
| prefix_td   | 0                               | grpo's                   | k_s              | G_t + w_p * c_t    |
| spro        | 0                               | grpo's                   | k_s              | G_t + w_p * c_t    |

c_t is the estimator's own formula of the process part, a file each in ``algo.credit``. Without scale_by_deviation
grpo's outcome is divided by 1 (Dr.GRPO, arXiv 2503.20783). KL is not z-scored in grpo, so that kl_coef keeps its
meaning. o is the outcome less the penalty for its response's length (``algo.overlong``). Siblings share a data-parallel
rank, so only whitening needs ``reduce``, and prefix_td:

    A <- (A - mean) / sqrt(var + 1e-8), over all response tokens of all ranks, var Bessel-corrected

(both public codes, not the paper); reinforce++ is whitened by definition, the others when config.whiten.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prime_megatron.algo.baselines import (
    outcome_leave_one_out,
    outcome_z_score,
    token_leave_one_out,
    token_z_score,
)
from prime_megatron.algo.credit import CREDITS, CreditTokens
from prime_megatron.algo.process_reward import reward_mask
from prime_megatron.algo.reduction import Reduction
from prime_megatron.algo.segments import Siblings, discounted_sum, last_mask, next_in_sequence
from prime_megatron.algo.whitening import whiten
from prime_megatron.config.algorithm import AdvantageAlgorithm, Estimator, PrmAlgorithm
from prime_megatron.types import Advantages, RolloutBatch


def compute_advantages(
    batch: RolloutBatch,
    process_rewards_T: Tensor | None,
    config: AdvantageAlgorithm,
    prm: PrmAlgorithm,
    reduce: Reduction,
    *,
    values_T: Tensor | None = None,
    log_ratio_T: Tensor | None = None,
    kl_T: Tensor | None = None,
) -> Advantages:
    """Advantages of this rank's part of the batch, in the dtype of process_rewards_T (float32 without), no gradient.

    process_rewards_T: [T] of ``process_reward.process_rewards``; None without a PRM (process_weight = 0).
    values_T: gae only, [T]: the critic's value of the text before token t, 0 outside the response.
    log_ratio_T: prime_value only, [T]: ``process_reward.log_ratio``, not scaled by beta.
    kl_T: [T] kl_coef * KL estimate to subtract from the token rewards; None: no penalty.
    Calls reduce.sum twice when the result is whitened, and four times for prefix_td. returns_T is what the advantage is
    made of before whitening (for gae: advantage + value, the critic's target). Response tokens are contiguous and end
    their sequence.
    """
    with torch.no_grad():
        dtype = torch.float32 if process_rewards_T is None else process_rewards_T.dtype
        mask_T = batch.response_mask_T
        if process_rewards_T is None:
            assert config.process_weight == 0.0, "process rewards are missing"
            process_rewards_T = torch.zeros(mask_T.shape, dtype=dtype, device=mask_T.device)
        rewards_T, outcome_T = _sources(batch, process_rewards_T.double(), config, prm, kl_T)
        sequence_T = batch.sequence_T
        if config.estimator is Estimator.gae:
            assert values_T is not None, "estimator gae needs the critic's values"
            assert config.gamma_process == config.gamma_outcome, "gae has one value function, so one discount"
            values_T = torch.where(mask_T, values_T.double(), 0.0)
            advantages_T = gae(
                rewards_T + outcome_T, values_T, mask_T, sequence_T, config.gamma_process, config.gae_lambda
            )
            returns_T = advantages_T + values_T
        else:
            returns_T = discounted_sum(rewards_T, sequence_T, config.gamma_process)
            returns_T = returns_T + discounted_sum(outcome_T, sequence_T, config.gamma_outcome)
            if config.estimator in CREDITS and config.process_weight > 0.0:
                tokens = CreditTokens(batch, process_rewards_T.double(), log_ratio_T, config, prm, reduce)
                returns_T = returns_T + config.process_weight * CREDITS[config.estimator].of_tokens(tokens)
            returns_T = torch.where(mask_T, returns_T, 0.0)
            advantages_T = returns_T
        if config.whiten or config.estimator is Estimator.reinforce_pp:
            advantages_T = whiten(advantages_T, mask_T, reduce)
        return Advantages(process_rewards_T, returns_T.to(dtype), advantages_T.to(dtype))


def _sources(
    batch: RolloutBatch, process_T: Tensor, config: AdvantageAlgorithm, prm: PrmAlgorithm, kl_T: Tensor | None
) -> tuple[Tensor, Tensor]:
    """w_p * r~ - k~ and w_o * o~ (on the last response token), both float64 [T], 0 outside the response."""
    mask_T, sequence_T, outcome_N = batch.response_mask_T, batch.sequence_T, batch.outcome_N.double()
    carrier_T = reward_mask(batch, prm.granularity)
    siblings, credit = Siblings.of(batch.group_N), CREDITS.get(config.estimator)
    kl_T = None if kl_T is None else torch.where(mask_T, kl_T.double(), 0.0)
    if config.estimator is Estimator.rloo:
        process_T = token_leave_one_out(process_T, carrier_T, sequence_T, siblings, config.leave_one_out)
        outcome_N = outcome_leave_one_out(outcome_N, siblings)
        if kl_T is not None:
            kl_T = token_leave_one_out(kl_T, mask_T, sequence_T, siblings, config.leave_one_out)
    elif config.estimator is Estimator.grpo:
        process_T = token_z_score(process_T, carrier_T, sequence_T, siblings, scaled=config.scale_by_deviation)
        outcome_N = outcome_z_score(outcome_N, siblings, scaled=config.scale_by_deviation)
    elif credit is not None:
        process_T = torch.zeros_like(process_T)  # it adds a part of its own
        if credit.outcome_z_score:
            outcome_N = outcome_z_score(outcome_N, siblings, scaled=config.scale_by_deviation)
    rewards_T = config.process_weight * process_T
    if kl_T is not None:
        rewards_T = rewards_T - kl_T
    last_T = last_mask(mask_T, sequence_T, outcome_N.numel())
    return rewards_T, torch.where(last_T, config.outcome_weight * outcome_N[sequence_T], 0.0)


def gae(rewards_T: Tensor, values_T: Tensor, mask_T: Tensor, sequence_T: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (arXiv 1506.02438, equation 16): [T], 0 outside mask.

    delta_t = r_t + gamma * V_{t+1} - V_t, A_t = sum_{s >= t} (gamma * lam)^(s-t) * delta_s. values_T[t] is the value of
    the text before token t; the value after the last token is 0, for a truncated response too.
    """
    delta_T = rewards_T + gamma * next_in_sequence(values_T, sequence_T) - values_T
    delta_T = torch.where(mask_T, delta_T, 0.0)
    return torch.where(mask_T, discounted_sum(delta_T, sequence_T, gamma * lam), 0.0)
