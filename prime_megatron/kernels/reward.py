"""From PRM and reference log-probabilities to advantages, on packed sequences: the RLOO path of PRIME in one call.

For response token t of sequence i, outcome o, K siblings in its group, m_j the mean process reward of sibling j
(arXiv 2502.01456, section 3; the code form is PRIME-RL/PRIME's and the recipe's):

    1. q_t  = scale * (log prm - log ref)
    2. r_t  = q_t / (max over all sequences and t of |sum_{s >= t} q_s| + 1e-6)            batch_norm
    3. r~_t = K/(K-1) r_t - 1/(K-1) sum_j m_j   (code)   or   r_t - mean_{j != i} m_j       (paper)
       o~   = o - mean_{j != i} o_j
    4. G_t  = w_p sum_{s >= t} gamma_p^(s-t) r~_s + w_o gamma_o^(L-t) o~, L the last response token
    5. A_t  = (G_t - mean G) / sqrt(var G + 1e-8), Bessel-corrected                         whiten

A group of one has nothing to compare with: r~ = r, o~ = o. Maximum (2) and moments (5) are over all data-parallel
ranks by way of `reduce`. Other estimators, granularities and smoothing are `prime_megatron.algo`'s.

impl: "triton" (three launches and two reductions), "torch" (vectorised), "loop" (the definition, token by token),
"auto". Shapes: T packed tokens, N sequences.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from prime_megatron import device
from prime_megatron.kernels.reward_loop import loop_advantages
from prime_megatron.kernels.reward_torch import torch_advantages


class Reduce(Protocol):
    """Element-wise reductions over data-parallel ranks; each is called at most once, in this order."""

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        """Maximum over ranks, a new tensor."""
        ...

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, a new tensor."""
        ...


@dataclass(frozen=True)
class OneRank:
    """The reductions of a single rank."""

    def max(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


ONE_RANK = OneRank()


@dataclass(frozen=True)
class RewardForm:
    """Which of the forms above; the defaults of none are hidden.

    scale: beta (paper, recipe) or 1 (original). leave_one_out: "code" or "paper". gammas in [0, 1].
    """

    scale: float
    batch_norm: bool
    leave_one_out: str
    process_weight: float
    outcome_weight: float
    gamma_process: float
    gamma_outcome: float
    whiten: bool

    def __post_init__(self) -> None:
        if self.leave_one_out not in ("code", "paper"):
            raise ValueError(f"leave_one_out must be code or paper, not {self.leave_one_out!r}")
        if not (0.0 <= self.gamma_process <= 1.0 and 0.0 <= self.gamma_outcome <= 1.0):
            raise ValueError("gammas must lie in [0, 1]")


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


@dataclass(frozen=True)
class RewardResult:
    """fp32 [T] each, 0 outside the response.

    process_rewards_T: r of step 2. returns_T: G. advantages_T: A, or G again where nothing is whitened.
    """

    process_rewards_T: torch.Tensor
    returns_T: torch.Tensor
    advantages_T: torch.Tensor


def process_advantages(
    batch: RewardBatch, form: RewardForm, *, reduce: Reduce = ONE_RANK, impl: str = "auto"
) -> RewardResult:
    """The five steps above; no gradient. Raises ValueError for an unknown impl or shapes that do not match."""
    num_tokens, num_sequences = batch.prm_logprobs_T.shape[0], batch.outcome_N.shape[0]
    if batch.cu_seqlens.shape != (num_sequences + 1,) or batch.group_N.shape != (num_sequences,):
        raise ValueError("cu_seqlens must be [N + 1] and group_N [N] for outcome_N [N]")
    if batch.ref_logprobs_T.shape != (num_tokens,) or batch.response_mask_T.shape != (num_tokens,):
        raise ValueError("prm_logprobs_T, ref_logprobs_T and response_mask_T must have one length")
    if impl not in ("auto", "triton", "torch", "loop"):
        raise ValueError(f"impl must be auto, triton, torch or loop, not {impl!r}")
    with torch.no_grad():
        if impl == "loop":
            return RewardResult(*loop_advantages(batch, form, reduce))
        if impl == "triton" or (impl == "auto" and batch.prm_logprobs_T.is_cuda and device.has_triton()):
            if not device.has_triton():
                raise ValueError("impl='triton' needs a GPU, or TRITON_INTERPRET=1 set before the first import")
            from prime_megatron.kernels.reward_triton import triton_advantages  # Triton is not everywhere

            return RewardResult(*triton_advantages(batch, form, reduce))
        return RewardResult(*torch_advantages(batch, form, reduce))
