"""The prefix-value loss of IPVRM (arXiv 2604.13197): the implicit PRM learns what every prefix of a response is worth.

With q_t the log-ratio of response token t, v_t = (1/t) sum_{s <= t} q_s the value of the prefix that ends there, L the
number of response tokens, o the outcome, m the margin, c the intercept and w the weight of the response:

    z_t  = beta * v_t + c
    loss = w * (1/L) * sum_t [o * softplus(m - z_t) + (1 - o) * softplus(m + z_t)]

For an outcome of 0 or 1 that is the paper's softplus(m - beta * s * v_t), s = +-1; a fractional outcome, which it does
not have, is right with probability o. c = logit(mu), mu the mean outcome of the siblings, is its adaptive boundary,
m -+ logit(mu) for right and wrong responses; w its difficulty weights (``prm_loss.sibling_terms``).

The cross-entropy of PRIME binds the sum over the response alone; here every prefix is bound, so that a token's reward
is not free to move along the response.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from prime_megatron.algo.token_loss import TokenTerms, sequences_of


@dataclass(frozen=True)
class PrefixValueLoss:
    """The loss above over the sequences of a micro-batch, each with its weight in the mini-batch.

    ref_logprobs_T: fp32 [T], response tokens alone; boundaries: N + 1 token offsets from 0 on the host; targets_N in
    [0, 1], intercepts_N (c; None: 0) and weights_N (None: 1), fp32 [N]. Linear in a stray token's log-ratio and of a
    bounded gradient, so it needs no clamp. A token's derivative comes from all prefixes that hold it, so chunks of the
    head end between sequences.
    """

    ref_logprobs_T: Tensor
    boundaries: tuple[int, ...]
    targets_N: Tensor
    beta: float
    margin: float
    intercepts_N: Tensor | None = None
    weights_N: Tensor | None = None
    needs_entropy: bool = field(default=False, init=False)

    def terms(self, logprobs_t: Tensor, entropy_t: Tensor, tokens: slice) -> TokenTerms:
        """Stats: prm_loss_sum, weighted."""
        sequences, lengths = sequences_of(self.boundaries, tokens)
        lengths_n = torch.tensor(lengths, dtype=torch.int64).to(logprobs_t.device, non_blocking=True)
        size = tokens.stop - tokens.start
        sequence_t = torch.repeat_interleave(lengths_n, output_size=size)
        place_t = torch.arange(1, size + 1, device=logprobs_t.device) - (lengths_n.cumsum(0) - lengths_n)[sequence_t]
        q_t = logprobs_t.double() - self.ref_logprobs_T[tokens].double()
        values_t = _running(q_t, lengths_n, sequence_t) / place_t
        target_t = self.targets_N[sequences].double()[sequence_t]
        share_t = self._shares(sequences, lengths_n)[sequence_t]
        logits_t = self.beta * values_t + self._intercepts(sequences, lengths_n)[sequence_t]
        up_t, down_t = self.margin - logits_t, self.margin + logits_t
        loss = (share_t * (target_t * F.softplus(up_t) + (1.0 - target_t) * F.softplus(down_t))).sum().float()
        pull_t = (1.0 - target_t) * torch.sigmoid(down_t) - target_t * torch.sigmoid(up_t)
        by_prefix_t = self.beta * share_t * pull_t / place_t
        before_t = _running(by_prefix_t, lengths_n, sequence_t) - by_prefix_t
        whole_n = by_prefix_t.new_zeros(lengths_n.numel()).index_add(0, sequence_t, by_prefix_t)
        slope_t = whole_n[sequence_t] - before_t
        return TokenTerms(loss, slope_t.float(), None, {"prm_loss_sum": loss})

    def plain(self, logprobs_T: Tensor, entropy_T: Tensor) -> Tensor:
        total = (logprobs_T.double() - self.ref_logprobs_T.double()).sum() * 0.0  # no sequence: 0, with a gradient
        intercepts_N = torch.zeros_like(self.targets_N) if self.intercepts_N is None else self.intercepts_N
        weights_N = torch.ones_like(self.targets_N) if self.weights_N is None else self.weights_N
        for index, (start, stop) in enumerate(pairwise(self.boundaries)):
            if start == stop:
                continue
            q_l = (logprobs_T[start:stop] - self.ref_logprobs_T[start:stop]).double()
            values_l = q_l.cumsum(0) / torch.arange(1, stop - start + 1, device=q_l.device)
            logits_l = self.beta * values_l + intercepts_N[index].double()
            target = self.targets_N[index].double()
            loss_l = target * F.softplus(self.margin - logits_l) + (1 - target) * F.softplus(self.margin + logits_l)
            total = total + weights_N[index].double() * loss_l.mean()
        return total.float()

    def _intercepts(self, sequences: slice, lengths_n: Tensor) -> Tensor:
        return lengths_n.double() * 0.0 if self.intercepts_N is None else self.intercepts_N[sequences].double()

    def _shares(self, sequences: slice, lengths_n: Tensor) -> Tensor:
        """w / L of each sequence."""
        shares_n = 1.0 / lengths_n.clamp(min=1).double()
        return shares_n if self.weights_N is None else shares_n * self.weights_N[sequences].double()


def _running(values_t: Tensor, lengths_n: Tensor, sequence_t: Tensor) -> Tensor:
    """Sum of a sequence's values up to each token, that one included: float64 [t]."""
    running_t = F.pad(values_t.cumsum(0), (1, 0))
    begin_n = lengths_n.cumsum(0) - lengths_n
    return running_t[1:] - running_t[begin_n][sequence_t]
