"""The definition of a token's log-probability and entropy, with the whole [T, V] logits in memory."""

import torch
import torch.nn.functional as F


def naive_logprobs(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(label) and -sum p log p under softmax(hidden @ weight.T / temperature), by autograd-visible torch.

    The product runs in the input's dtype, so bf16 input gives the naive bf16 form. Returns fp32 (fp64 for fp64
    input) [T], [T]. Labels must be in range.
    """
    logits_TV = F.linear(hidden_TH, weight_VH)
    logp_TV = torch.log_softmax(logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)) / temperature, dim=-1)
    return logp_TV.gather(1, labels_T[:, None]).squeeze(1), -(logp_TV.exp() * logp_TV).sum(-1)
