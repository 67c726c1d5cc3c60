"""The contract between the fused head and a loss over token log-probabilities; which sequences a chunk of it is."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch


@dataclass(frozen=True)
class TokenTerms:
    """A loss on tokens [a, b) in closed form, all fp32.

    loss: scalar, the sum over these tokens. dlogprobs_t, dentropy_t: [b - a], its derivative in each token's
    log-probability and entropy; dentropy_t is None where the loss does not depend on the entropy. stats: scalar sums.
    """

    loss: torch.Tensor
    dlogprobs_t: torch.Tensor
    dentropy_t: torch.Tensor | None
    stats: dict[str, torch.Tensor]


class TokenLoss(Protocol):
    """A loss whose derivative follows from the log-probabilities themselves.

    needs_entropy: whether the head must compute entropies (for the loss or for its statistics).
    boundaries: cu_seqlens, starting with 0, when a sequence's tokens must be seen together; None when each token
    stands alone.
    """

    needs_entropy: bool
    boundaries: tuple[int, ...] | None

    def terms(self, logprobs_t: torch.Tensor, entropy_t: torch.Tensor, tokens: slice) -> TokenTerms:
        """The loss on `tokens`: whole sequences of them where `boundaries` says so. Makes no autograd graph."""
        ...

    def plain(self, logprobs_T: torch.Tensor, entropy_T: torch.Tensor) -> torch.Tensor:
        """The definition: the scalar sum over ALL tokens, differentiable by autograd."""
        ...


def sequences_of(boundaries: tuple[int, ...], tokens: slice) -> tuple[slice, tuple[int, ...]]:
    """Which sequences the tokens are, and their lengths; empty ones at the end go to the last tokens."""
    first, last = (bisect_left(boundaries, edge) for edge in (tokens.start, tokens.stop))
    if tokens.stop == boundaries[-1]:
        last = len(boundaries) - 1
    assert boundaries[first] == tokens.start and boundaries[last] == tokens.stop, "a cut sequence"
    return slice(first, last), tuple(b - a for a, b in pairwise(boundaries[first : last + 1]))
