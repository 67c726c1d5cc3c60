"""Vocabulary parallelism as a value: which rows of the projection a rank holds, and how ranks' partial sums combine."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

IGNORE_LABEL = -100


@dataclass(frozen=True)
class Partial:
    """What one vocabulary shard contributes to a token's softmax; all fp32 [T], in nats.

    lse: logsumexp over the shard's tempered logits (-inf for a shard of padding only).
    mean: their mean under the shard's own softmax (0 where lse is -inf, or where entropy is not wanted).
    target: the label's tempered logit on the shard that holds it, 0 on every other.
    """

    lse: torch.Tensor
    mean: torch.Tensor
    target: torch.Tensor


@dataclass(frozen=True)
class Shard:
    """Rows [first_row, first_row + num_rows) of the true vocabulary, held by this rank (num_rows may be 0)."""

    first_row: int
    num_rows: int

    @staticmethod
    def of(num_local_rows: int, vocab_size: int | None, group: dist.ProcessGroup | None) -> "Shard":
        """The shard of a rank whose weight has `num_local_rows` rows, padding included."""
        rank = 0 if group is None else dist.get_rank(group)
        first_row = rank * num_local_rows
        if vocab_size is None:
            return Shard(first_row, num_local_rows)
        return Shard(first_row, min(max(vocab_size - first_row, 0), num_local_rows))

    def local_labels(self, labels_T: torch.Tensor) -> torch.Tensor:
        """Row numbers inside this shard, int64 [T]; -1 where another shard holds the label or it is ignored."""
        local_T = labels_T.long() - self.first_row
        return torch.where((local_T >= 0) & (local_T < self.num_rows), local_T, -1)


def group_size(group: dist.ProcessGroup | None) -> int:
    """Ranks in the group; 1 without one."""
    return 1 if group is None else dist.get_world_size(group)


def combine(part: Partial, group: dist.ProcessGroup | None) -> Partial:
    """The whole vocabulary's Partial from every shard's: one all-gather of 3 T floats, same bits on every rank."""
    if group_size(group) == 1:
        return part
    mine_3T = torch.stack((part.lse, part.mean, part.target))
    all_R3T = mine_3T.new_empty((group_size(group), *mine_3T.shape))
    dist.all_gather_into_tensor(all_R3T.view(-1, mine_3T.shape[1]), mine_3T, group=group)
    lse_RT, mean_RT, target_RT = all_R3T.unbind(1)
    lse_T = torch.logsumexp(lse_RT, 0)
    # The shards' shares add up to 1 only within the rounding of lse: they must not multiply a mean of -400.
    share_RT = torch.exp(lse_RT - lse_T)
    return Partial(lse_T, lse_T + (share_RT * (mean_RT - lse_T)).sum(0), target_RT.sum(0))


def gather_sequence(hidden_SH: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """[T / tp, H] of every rank -> [T, H] on each (sequence-parallel input)."""
    if group_size(group) == 1:
        return hidden_SH
    hidden_TH = hidden_SH.new_empty((hidden_SH.shape[0] * group_size(group), hidden_SH.shape[1]))
    dist.all_gather_into_tensor(hidden_TH, hidden_SH.contiguous(), group=group)
    return hidden_TH


def reduce_hidden_grad(grad_TH: torch.Tensor, group: dist.ProcessGroup | None, sequence_parallel: bool) -> torch.Tensor:
    """Sum the shards' gradients of the hidden states: all-reduced, or reduce-scattered back to [T / tp, H]."""
    size = group_size(group)
    if size == 1:
        return grad_TH
    if sequence_parallel:
        grad_SH = grad_TH.new_empty((grad_TH.shape[0] // size, grad_TH.shape[1]))
        dist.reduce_scatter_tensor(grad_SH, grad_TH, group=group)
        return grad_SH
    dist.all_reduce(grad_TH, group=group)
    return grad_TH
