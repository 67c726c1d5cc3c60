"""What the fused reward path reads: a rank's sequences, and which form of the reward is asked for."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RewardForm:
    """Which of the forms of `kernels.reward`; the defaults of none are hidden.

    scale: beta (paper, recipe) or 1 (original). ratio_floor: e of step 1, in [0, 1). baseline: "code" or
    "paper" (RLOO), "z_score" (GRPO) or "mean" (Dr.GRPO). gammas in [0, 1].
    """

    scale: float
    ratio_floor: float
    batch_norm: bool
    baseline: str
    process_weight: float
    outcome_weight: float
    gamma_process: float
    gamma_outcome: float
    whiten: bool

    def __post_init__(self) -> None:
        if self.baseline not in ("code", "paper", "z_score", "mean"):
            raise ValueError(f"baseline must be code, paper, z_score or mean, not {self.baseline!r}")
        if not (0.0 <= self.gamma_process <= 1.0 and 0.0 <= self.gamma_outcome <= 1.0):
            raise ValueError("gammas must lie in [0, 1]")
        if not 0.0 <= self.ratio_floor < 1.0:
            raise ValueError("ratio_floor must lie in [0, 1)")


@dataclass(frozen=True)
class RewardBatch:
    """One rank's packed sequences, all on one device.

    prm_logprobs_T, ref_logprobs_T: fp32 [T], nats. response_mask_T: bool [T]. cu_seqlens: int [N + 1], from 0 to T.
    group_N: int [N], equal numbers are siblings (in any order). outcome_N: fp32 [N].
    """

    prm_logprobs_T: torch.Tensor
    ref_logprobs_T: torch.Tensor
    response_mask_T: torch.Tensor
    cu_seqlens: torch.Tensor
    group_N: torch.Tensor
    outcome_N: torch.Tensor
