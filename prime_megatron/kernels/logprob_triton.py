"""The vocabulary head on GPUs: the GEMM is cuBLAS's, a chunk of tokens at a time with fp32 output; one streaming
Triton pass over the chunk gives lse, entropy and label logit, and one turns logits into their gradient.

At these sizes the head is compute bound by far, and a Triton GEMM loses up to half of cuBLAS's speed, so only the
epilogue is ours. Logits stay in fp32: a rounded label logit against an exact lse would put log-probs above zero.
Kernels run under TRITON_INTERPRET=1 on CPU tensors, where the products are plain fp32.
"""

import math

import torch
import triton
import triton.language as tl

from prime_megatron.kernels import logprob_cpu
from prime_megatron.kernels.head_chunks import SCORE_BYTES, TRAIN_BYTES, tokens_within
from prime_megatron.kernels.vocab_parallel import Partial

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
STATS_BLOCK, STATS_WARPS = 2048, 4
GRAD_BLOCK, GRAD_WARPS = 4096, 8


@triton.jit
def _stats_kernel(
    logits_ptr, labels_ptr, lse_ptr, mean_ptr, target_ptr, scale, num_columns: tl.constexpr,
    ENTROPY: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, LN_2: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token. Sums powers of two without a maximum; a row that leaves the safe range is read again."""
    row = tl.program_id(0).to(tl.int64)
    base = logits_ptr + row * num_columns
    lanes = tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], tl.float32)
    weighted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, num_columns, BLOCK):
        inside = start + lanes < num_columns
        x = tl.load(base + start + lanes, mask=inside, other=0.0) * scale
        e = tl.where(inside, tl.exp2(x), 0.0)
        sums += e
        if ENTROPY:
            weighted += e * x
    total = tl.sum(sums, 0)
    moment = tl.sum(weighted, 0)
    shift = 0.0
    if not ((total >= LOW) & (total <= HIGH)):
        highs = tl.full([BLOCK], -float("inf"), tl.float32)
        for start in range(0, num_columns, BLOCK):
            inside = start + lanes < num_columns
            highs = tl.maximum(highs, tl.load(base + start + lanes, mask=inside, other=-float("inf")) * scale)
        shift = tl.max(highs, 0)
        sums = tl.zeros([BLOCK], tl.float32)
        weighted = tl.zeros([BLOCK], tl.float32)
        for start in range(0, num_columns, BLOCK):
            inside = start + lanes < num_columns
            u = tl.load(base + start + lanes, mask=inside, other=0.0) * scale - shift
            e = tl.where(inside, tl.exp2(tl.minimum(u, 0.0)), 0.0)
            sums += e
            weighted += e * u
        total = tl.sum(sums, 0)
        moment = tl.sum(weighted, 0)
    tl.store(lse_ptr + row, (shift + tl.log2(total)) * LN_2)
    tl.store(mean_ptr + row, (shift + moment / total) * LN_2)
    label = tl.load(labels_ptr + row)
    logit = tl.load(base + tl.maximum(label, 0)) * scale * LN_2
    tl.store(target_ptr + row, tl.where(label >= 0, logit, 0.0))


@triton.jit
def _grad_kernel(
    logits_ptr, grad_ptr, labels_ptr, lse2_ptr, flat_ptr, slope_ptr, label_ptr, scale, num_columns: tl.constexpr,
    grad_stride: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token: p * (flat + slope * log2 p), plus the label's own term.

    The gradient may lie over the row's own logits, in as wide or in narrower elements: a store never reaches past the
    blocks read so far, and the barrier keeps it behind its own block's loads.
    """
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    lse2, flat, label = tl.load(lse2_ptr + row), tl.load(flat_ptr + row), tl.load(labels_ptr + row)
    slope, extra = tl.load(slope_ptr + row), tl.load(label_ptr + row)
    for start in range(0, num_columns, BLOCK):
        columns = start + lanes
        inside = columns < num_columns
        u = tl.load(logits_ptr + row * num_columns + columns, mask=inside, other=0.0) * scale - lse2
        factor = flat
        if SLOPE:
            factor = flat + slope * u
        grad = tl.exp2(u) * factor + tl.where(columns == label, extra, 0.0)
        tl.debug_barrier()
        tl.store(grad_ptr + row * grad_stride + columns, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def chunk_tokens(num_tokens: int, num_rows: int, dtype: torch.dtype) -> int:
    """Tokens whose fp32 logits are held at once for the gradient."""
    return tokens_within(TRAIN_BYTES, num_tokens, num_rows)


def logits_buffer(num_elements: int, hidden_TH: torch.Tensor) -> torch.Tensor:
    """A flat fp32 buffer for `chunk_logits`."""
    return torch.empty(num_elements, dtype=torch.float32, device=hidden_TH.device)


def chunk_logits(
    hidden_tH: torch.Tensor, weight_VH: torch.Tensor, inv_temperature: float, out: torch.Tensor
) -> torch.Tensor:
    """Raw logits of a chunk into `out`, fp32 [t, V]; the kernels apply the temperature."""
    if hidden_tH.dtype == torch.float32:
        return torch.mm(hidden_tH, weight_VH.t(), out=out)
    if hidden_tH.is_cuda:
        return torch.mm(hidden_tH, weight_VH.t(), out_dtype=torch.float32, out=out)
    return torch.mm(hidden_tH.float(), weight_VH.t().float(), out=out)


def chunk_partial(logits_tV: torch.Tensor, labels_t: torch.Tensor, inv_temperature: float, entropy: bool) -> Partial:
    """Partial of the tokens of a chunk from its logits, read once."""
    num_tokens, num_columns = logits_tV.shape
    lse_t, mean_t, target_t = torch.empty(3, num_tokens, dtype=torch.float32, device=logits_tV.device)
    _stats_kernel[(num_tokens,)](
        logits_tV, labels_t, lse_t, mean_t, target_t, inv_temperature * LOG2E, num_columns,
        ENTROPY=entropy, LOW=logprob_cpu.LOW, HIGH=logprob_cpu.HIGH, LN_2=LN2,
        BLOCK=min(STATS_BLOCK, triton.next_power_of_2(num_columns)), num_warps=STATS_WARPS,
    )  # fmt: skip
    return Partial(lse_t, mean_t, target_t)


def partial(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, inv_temperature: float, entropy: bool
) -> Partial:
    """Partial of every token, one chunk's logits at a time."""
    num_tokens, num_rows = hidden_TH.shape[0], weight_VH.shape[0]
    step = tokens_within(SCORE_BYTES, num_tokens, num_rows)
    buffer = logits_buffer(step * num_rows, hidden_TH)
    parts = []
    for begin in range(0, num_tokens, step):
        hidden_tH = hidden_TH[begin : begin + step]
        out_tV = buffer[: hidden_tH.shape[0] * num_rows].view(-1, num_rows)
        logits_tV = chunk_logits(hidden_tH, weight_VH, inv_temperature, out_tV)
        labels_t = labels_T[begin : begin + step]
        parts.append(chunk_partial(logits_tV, labels_t, inv_temperature, entropy))
    return Partial(*(torch.cat([getattr(p, name) for p in parts]) for name in ("lse", "mean", "target")))


def chunk_grad_(
    logits_tV: torch.Tensor,
    dtype: torch.dtype,
    labels_t: torch.Tensor,
    inv_temperature: float,
    lse_t: torch.Tensor,
    logprobs_t: torch.Tensor,
    entropy_t: torch.Tensor,
    dlogprobs_t: torch.Tensor,
    dentropy_t: torch.Tensor | None,
) -> torch.Tensor:
    """The loss's gradient in the raw logits, of the weight's dtype, over the logits: a bf16 row fills the first half
    of its fp32 row. See logprob_cpu.chunk_grad_.
    """
    num_tokens, num_columns = logits_tV.shape
    flat_t, slope_t = -dlogprobs_t * inv_temperature, dlogprobs_t
    if dentropy_t is not None:
        flat_t = flat_t - dentropy_t * entropy_t * inv_temperature
        slope_t = dentropy_t * (-LN2 * inv_temperature)
    grad_tV = logits_tV
    if logits_tV.is_cuda and dtype != torch.float32:
        grad_tV = logits_tV.view(dtype)[:, :num_columns]
    _grad_kernel[(num_tokens,)](
        logits_tV, grad_tV, labels_t, lse_t * LOG2E, flat_t, slope_t, dlogprobs_t * inv_temperature,
        inv_temperature * LOG2E, num_columns, grad_tV.stride(0), SLOPE=dentropy_t is not None,
        BLOCK=min(GRAD_BLOCK, triton.next_power_of_2(num_columns)), num_warps=GRAD_WARPS,
    )  # fmt: skip
    # The interpreter truncates where hardware rounds to bf16: on CPU the kernel writes fp32 and torch rounds.
    return grad_tV.to(dtype)


def weight_grad_(
    grad_weight_VH: torch.Tensor, grad_tV: torch.Tensor, hidden_tH: torch.Tensor, first: bool, scale: float = 1.0
) -> None:
    """grad_weight (+)= scale * grad.T @ hidden; `first` overwrites. bf16 products are summed in fp32 by cuBLAS."""
    if grad_tV.is_cuda and grad_weight_VH.dtype != grad_tV.dtype:
        torch.addmm(grad_weight_VH, grad_tV.t(), hidden_tH, out_dtype=grad_weight_VH.dtype,
                    beta=0.0 if first else 1.0, alpha=scale, out=grad_weight_VH)  # fmt: skip
    else:
        logprob_cpu.weight_grad_(grad_weight_VH, grad_tV, hidden_tH, first, scale)
