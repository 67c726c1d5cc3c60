"""From PRM and reference log-probabilities to advantages, fused, on packed sequences: the path that most runs take.

The definition is ``algo.process_reward`` and ``algo.advantage``; this is their RLOO, GRPO and REINFORCE at token
granularity without smoothing, with KL not in the reward (``config.reward_path.uncovered`` says when a config is that).
For response token t of sequence i, outcome o, K siblings in its group, m_j the mean process reward of sibling j:

    1. q_t  = scale * log((prm + e) / (ref + e)), e the ratio_floor, 0 for the bare log-ratio
    2. r_t  = q_t / (max over all sequences and t of |sum_{s >= t} q_s| + 1e-6)            batch_norm
    3. r~_t = K/(K-1) r_t - 1/(K-1) sum_j m_j   (code)   or   r_t - mean_{j != i} m_j       (paper)
       o~   = o - mean_{j != i} o_j
       or r~_t = (r_t - mean_j m_j) / std_j m_j, o~ alike    (z_score);   the same without division    (mean)
    4. G_t  = w_p sum_{s >= t} gamma_p^(s-t) r~_s + w_o gamma_o^(L-t) o~, L the last response token
    5. A_t  = (G_t - mean G) / sqrt(var G + 1e-8), Bessel-corrected                         whiten

A group of one has nothing to compare with: r~ = r, o~ = o; groups of one throughout are REINFORCE. Maximum (2) and
moments (5) are over all data-parallel ranks by way of `reduce`.

impl: "triton" (three launches and two reductions), "torch" (vectorised), "auto". Shapes: T packed tokens, N sequences.
"""

import torch

from prime_megatron import device
from prime_megatron.algo.reduction import LOCAL, Reduction
from prime_megatron.kernels.reward_form import RewardBatch, RewardForm
from prime_megatron.kernels.reward_torch import torch_advantages
from prime_megatron.types import Advantages


def process_advantages(
    batch: RewardBatch, form: RewardForm, *, reduce: Reduction = LOCAL, impl: str = "auto"
) -> Advantages:
    """The five steps above: r of step 2, G, and A (or G again where nothing is whitened), fp32, no gradient.

    Calls reduce.max once where form.batch_norm, then reduce.sum once where form.whiten. Raises ValueError for an
    unknown impl or shapes that do not match.
    """
    num_tokens, num_sequences = batch.prm_logprobs_T.shape[0], batch.outcome_N.shape[0]
    if batch.cu_seqlens.shape != (num_sequences + 1,) or batch.group_N.shape != (num_sequences,):
        raise ValueError("cu_seqlens must be [N + 1] and group_N [N] for outcome_N [N]")
    if batch.ref_logprobs_T.shape != (num_tokens,) or batch.response_mask_T.shape != (num_tokens,):
        raise ValueError("prm_logprobs_T, ref_logprobs_T and response_mask_T must have one length")
    if impl not in ("auto", "triton", "torch"):
        raise ValueError(f"impl must be auto, triton or torch, not {impl!r}")
    with torch.no_grad():
        if impl == "triton" or (impl == "auto" and batch.prm_logprobs_T.is_cuda and device.has_triton()):
            if not device.has_triton():
                raise ValueError("impl='triton' needs a GPU, or TRITON_INTERPRET=1 set before the first import")
            from prime_megatron.kernels.reward_triton import triton_advantages  # Triton is not everywhere

            return Advantages(*triton_advantages(batch, form, reduce))
        return Advantages(*torch_advantages(batch, form, reduce))
