"""What both training forms of the head share: the call's constants, the loss taken a chunk at a time, the gradients.

Chunks are cut between sequences for a loss that needs whole sequences. A sequence too long for one chunk is scored
piece by piece first, and its logits are multiplied out a second time for the gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType

import torch
import torch.distributed as dist

from prime_megatron.algo.token_loss import TokenLoss
from prime_megatron.kernels.vocab_parallel import Partial, Shard, combine, gather_sequence, reduce_hidden_grad


@dataclass(frozen=True)
class OutputLayer:
    """Everything about a call that is not a differentiable tensor."""

    ops: ModuleType
    shard: Shard
    weight: torch.Tensor  # the parameter itself: it may carry main_grad
    labels_T: torch.Tensor  # rows of this shard, -1 elsewhere
    keep_T: torch.Tensor  # bool: not ignored
    inv_temperature: float
    group: dist.ProcessGroup | None
    sequence_parallel: bool
    entropy: bool

    def rows(self) -> torch.Tensor:
        return self.weight.detach()[: self.shard.num_rows]

    def gathered(self, hidden: torch.Tensor) -> torch.Tensor:
        hidden = hidden.detach()
        return gather_sequence(hidden, self.group) if self.sequence_parallel else hidden

    def partial(self, hidden_TH: torch.Tensor, at: slice) -> Partial:
        """This shard's partial of the tokens `at`, given their hidden states; keeps no logits."""
        if self.shard.num_rows == 0 or hidden_TH.shape[0] == 0:
            return self._nothing(hidden_TH.shape[0], hidden_TH.device)
        return self.ops.partial(hidden_TH, self.rows(), self.labels_T[at], self.inv_temperature, self.entropy)

    def chunk_partial(self, logits_tV: torch.Tensor, at: slice) -> Partial:
        """The same from a chunk's logits."""
        if self.shard.num_rows == 0:
            return self._nothing(*logits_tV.shape[:1], logits_tV.device)
        return self.ops.chunk_partial(logits_tV, self.labels_T[at], self.inv_temperature, self.entropy)

    @staticmethod
    def _nothing(num_tokens: int, where: torch.device) -> Partial:
        zeros_t = torch.zeros(num_tokens, device=where)
        return Partial(torch.full_like(zeros_t, -torch.inf), zeros_t, zeros_t)

    def finish(self, part: Partial, keep_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(logprobs, entropy, lse) of the whole vocabulary from this shard's partial."""
        whole = combine(part, self.group)
        # Rounding may leave a certain token 1 ulp above zero; nothing larger is hidden here, as lse and target come
        # from the same logits.
        logprobs_t = torch.where(keep_t, (whole.target - whole.lse).clamp(max=0.0), 0.0)
        entropy_t = torch.where(keep_t, (whole.lse - whole.mean).clamp(min=0.0), 0.0)
        return logprobs_t, entropy_t, whole.lse


def plan_chunks(num_tokens: int, limit: int, boundaries: tuple[int, ...] | None) -> list[tuple[int, int]]:
    """Token ranges of at most `limit` tokens, as even as can be; with `boundaries` (cu_seqlens) cut only there.

    A sequence longer than `limit` is a range of its own.
    """
    if num_tokens == 0:
        return []
    if boundaries is None:
        count = -(-num_tokens // limit)
        cuts = [num_tokens * i // count for i in range(count + 1)]
        return list(pairwise(cuts))
    assert boundaries[0] == 0 and boundaries[-1] == num_tokens, "boundaries do not span the tokens"
    ranges, begin = [], 0
    for last, end in pairwise(boundaries):
        if end - begin > limit and last > begin:
            ranges.append((begin, last))
            begin = last
    if num_tokens > begin:
        ranges.append((begin, num_tokens))
    return ranges


class Gradients:
    """Accumulates the gradients of hidden and weight over chunks of tokens.

    scale: None holds the weight's gradient for `weight_grad`; a number adds scale times it to weight.main_grad.
    """

    def __init__(
        self, head: OutputLayer, hidden_TH: torch.Tensor, want_hidden: bool, want_weight: bool, *, scale: float | None
    ) -> None:
        self.head, self._hidden_TH, self._rows_VH = head, hidden_TH, head.rows()
        self._num_tokens, num_rows = hidden_TH.shape[0], head.shard.num_rows
        self.limit = head.ops.chunk_tokens(self._num_tokens, num_rows, hidden_TH.dtype)
        self._dhidden_TH = torch.empty_like(hidden_TH) if want_hidden else None
        self._want_weight, self._scale = want_weight, scale
        self._dweight_VH: torch.Tensor | None = None
        self._buffer: torch.Tensor | None = None
        if want_weight and scale is not None:
            self._dweight_VH = head.weight.main_grad[:num_rows]
            head.weight.grad_added_to_main_grad = True

    def chunks(self, boundaries: tuple[int, ...] | None) -> list[tuple[int, int]]:
        return plan_chunks(self._num_tokens, self.limit, boundaries)

    def pieces(self, begin: int, end: int) -> Iterator[slice]:
        """A range that is too long for one chunk, in chunks."""
        for first, last in plan_chunks(end - begin, self.limit, None):
            yield slice(begin + first, begin + last)

    def hidden(self, at: slice) -> torch.Tensor:
        return self._hidden_TH[at]

    def logits(self, at: slice) -> torch.Tensor:
        """The chunk's logits, in a buffer that the next chunk reuses."""
        num_tokens, num_rows = at.stop - at.start, self.head.shard.num_rows
        if num_rows == 0:
            return self._hidden_TH.new_empty((num_tokens, 0))
        if self._buffer is None:
            # At its largest at once: a second, larger one would be made while the first is still there.
            self._buffer = self.head.ops.logits_buffer(self.limit * num_rows, self._hidden_TH)
        out_tV = self._buffer[: num_tokens * num_rows].view(num_tokens, num_rows)
        return self.head.ops.chunk_logits(self._hidden_TH[at], self._rows_VH, self.head.inv_temperature, out_tV)

    def add(
        self,
        at: slice,
        logits_tV: torch.Tensor,
        lse_t: torch.Tensor,
        logprobs_t: torch.Tensor,
        entropy_t: torch.Tensor,
        dlogprobs_t: torch.Tensor,
        dentropy_t: torch.Tensor | None,
    ) -> None:
        """Turn a chunk's logits into their gradient and multiply it into both gradients. Consumes the logits."""
        head = self.head
        if head.shard.num_rows == 0:
            if self._dhidden_TH is not None:
                self._dhidden_TH[at] = 0
            return
        grad_tV = head.ops.chunk_grad_(
            logits_tV, self._rows_VH.dtype, head.labels_T[at], head.inv_temperature, lse_t, logprobs_t, entropy_t,
            dlogprobs_t, dentropy_t,
        )  # fmt: skip
        if self._dhidden_TH is not None:
            torch.mm(grad_tV, self._rows_VH, out=self._dhidden_TH[at])
        if not self._want_weight:
            return
        first = self._dweight_VH is None
        if first:
            one_chunk = at == slice(0, self._num_tokens)
            self._dweight_VH = torch.empty(self._rows_VH.shape, dtype=self._held_dtype(one_chunk),
                                           device=self._rows_VH.device)  # fmt: skip
        head.ops.weight_grad_(self._dweight_VH, grad_tV, self._hidden_TH[at], first, self._scale or 1.0)

    def _held_dtype(self, one_chunk: bool) -> torch.dtype:
        """fp32 where the sum goes into an fp32 main_grad or over several chunks; else the weight's own."""
        if has_main_grad(self.head.weight):
            return self.head.weight.main_grad.dtype
        return self._rows_VH.dtype if one_chunk else torch.float32

    def hidden_grad(self) -> torch.Tensor | None:
        """Gradient of this rank's hidden states, summed over the group."""
        self._buffer = None
        if self._dhidden_TH is None:
            return None
        return reduce_hidden_grad(self._dhidden_TH, self.head.group, self.head.sequence_parallel)

    def weight_grad(self) -> torch.Tensor | None:
        """Gradient of the shard's true rows; None when it is not wanted, or is in main_grad already."""
        if self._scale is not None or not self._want_weight:
            return None
        return torch.zeros_like(self._rows_VH) if self._dweight_VH is None else self._dweight_VH


class ChunkSink:
    """Per-token results and the loss's sums, filled chunk by chunk."""

    def __init__(
        self, head: OutputLayer, token_loss: TokenLoss, hidden_TH: torch.Tensor, stats: dict[str, torch.Tensor]
    ) -> None:
        self._head, self._token_loss, self._stats = head, token_loss, stats
        self.loss = torch.zeros((), device=hidden_TH.device)
        self.logprobs_T, self.entropy_T = torch.zeros(2, hidden_TH.shape[0], device=hidden_TH.device)

    def put(self, at: slice, part: Partial) -> tuple[torch.Tensor, ...]:
        """Take the loss of a range; returns what `Gradients.add` needs of it, [t] each."""
        keep_t = self._head.keep_T[at]
        logprobs_t, entropy_t, lse_t = self._head.finish(part, keep_t)
        self.logprobs_T[at], self.entropy_T[at] = logprobs_t, entropy_t
        terms = self._token_loss.terms(logprobs_t, entropy_t, at)
        self.loss += terms.loss
        for name, total in terms.stats.items():
            self._stats[name] = self._stats[name] + total if name in self._stats else total
        dentropy_t = None if terms.dentropy_t is None else torch.where(keep_t, terms.dentropy_t, 0.0)
        return lse_t, logprobs_t, entropy_t, torch.where(keep_t, terms.dlogprobs_t, 0.0), dentropy_t

    def with_gradient(self, grads: Gradients, at: slice) -> None:
        """Take the loss of a range and add its gradients."""
        head = self._head
        if at.stop - at.start <= grads.limit:
            logits_tV = grads.logits(at)
            part = head.chunk_partial(logits_tV, at)
            grads.add(at, logits_tV, *self.put(at, part))
            return
        part = head.partial(grads.hidden(at), at)
        whole = self.put(at, part)
        for piece in grads.pieces(at.start, at.stop):
            local = slice(piece.start - at.start, piece.stop - at.start)
            grads.add(piece, grads.logits(piece), *(None if x is None else x[local] for x in whole))


def has_main_grad(weight: torch.Tensor) -> bool:
    """True when Megatron's DDP keeps this parameter's gradient in a buffer of its own."""
    return getattr(weight, "main_grad", None) is not None


def weight_grad_out(
    weight: torch.Tensor, grad_VH: torch.Tensor | None, upstream: torch.Tensor | None
) -> torch.Tensor | None:
    """Hand the weight's gradient over: into main_grad as Megatron's DDP hook expects, else as autograd's own.

    grad_VH covers the shard's true rows; None means not wanted, or added before. DDP's hook adds `param.grad` to
    main_grad unless `grad_added_to_main_grad`, and wants some param.grad to be there; `zero_out_wgrad` marks a weight
    tied to the embedding, whose param.grad is counted all the same (megatron/core/tensor_parallel/layers.py).
    """
    if not weight.requires_grad:
        return None
    if not has_main_grad(weight):
        return None if grad_VH is None else _padded(weight, grad_VH if upstream is None else grad_VH.mul_(upstream))
    if grad_VH is not None:
        rows_VH = weight.main_grad[: grad_VH.shape[0]]
        if upstream is None:
            rows_VH.add_(grad_VH)
        else:
            rows_VH.addcmul_(grad_VH, upstream.to(grad_VH.dtype))
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    zeroed = getattr(weight, "zero_out_wgrad", False)
    return torch.zeros_like(weight) if zeroed else torch.empty_like(weight)


def _padded(weight: torch.Tensor, grad_VH: torch.Tensor) -> torch.Tensor:
    grad_VH = grad_VH.to(weight.dtype)
    if grad_VH.shape[0] == weight.shape[0]:
        return grad_VH
    whole_VH = torch.zeros_like(weight)
    whole_VH[: grad_VH.shape[0]] = grad_VH
    return whole_VH
