"""The vocabulary head in tiles that stay in a CPU's cache; plain torch, so it also runs where Triton is missing.

Everything is in powers of two: torch's exp2 is four times as fast as its exp, and in fp32 the factor log2(e) /
temperature costs nothing inside the product. Sums of 2**x are taken without subtracting a maximum first; rows whose
sum leaves the safe range (very large or very negative logits) are done again with one. torch gives bf16 products in
bf16 only, so there the label's logit is made again in fp32 and takes its rounded self's place in every sum: the
log-probability is then far better than the naive form's, and still never above zero.
"""

import math
from collections.abc import Callable, Iterator

import torch

from prime_megatron.kernels.vocab_parallel import Partial

LOG2E = math.log2(math.e)
LN2 = math.log(2.0)
TILE_ELEMENTS = 1024 * 1024  # fp32: 4 MB, a share of the last-level cache
MAX_ROWS = 2048
BLOCK_ELEMENTS = 256 * 1024  # fp32: 1 MB, what the elementwise passes work on
MIN_COLUMNS = 512
CHUNK_BYTES = 128 << 20  # logits of one gradient chunk
# Beyond these a row's sum of powers may have overflowed, or have lost terms to underflow: 2**-60 leaves terms down
# to 2**-66 of the sum in normal fp32 range, and 2**120 leaves room for sum x 2**x.
LOW, HIGH = 2.0**-60, 2.0**118


def chunk_tokens(num_tokens: int, num_rows: int, dtype: torch.dtype) -> int:
    """Tokens whose logits are held at once for the gradient."""
    return max(1, min(num_tokens, MAX_ROWS, CHUNK_BYTES // (max(num_rows, 1) * dtype.itemsize)))


def _multiply(hidden_tH: torch.Tensor, weight_cH: torch.Tensor, scale: float, out: torch.Tensor) -> torch.Tensor:
    """scale * hidden @ weight.T; the library scales its fp32 accumulator, so that bf16 is rounded once."""
    return out.addmm_(hidden_tH, weight_cH.t(), beta=0.0, alpha=scale)


def _spans(num_rows: int, num_columns: int) -> list[tuple[int, int]]:
    """Columns of the tiles of a product with this many rows."""
    width = max(MIN_COLUMNS, TILE_ELEMENTS // max(num_rows, 1))
    return [(begin, min(begin + width, num_columns)) for begin in range(0, num_columns, width)]


def _add_sums(logits_tc: torch.Tensor, sum_t: torch.Tensor, weighted_t: torch.Tensor, entropy: bool) -> None:
    """Add the rows' sum of 2**x, and of x 2**x for the entropy, a block of rows at a time: a tile is too large for the
    cache that a core has to itself."""
    for at, x_rc, e_rc in _row_blocks(logits_tc):
        torch.exp2(x_rc, out=e_rc)
        sum_t[at] += e_rc.sum(1)
        if entropy:
            weighted_t[at] += e_rc.mul_(x_rc).sum(1)


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


def _finish(
    sums: tuple[torch.Tensor, ...],
    again_of: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
    labels_t: torch.Tensor,
    exact_t: torch.Tensor | None,
) -> Partial:
    """Partial in nats from (sum, weighted sum, label's logit).

    again_of(rows): the shifted sums of rows whose plain ones cannot be trusted. exact_t: the labels' logits in base 2,
    where the sums hold rounded ones.
    """
    sum_t, weighted_t, target_t = sums
    lse_t, mean_t = torch.log2(sum_t), weighted_t / sum_t
    good_t = (sum_t >= LOW) & (sum_t <= HIGH)
    if not bool(good_t.all()):
        rows = (~good_t).nonzero().squeeze(1)
        max_t, sum_t, weighted_t = again_of(rows)
        lse_t[rows] = max_t + torch.log2(sum_t)
        mean_t[rows] = max_t + weighted_t / sum_t
    if exact_t is not None:
        old_t, new_t = torch.exp2(target_t - lse_t), torch.exp2(exact_t - lse_t)
        total_t = (1.0 - old_t).clamp(min=0.0) + new_t
        mean_t = torch.where(labels_t >= 0, (mean_t - old_t * target_t + new_t * exact_t) / total_t, mean_t)
        lse_t = torch.where(labels_t >= 0, lse_t + torch.log2(total_t), lse_t)
        target_t = torch.where(labels_t >= 0, exact_t, 0.0)
    return Partial(lse_t.mul_(LN2), mean_t.mul_(LN2), target_t.mul_(LN2))


def _exact_targets(
    hidden_tH: torch.Tensor, weight_VH: torch.Tensor, labels_t: torch.Tensor, scale: float
) -> torch.Tensor | None:
    """The labels' logits in base 2 from fp32 products; None for fp32 inputs, whose tiles are exact already."""
    if hidden_tH.dtype != torch.bfloat16:
        return None
    exact = []
    for begin in range(0, labels_t.shape[0], MAX_ROWS):
        at = slice(begin, begin + MAX_ROWS)
        rows_tH = weight_VH.index_select(0, labels_t[at].clamp(min=0)).float()
        exact.append(rows_tH.mul_(hidden_tH[at]).sum(1))
    return torch.cat(exact).mul_(scale)


def partial(
    hidden_TH: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, inv_temperature: float, entropy: bool
) -> Partial:
    """Partial of every token, one logit tile at a time: extra memory is the tile and two blocks of its rows."""
    scale, num_columns = LOG2E * inv_temperature, weight_VH.shape[0]
    width = max(end - begin for begin, end in _spans(min(hidden_TH.shape[0], MAX_ROWS), num_columns))
    buffer = hidden_TH.new_empty(min(hidden_TH.shape[0], MAX_ROWS) * width)
    parts = []
    for first in range(0, hidden_TH.shape[0], MAX_ROWS):
        hidden_tH, labels_t = hidden_TH[first : first + MAX_ROWS], labels_T[first : first + MAX_ROWS]
        num_rows = hidden_tH.shape[0]
        sums = torch.zeros(3, num_rows, device=hidden_tH.device).unbind()
        for begin in range(0, num_columns, width):
            end = min(begin + width, num_columns)
            out_tc = buffer[: num_rows * (end - begin)].view(num_rows, end - begin)
            tile_tc = _multiply(hidden_tH, weight_VH[begin:end], scale, out_tc)
            _add_sums(tile_tc, sums[0], sums[1], entropy)
            _take_target(tile_tc, labels_t, begin, end, sums[2])

        def again_of(rows: torch.Tensor, h: torch.Tensor = hidden_tH) -> tuple[torch.Tensor, ...]:
            few_tH = h[rows]

            def tile_of(b: int, e: int) -> torch.Tensor:
                return _multiply(few_tH, weight_VH[b:e], scale, few_tH.new_empty(few_tH.shape[0], e - b)).float()

            return _shifted_sums(tile_of, rows.numel(), num_columns, rows.device)

        exact_t = _exact_targets(hidden_tH, weight_VH, labels_t, scale)
        parts.append(_finish(sums, again_of, labels_t, exact_t))
    if len(parts) == 1:
        return parts[0]
    return Partial(*(torch.cat([getattr(p, name) for p in parts]) for name in ("lse", "mean", "target")))


def logits_buffer(num_elements: int, hidden_TH: torch.Tensor) -> torch.Tensor:
    """A flat buffer for `chunk_logits`."""
    return torch.empty(num_elements, dtype=hidden_TH.dtype, device=hidden_TH.device)


def chunk_logits(
    hidden_tH: torch.Tensor, weight_VH: torch.Tensor, inv_temperature: float, out: torch.Tensor
) -> torch.Tensor:
    """Logits of a chunk into `out` [t, V] of the input's dtype: tempered and in base 2."""
    return _multiply(hidden_tH, weight_VH, LOG2E * inv_temperature, out)


def chunk_partial(
    logits_tV: torch.Tensor,
    hidden_tH: torch.Tensor,
    weight_VH: torch.Tensor,
    labels_t: torch.Tensor,
    inv_temperature: float,
    entropy: bool,
) -> Partial:
    """Partial of the tokens of a chunk from its stored logits, a few whole rows at a time."""
    sum_t, weighted_t = torch.zeros(2, logits_tV.shape[0], device=logits_tV.device)
    _add_sums(logits_tV, sum_t, weighted_t, entropy)
    target_t = logits_tV.gather(1, labels_t.clamp(min=0)[:, None]).squeeze(1).float()
    sums = (sum_t, weighted_t, torch.where(labels_t >= 0, target_t, 0.0))

    def again_of(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _shifted_sums(lambda b, e: logits_tV[rows, b:e].float(), rows.numel(), logits_tV.shape[1], rows.device)

    exact_t = _exact_targets(hidden_tH, weight_VH, labels_t, LOG2E * inv_temperature)
    return _finish(sums, again_of, labels_t, exact_t)


def _row_blocks(logits_tV: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """(rows, their logits in fp32, a scratch of the same shape), each a contiguous block that fits a core's cache."""
    num_rows, num_columns = logits_tV.shape
    step = max(1, min(num_rows, BLOCK_ELEMENTS // num_columns))
    scratch = torch.empty(2, step, num_columns, device=logits_tV.device)
    for begin in range(0, num_rows, step):
        at = slice(begin, min(begin + step, num_rows))
        x_rV = logits_tV[at]
        if x_rV.dtype == torch.bfloat16:
            x_rV = scratch[0, : at.stop - begin].copy_(x_rV)
        yield at, x_rV, scratch[1, : at.stop - begin]


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
    for at, x_rV, e_rV in _row_blocks(logits_tV):
        u_rV = torch.sub(x_rV, lse_t1[at], out=x_rV)  # in fp32 this is the chunk itself
        torch.exp2(u_rV, out=e_rV)
        # Not addcmul: with broadcast operands it is five times as slow as these two.
        factor = flat_t1[at] if slope_t1 is None else u_rV.mul_(slope_t1[at]).add_(flat_t1[at])
        if u_rV.dtype == logits_tV.dtype:
            torch.mul(e_rV, factor, out=u_rV)
        else:
            logits_tV[at].copy_(e_rV.mul_(factor))
    # The label's entry is 1 - p of the log-probability itself: rounded once, and from the exact logit.
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
    for begin in range(0, grad_weight_VH.shape[0], step):
        rows_cH = grad_weight_VH[begin : begin + step]
        product_cH = torch.mm(grad_tV[:, begin : begin + step].t(), hidden_tH)
        if first:
            rows_cH.copy_(product_cH).mul_(scale)
        else:
            rows_cH.add_(product_cH, alpha=scale)
