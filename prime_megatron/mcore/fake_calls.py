"""What a fake rank hears from a world that is not there: collectives that return at once and are written down, numbers
that are read from fake tensors, a routing of tokens to experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

_SEND, _RECEIVE = "send", "recv_"


@dataclass(frozen=True, slots=True)
class Call:
    """One collective, or one message between two ranks, as a rank asks for it."""

    name: str
    """torch's (``c10d``) name of the operation."""
    group: str
    """torch's name of the group, equal on all its members; what it is for, behind a colon."""
    ranks: tuple[int, ...]
    """The group's members, global."""
    numel: int
    """Elements of all tensors given."""
    dtype: str
    peer: int | None = None
    """The other end of a message, or the root of a broadcast, global; None: the call has none."""

    @property
    def is_send(self) -> bool:
        return self.name == _SEND

    @property
    def is_receive(self) -> bool:
        return self.name == _RECEIVE


class Answers(TorchDispatchMode):
    """Writes down every collective into ``calls``, and answers what only data could: a truth is True, a number 1.

    So a gradient's norm is finite and no row of the vocabulary's head has to be done again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.selected = 0
        """Elements that a mask selects: tokens times experts per token, set by ``balanced_routing``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.calls.append(_call(func, args))
            work = FakeWork().boxed()
            return work if len(func._schema.returns) == 1 else (args[0], work)
        if args and isinstance(args[0], FakeTensor):
            if func is torch.ops.aten._local_scalar_dense.default:
                kind = args[0].dtype
                return True if kind is torch.bool else 1.0 if kind.is_floating_point else 1
            if func is torch.ops.aten.masked_select.default:
                return args[0].new_empty(self.selected)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], [_places(index) for index in args[1]])
        return func(*args, **(kwargs or {}))


def _places(index: Any) -> Any:
    """A real mask as the places that it selects, which fake tensors cannot count."""
    if index is None or isinstance(index, FakeTensor) or index.dtype is not torch.bool or index.dim() != 1:
        return index
    with unset_fake_temporarily():
        return index.nonzero().flatten()


def _call(func: Any, args: Any) -> Call:
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False))
    group = dist.ProcessGroup.unbox(given["process_group"])
    tensors = _tensors(args)
    name = func._schema.name.removeprefix("c10d::")
    other = given.get("dst", given.get("src", given.get("root_rank")))
    return Call(
        name=name,
        group=f"{group.group_name}:{group.group_desc}",
        ranks=tuple(dist.get_process_group_ranks(group)),
        numel=sum(tensor.numel() for tensor in tensors),
        dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
        peer=None if other is None else dist.get_global_rank(group, other),
    )


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


def balanced_routing(answers: Answers, preprocess: Callable[..., Any]) -> Callable[..., Any]:
    """Megatron's count of tokens by expert (MoEAlltoAllTokenDispatcher.preprocess), and then every expert of every rank
    takes equally many: fake tensors have no counts."""

    def counted(dispatcher: Any, routing_map: Tensor) -> Any:
        preprocess(dispatcher, routing_map)
        tensor, expert = dispatcher.tp_size, dispatcher.ep_size
        num_experts, local = dispatcher.num_experts, dispatcher.num_local_experts
        answers.selected = routing_map.shape[0] * dispatcher.config.moe_router_topk
        base, more = divmod(answers.selected, num_experts)
        counts_E = base + (np.arange(num_experts) < more)
        first = dispatcher.local_expert_indices[0]
        mine_TEL = np.broadcast_to(counts_E[first : first + local], (tensor, expert, local))
        dispatcher.num_out_tokens = answers.selected
        if expert > 1 or tensor > 1:
            dispatcher.input_splits = counts_E.reshape(expert, local).sum(1)
            dispatcher.output_splits = mine_TEL.sum(2)[dispatcher.tp_rank]
            dispatcher.output_splits_tp = mine_TEL.sum((1, 2))
        if local > 1:
            dispatcher.num_global_tokens_per_local_expert = mine_TEL.reshape(-1, local)
            order = np.arange(num_experts * tensor)
            dispatcher.sort_input_by_local_experts = order.reshape(-1, local).T.ravel()
            dispatcher.restore_output_by_local_experts = order.reshape(local, -1).T.ravel()
        return mine_TEL.sum((0, 1))

    return counted
