"""The vocabulary head in tiles that stay in a CPU's cache; plain torch, so it also runs where Triton is missing.

Everything is in powers of two: torch's exp2 is three times as fast as its exp, and in fp32 the factor log2(e) /
temperature costs nothing inside the product. torch gives bf16 products in bf16 only, so there the factor comes after
the rounding: logits then are the very numbers that the naive bf16 form has, and so are its errors. (Rounded in base 2
they were up to 1.7 times as coarse; an exact logit of the label alone is worse where all logits share one rounding.)
Sums of 2**x are taken without subtracting a maximum first; rows whose sum leaves the safe range (very large or very
negative logits) are done again with one.
"""

import contextlib
import math
import mmap
from collections.abc import Callable
from dataclasses import dataclass

import torch

from prime_megatron.kernels.vocab_parallel import Partial

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
TILE_ELEMENTS = 1024 * 1024  # fp32: 4 MB, a share of the last-level cache
MAX_ROWS = 2048
BLOCK_ELEMENTS = 256 * 1024  # fp32: 1 MB, what the elementwise passes work on
MIN_COLUMNS = 512
CHUNK_BYTES = 128 << 20  # logits of one gradient chunk
HUGE_BYTES = 2 << 20  # the size of a huge page
# Beyond these a row's sum of powers may have overflowed, or have lost terms to underflow: 2**-60 leaves terms down
# to 2**-66 of the sum in normal fp32 range, and 2**120 leaves room for sum x 2**x.
LOW, HIGH = 2.0**-60, 2.0**118


def chunk_tokens(num_tokens: int, num_rows: int, dtype: torch.dtype) -> int:
    """Tokens whose logits are held at once for the gradient."""
    return max(1, min(num_tokens, MAX_ROWS, CHUNK_BYTES // (max(num_rows, 1) * dtype.itemsize)))


def _split_scale(dtype: torch.dtype, scale: float) -> tuple[float, float]:
    """(factor inside the product, factor on the stored logits): bf16 is rounded before it is scaled."""
    return (1.0, scale) if dtype == torch.bfloat16 else (scale, 1.0)


def _multiply(hidden_tH: torch.Tensor, weight_cH: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    """scale * hidden @ weight.T"""
    if scale == 1.0:
        return torch.mm(hidden_tH, weight_cH.t(), out=out)
    return out.addmm_(hidden_tH, weight_cH.t(), beta=0.0, alpha=scale)


def _spans(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Columns of the tiles of a product with this many rows."""
    width = max(MIN_COLUMNS, TILE_ELEMENTS // max(num_rows, 1))
    return [(begin, min(begin + width, num_columns)) for begin in range(0, num_columns, width)]


@dataclass(frozen=True)
class _Block:
    """Rows `at` of stored logits, small enough for the cache that a core has to itself.

    stored: the logits; x: where they lie in fp32 (the same memory for fp32 logits); e: fp32 scratch of the shape.
    """

    at: slice
    stored: torch.Tensor
    x: torch.Tensor
    e: torch.Tensor

    def load(self, scale: float) -> None:
        """Fill x with the scaled logits; fp32 logits are scaled when they are made."""
        if self.x is not self.stored:
            self.x.copy_(self.stored).mul_(scale)


def _blocks(logits_tc: torch.Tensor) -> list[_Block]:
    num_rows, num_columns = logits_tc.shape
    step = max(1, min(num_rows, BLOCK_ELEMENTS // num_columns))
    narrow = logits_tc.dtype == torch.bfloat16
    x_rc, e_rc = (torch.empty(step if used else 0, num_columns, device=logits_tc.device) for used in (narrow, True))
    blocks = []
    for begin in range(0, num_rows, step):
        at = slice(begin, min(begin + step, num_rows))
        stored_rc, size = logits_tc[at], at.stop - begin
        blocks.append(_Block(at, stored_rc, x_rc[:size] if narrow else stored_rc, e_rc[:size]))
    return blocks


def _sums(blocks: list[_Block], scale: float, sum_t: torch.Tensor, weighted_t: torch.Tensor, entropy: bool) -> None:
    """Set the rows' sum of 2**x, and of x 2**x for the entropy."""
    for block in blocks:
        block.load(scale)
        torch.exp2(block.x, out=block.e)
        torch.sum(block.e, 1, out=sum_t[block.at])
        if entropy:
            torch.sum(block.e.mul_(block.x), 1, out=weighted_t[block.at])


def _take_target(x_tc: torch.Tensor, labels_t: torch.Tensor, begin: int, end: int, target_t: torch.Tensor) -> None:
    inside_t = (labels_t >= begin) & (labels_t < end)
    picked_t = x_tc.gather(1, (labels_t - begin).clamp(0, end - begin - 1)[:, None]).squeeze(1).float()
    torch.where(inside_t, picked_t, target_t, out=target_t)


def _shifted_sums(
    tile_of: Callable[[int, int], torch.Tensor], num_rows: int, num_columns: int, device: torch.device
) -> tuple[torch.Tensor, ...]:
    """The running maximum m, sum of 2**(x-m) and sum of (x-m) 2**(x-m): safe for any finite logits."""
    max_t = torch.full((num_rows,), -torch.inf, device=device)
    sum_t, weighted_t = torch.zeros(2, num_rows, device=device)
    for begin, end in _spans(num_rows, num_columns):
        x_tc = tile_of(begin, end)
        new_t = torch.maximum(max_t, x_tc.amax(1))
        drop_t = torch.where(max_t == -torch.inf, 0.0, max_t - new_t)
        decay_t = torch.exp2(drop_t)
        u_tc = x_tc - new_t[:, None]
        e_tc = torch.exp2(u_tc)
        weighted_t = (weighted_t + sum_t * drop_t) * decay_t + (e_tc * u_tc).sum(1)
        sum_t = sum_t * decay_t + e_tc.sum(1)
        max_t = new_t
    return max_t, sum_t, weighted_t


def _finish(sums: tuple[torch.Tensor, ...], again_of: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Partial:
    """Partial in nats from (sum, weighted sum, label's logit) in base 2.

    again_of(rows): the shifted sums of rows whose plain ones cannot be trusted.
    """
    sum_t, weighted_t, target_t = sums
    lse_t, mean_t = torch.log2(sum_t), weighted_t / sum_t
    good_t = (sum_t >= LOW) & (sum_t <= HIGH)
    if not bool(good_t.all()):
        rows = (~good_t).nonzero().squeeze(1)
        max_t, sum_t, weighted_t = again_of(rows)
        lse_t[rows] = max_t + torch.log2(sum_t)
        mean_t[rows] = max_t + weighted_t / sum_t
    return Partial(lse_t.mul_(LN2), mean_t.mul_(LN2), target_t.mul_(LN2))


def partial(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, inv_temperature: float, entropy: bool
) -> Partial:
    """Partial of every token, one logit tile at a time: extra memory is the tile and two blocks of its rows."""
    parts = []
    for first in range(0, hidden_TH.shape[0], MAX_ROWS):
        at = slice(first, first + MAX_ROWS)
        parts.append(_tiled_partial(hidden_TH[at], weight_VH, labels_T[at], LOG2E * inv_temperature, entropy))
    if len(parts) == 1:
        return parts[0]
    return Partial(*(torch.cat([getattr(p, name) for p in parts]) for name in ("lse", "mean", "target")))


def _tiled_partial(
    hidden_tH: torch.Tensor, weight_VH: torch.Tensor, labels_t: torch.Tensor, scale: float, entropy: bool
) -> Partial:
    inside, after = _split_scale(hidden_tH.dtype, scale)
    num_rows, spans = hidden_tH.shape[0], _spans(hidden_tH.shape[0], weight_VH.shape[0])
    buffer = logits_buffer(num_rows * (spans[0][1] - spans[0][0]), hidden_tH)
    sums_kt, weighted_kt = torch.zeros(2, len(spans), num_rows, device=hidden_tH.device)
    target_t = torch.zeros(num_rows, device=hidden_tH.device)
    blocks: list[_Block] = []
    for k, (begin, end) in enumerate(spans):
        tile_tc = buffer[: num_rows * (end - begin)].view(num_rows, end - begin)
        _multiply(hidden_tH, weight_VH[begin:end], inside, tile_tc)
        if not blocks or end - begin != blocks[0].e.shape[1]:
            blocks = _blocks(tile_tc)
        _sums(blocks, after, sums_kt[k], weighted_kt[k], entropy)
        _take_target(tile_tc, labels_t, begin, end, target_t)

    def again_of(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        few_tH = hidden_tH[rows]

        def tile_of(b: int, e: int) -> torch.Tensor:
            return _multiply(few_tH, weight_VH[b:e], inside, few_tH.new_empty(rows.numel(), e - b)).float().mul_(after)

        return _shifted_sums(tile_of, rows.numel(), weight_VH.shape[0], rows.device)

    return _finish((sums_kt.sum(0), weighted_kt.sum(0), target_t.mul_(after)), again_of)


def logits_buffer(num_elements: int, hidden_TH: torch.Tensor) -> torch.Tensor:
    """A flat buffer for logits, on Linux in huge pages: first touches of 128 MB in small ones take as long as three
    percent of the products."""
    num_bytes = num_elements * hidden_TH.dtype.itemsize
    if hidden_TH.is_cuda or num_bytes < HUGE_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(num_elements, dtype=hidden_TH.dtype, device=hidden_TH.device)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=hidden_TH.dtype)  # holds on to the pages


def chunk_logits(
    hidden_tH: torch.Tensor, weight_VH: torch.Tensor, inv_temperature: float, out: torch.Tensor
) -> torch.Tensor:
    """Logits of a chunk into `out` [t, V] of the input's dtype: fp32 ones tempered and in base 2, bf16 ones raw."""
    return _multiply(hidden_tH, weight_VH, _split_scale(out.dtype, LOG2E * inv_temperature)[0], out)


def chunk_partial(logits_tV: torch.Tensor, labels_t: torch.Tensor, inv_temperature: float, entropy: bool) -> Partial:
    """Partial of the tokens of a chunk from its stored logits, a few whole rows at a time."""
    after = _split_scale(logits_tV.dtype, LOG2E * inv_temperature)[1]
    sum_t, weighted_t = torch.zeros(2, logits_tV.shape[0], device=logits_tV.device)
    _sums(_blocks(logits_tV), after, sum_t, weighted_t, entropy)
    target_t = logits_tV.gather(1, labels_t.clamp(min=0)[:, None]).squeeze(1).float().mul_(after)

    def again_of(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        def tile_of(b: int, e: int) -> torch.Tensor:
            return logits_tV[rows, b:e].float().mul_(after)

        return _shifted_sums(tile_of, rows.numel(), logits_tV.shape[1], rows.device)

    return _finish((sum_t, weighted_t, torch.where(labels_t >= 0, target_t, 0.0)), again_of)


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
    """Overwrite stored logits, of the weight's `dtype`, with the loss's gradient in the raw logits; returns them.

    d/dz_j = (dlogp * [j = y] - p_j * (dlogp + dentropy * (log p_j + entropy))) / temperature, from
    dlogp/dx_j = [j = y] - p_j and dentropy/dx_j = -p_j (log p_j + entropy).
    """
    assert logits_tV.dtype == dtype
    flat_t, slope_t1 = -dlogprobs_t * inv_temperature, None
    label_t = dlogprobs_t * inv_temperature
    if dentropy_t is None:
        label_t = label_t + torch.exp(logprobs_t) * flat_t
    else:
        flat_t = flat_t - dentropy_t * entropy_t * inv_temperature
        slope_t1 = (dentropy_t * (-LN2 * inv_temperature))[:, None]
        label_t = label_t + torch.exp(logprobs_t) * (flat_t - dentropy_t * logprobs_t * inv_temperature)
    lse_t1, flat_t1 = (lse_t * LOG2E)[:, None], flat_t[:, None]
    after = _split_scale(dtype, LOG2E * inv_temperature)[1]
    for block in _blocks(logits_tV):
        block.load(after)
        u_rV = block.x.sub_(lse_t1[block.at])  # in fp32 this is the chunk itself
        torch.exp2(u_rV, out=block.e)
        # Not addcmul: with broadcast operands it is five times as slow as these two.
        factor = flat_t1[block.at] if slope_t1 is None else u_rV.mul_(slope_t1[block.at]).add_(flat_t1[block.at])
        if block.x is block.stored:
            torch.mul(block.e, factor, out=block.stored)
        else:
            block.stored.copy_(block.e.mul_(factor))
    # The label's entry is 1 - p of the log-probability itself, which cannot cancel.
    # Not scatter_: in bf16 it goes over the whole tensor.
    cells = torch.arange(labels_t.shape[0], device=labels_t.device), labels_t.clamp(min=0)
    logits_tV[cells] = torch.where(labels_t >= 0, label_t.to(dtype), logits_tV[cells])
    return logits_tV


def weight_grad_(
    grad_weight_VH: torch.Tensor, grad_tV: torch.Tensor, hidden_tH: torch.Tensor, first: bool, scale: float = 1.0
) -> None:
    """grad_weight (+)= scale * grad.T @ hidden; `first` overwrites. An fp32 sum of bf16 products goes in row tiles."""
    if grad_weight_VH.dtype == grad_tV.dtype:
        grad_weight_VH.addmm_(grad_tV.t(), hidden_tH, beta=0.0 if first else 1.0, alpha=scale)
        return
    step = max(1, TILE_ELEMENTS // hidden_tH.shape[1])
    buffer = hidden_tH.new_empty(min(step, grad_weight_VH.shape[0]), hidden_tH.shape[1])
    for begin in range(0, grad_weight_VH.shape[0], step):
        rows_cH = grad_weight_VH[begin : begin + step]
        product_cH = torch.mm(grad_tV[:, begin : begin + step].t(), hidden_tH, out=buffer[: rows_cH.shape[0]])
        if first:
            rows_cH.copy_(product_cH).mul_(scale)
        else:
            rows_cH.add_(product_cH, alpha=scale)
