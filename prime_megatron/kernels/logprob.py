"""Hidden states and the vocabulary projection to token log-probabilities and entropies, without [T, V] logits.

Shape letters: T tokens, t tokens of a chunk, H hidden size, V rows of this rank's vocabulary shard.

`token_logprobs` is differentiable for any loss: its backward multiplies the logits out again (4 products in all).
`fused_logprob_loss` takes a loss whose derivative is known in closed form from the log-probability itself, so that
the gradient is made while the logits are there (3 products), as QuACK and Liger do for cross-entropy; here it also
serves PPO with entropy and KL terms and the PRM's sequence-level cross-entropy.

impl: "triton" (the library's GEMM a chunk of tokens at a time, fp32 out, one streaming pass over it), "torch"
(tiles that fit a CPU's cache), "naive" (the definition), "auto" (triton on a GPU, torch elsewhere).
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from prime_megatron import device
from prime_megatron.algo.token_loss import TokenLoss
from prime_megatron.kernels import logprob_cpu
from prime_megatron.kernels.logprob_chunks import ChunkSink, Gradients, OutputLayer, weight_grad_out
from prime_megatron.kernels.logprob_naive import naive_logprobs
from prime_megatron.kernels.vocab_parallel import (
    IGNORE_LABEL,
    Shard,
    group_size,
)


@dataclass(frozen=True)
class HeadOutput:
    """What the head returns: fp32 [T] in nats; entropy_T is None where it was not asked for."""

    logprobs_T: torch.Tensor
    entropy_T: torch.Tensor | None


@dataclass(frozen=True)
class LossResult:
    """A loss over tokens: `loss` is the differentiable fp32 scalar sum; the rest is detached.

    stats holds fp32 scalar sums over the loss's tokens, named by the loss.
    """

    loss: torch.Tensor
    logprobs_T: torch.Tensor
    entropy_T: torch.Tensor | None
    stats: dict[str, torch.Tensor]


def token_logprobs(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_T: torch.Tensor,
    *,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    ignore_mask: torch.Tensor | None = None,
    sequence_parallel: bool = False,
    entropy: bool = True,
    impl: str = "auto",
) -> HeadOutput:
    """log p(label) and entropy of softmax(hidden @ weight.T / temperature), differentiable in hidden and weight.

    hidden_TH: fp32 or bf16 [T, H], the same on every rank of `group`; [T / tp, H] with `sequence_parallel`.
    weight_VH: same dtype, this rank's rows of the projection; `vocab_size` is the true vocabulary, rows at or
        beyond it are padding and never count. Its gradient goes into `weight.main_grad` where Megatron made one.
    labels_T: global token ids, int [T]; -100, or True in `ignore_mask` [T], gives 0, 0 and no gradient.
    Raises ValueError for shapes, dtypes or an impl that do not fit together.
    """
    head = _head(hidden_TH, weight_VH, labels_T, temperature, group, vocab_size, ignore_mask, sequence_parallel,
                 entropy, impl)  # fmt: skip
    if impl == "naive":
        logprobs_T, entropy_T = _naive(hidden_TH, weight_VH, labels_T, head, temperature)
    elif torch.is_grad_enabled() and (hidden_TH.requires_grad or weight_VH.requires_grad):
        logprobs_T, entropy_T = _Recompute.apply(hidden_TH, weight_VH, head)
    else:
        part = head.partial(head.gathered(hidden_TH), slice(None))
        logprobs_T, entropy_T, _ = head.finish(part, head.keep_T)
    return HeadOutput(logprobs_T, entropy_T if entropy else None)


def fused_logprob_loss(
    hidden_TH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_T: torch.Tensor,
    token_loss: TokenLoss,
    *,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    vocab_size: int | None = None,
    ignore_mask: torch.Tensor | None = None,
    sequence_parallel: bool = False,
    grad_scale: float | None = None,
    impl: str = "auto",
) -> LossResult:
    """Sum of `token_loss` over tokens, its gradient already made when this returns (no logits kept, 3 products).

    Arguments as in `token_logprobs`; a token that is ignored here must carry no weight in `token_loss`. Under
    no_grad, or with nothing to differentiate, only the forward runs.

    The backward multiplies the stored gradients by the upstream derivative, so `(result.loss * c).backward()` is
    right for any c. Until then the weight's gradient [V, H] is held, in fp32 where main_grad is fp32 or tokens take
    several chunks. `grad_scale` avoids that buffer: the caller promises that the upstream derivative will be exactly
    this number, and the weight's gradient goes into `weight.main_grad` at once, chunk by chunk; the backward asserts
    the promise. It needs main_grad, and a backward for every forward.
    """
    entropy = token_loss.needs_entropy
    head = _head(hidden_TH, weight_VH, labels_T, temperature, group, vocab_size, ignore_mask, sequence_parallel,
                 entropy, impl)  # fmt: skip
    if grad_scale is not None and getattr(weight_VH, "main_grad", None) is None:
        raise ValueError("grad_scale needs a weight with main_grad")
    if impl == "naive":
        logprobs_T, entropy_T = _naive(hidden_TH, weight_VH, labels_T, head, temperature)
        loss = token_loss.plain(logprobs_T, entropy_T)
        stats = token_loss.terms(logprobs_T.detach(), entropy_T.detach(), slice(0, labels_T.shape[0])).stats
        return LossResult(loss, logprobs_T.detach(), entropy_T.detach() if entropy else None, stats)
    stats: dict[str, torch.Tensor] = {}
    wanted = tuple(torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden_TH, weight_VH))
    loss, logprobs_T, entropy_T = _GradInForward.apply(hidden_TH, weight_VH, head, token_loss, wanted, grad_scale,
                                                       stats)  # fmt: skip
    if not labels_T.shape[0]:  # no chunk ran: a rank without work still names the statistics that the others sum
        stats = token_loss.terms(logprobs_T, logprobs_T, slice(0, 0)).stats
    return LossResult(loss, logprobs_T, entropy_T if entropy else None, stats)


def _head(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels_T: torch.Tensor,
    temperature: float,
    group: dist.ProcessGroup | None,
    vocab_size: int | None,
    ignore_mask: torch.Tensor | None,
    sequence_parallel: bool,
    entropy: bool,
    impl: str,
) -> OutputLayer:
    num_tokens = hidden.shape[0] * (group_size(group) if sequence_parallel else 1)
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden [T, H] and weight [V, H] do not match: {tuple(hidden.shape)}, {tuple(weight.shape)}")
    if labels_T.shape != (num_tokens,):
        raise ValueError(f"labels must be [{num_tokens}], one a token, not {list(labels_T.shape)}")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight is {weight.dtype}: they must agree")
    if impl != "naive" and hidden.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"the head takes fp32 or bf16, not {hidden.dtype}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    if impl == "naive" and group_size(group) > 1:
        raise ValueError("impl='naive' is the definition on a whole vocabulary: it takes no group")
    keep_T = labels_T != IGNORE_LABEL
    if ignore_mask is not None:
        keep_T = keep_T & ~ignore_mask
    shard = Shard.of(weight.shape[0], vocab_size, group)
    local_T = torch.where(keep_T, shard.local_labels(labels_T), -1)
    return OutputLayer(_ops(impl, hidden), shard, weight, local_T, keep_T, 1.0 / temperature, group,
                 sequence_parallel and group_size(group) > 1, entropy)  # fmt: skip


def _ops(impl: str, hidden: torch.Tensor) -> ModuleType:
    if impl not in ("auto", "triton", "torch", "naive"):
        raise ValueError(f"impl must be auto, triton, torch or naive, not {impl!r}")
    if impl == "triton" or (impl == "auto" and hidden.is_cuda and device.has_triton()):
        if not device.has_triton():
            raise ValueError("impl='triton' needs a GPU, or TRITON_INTERPRET=1 set before the first import")
        from prime_megatron.kernels import logprob_triton  # Triton is only there on GPUs and in tests

        return logprob_triton
    return logprob_cpu


def _naive(
    hidden: torch.Tensor, weight: torch.Tensor, labels_T: torch.Tensor, head: OutputLayer, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs_T, entropy_T = naive_logprobs(hidden, weight[: head.shard.num_rows], head.labels_T.clamp(min=0),
                                           temperature)  # fmt: skip
    return torch.where(head.keep_T, logprobs_T, 0.0), torch.where(head.keep_T, entropy_T, 0.0)


class _Recompute(torch.autograd.Function):
    """Forward keeps lse and entropy per token; backward multiplies the logits out again, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, head: OutputLayer) -> tuple[torch.Tensor, ...]:
        part = head.partial(head.gathered(hidden), slice(None))
        logprobs_T, entropy_T, lse_T = head.finish(part, head.keep_T)
        ctx.head = head
        ctx.save_for_backward(hidden, lse_T, logprobs_T, entropy_T)
        ctx.set_materialize_grads(False)
        return logprobs_T, entropy_T

    @staticmethod
    def backward(ctx: Any, dlogprobs_T: torch.Tensor | None, dentropy_T: torch.Tensor | None) -> tuple[Any, ...]:
        head: OutputLayer = ctx.head
        hidden, lse_T, logprobs_T, entropy_T = ctx.saved_tensors
        hidden_TH = head.gathered(hidden)
        dlogprobs_T = torch.zeros_like(lse_T) if dlogprobs_T is None else torch.where(head.keep_T, dlogprobs_T, 0.0)
        if dentropy_T is not None:
            dentropy_T = torch.where(head.keep_T, dentropy_T, 0.0)
        grads = Gradients(head, hidden_TH, *ctx.needs_input_grad[:2], scale=None)
        for begin, end in grads.chunks(None):
            at = slice(begin, end)
            dentropy_t = None if dentropy_T is None else dentropy_T[at]
            grads.add(at, grads.logits(at), lse_T[at], logprobs_T[at], entropy_T[at], dlogprobs_T[at], dentropy_t)
        return grads.hidden_grad(), weight_grad_out(head.weight, grads.weight_grad(), None), None


class _GradInForward(torch.autograd.Function):
    """The whole loss and its gradients in the forward; the backward scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        head: OutputLayer,
        token_loss: TokenLoss,
        wanted: tuple[bool, bool],
        grad_scale: float | None,
        stats: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        hidden_TH = head.gathered(hidden)
        sink = ChunkSink(head, token_loss, hidden_TH, stats)
        if any(wanted):
            grads = Gradients(head, hidden_TH, *wanted, scale=grad_scale)
            for begin, end in grads.chunks(token_loss.boundaries):
                sink.with_gradient(grads, slice(begin, end))
            ctx.head, ctx.grad_scale = head, grad_scale
            ctx.hidden_grad, ctx.weight_grad = grads.hidden_grad(), grads.weight_grad()
        else:
            everything = slice(0, hidden_TH.shape[0])
            sink.put(everything, head.partial(hidden_TH, everything))
        ctx.mark_non_differentiable(sink.logprobs_T, sink.entropy_T)
        return sink.loss, sink.logprobs_T, sink.entropy_T

    @staticmethod
    def backward(ctx: Any, dloss: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.grad_scale is not None:
            torch._assert_async(dloss == ctx.grad_scale, "the upstream derivative is not the promised grad_scale")
        hidden_grad = ctx.hidden_grad
        if hidden_grad is not None and ctx.grad_scale != 1.0:
            hidden_grad.mul_(dloss)
        weight_grad = weight_grad_out(ctx.head.weight, ctx.weight_grad, dloss)
        ctx.hidden_grad = ctx.weight_grad = None  # [T, H] and [V, H]: gone as soon as they are handed over
        return hidden_grad, weight_grad, None, None, None, None, None
