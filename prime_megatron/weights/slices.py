"""Views of planned slices, and copies between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from prime_megatron.parallel.shards import Region
from prime_megatron.weights.plan import Copy

Params = Mapping[tuple[int, str], Tensor]
"""This rank's training parameters by (chunk, name)."""
_SMALL = 2**20
"""Elements below which copies on a GPU are grouped: launching them one by one takes longer than moving the bytes."""


def part(tensor: Tensor, region: Region) -> Tensor:
    """View of a region. A tensor with more dimensions than the region is addressed with its leading ones flattened."""
    shape = tensor.shape
    if len(shape) > len(region):
        tensor = tensor.view(-1, *shape[len(shape) - len(region) + 1 :])
        shape = tensor.shape
    for dim, (start, stop) in enumerate(region):
        if stop - start != shape[dim]:
            tensor = tensor.narrow(dim, start, stop - start) if dim else tensor[start:stop]  # the faster way
    return tensor


def pairs(copies: Iterable[Copy], params: Params, targets: Mapping[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Target and source view of every copy, in order."""
    for copy in copies:
        yield part(targets[copy.target], copy.to), part(params[copy.chunk, copy.source], copy.of)


@torch.no_grad()
def copy_slices(copies: Iterable[Copy], params: Params, targets: Mapping[str, Tensor]) -> None:
    """Write every copy's source into its target, cast to the target's dtype; each byte is read and written once."""
    small_to: list[Tensor] = []
    small_of: list[Tensor] = []
    for to, of in pairs(copies, params, targets):
        if to.is_cuda and to.numel() < _SMALL:
            small_to.append(to)
            small_of.append(of)
        else:
            to.copy_(of)
    if small_to:
        torch._foreach_copy_(small_to, small_of)
