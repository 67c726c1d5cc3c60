"""Our ways of the weights as a backend of vLLM's weight-transfer API, one engine per worker.

vLLM's own backends move weights between GPUs (NCCL between different ones, or CUDA IPC with pickled handles). This one
takes whole Hugging Face tensors from a shared buffer (CUDA IPC on a GPU, a nameless file on a CPU), from a gloo group
or from files, on every device; vLLM keeps the order of an update and reloads the layers in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from prime_megatron.weights.broadcast import make_group, receive_tensors
from prime_megatron.weights.buffer import TensorRow, open_buffer, unpack, wait_for_reads

BACKEND = "prime_megatron"
"""Its name in vLLM's `weight_transfer_config`."""


@dataclass
class JoinInfo(WeightTransferInitInfo):
    """A broadcast group whose rank 0 is the trainer."""

    address: str
    port: int
    name: str
    world_size: int


@dataclass
class PartInfo(WeightTransferUpdateInfo):
    """A part of an update: tensors of this process, in a shared buffer, from the group's rank 0, or files."""

    rows: Sequence[TensorRow] = ()
    handle: Mapping[str, Any] | None = None
    """Of the shared buffer (``shared_buffer.SharedBuffer.handle``); None: from the group."""
    files: Sequence[str] = ()
    named: Sequence[tuple[str, Tensor]] = ()


class PrimeTransfer(WeightTransferEngine[JoinInfo, PartInfo]):
    """See the module."""

    init_info_cls = JoinInfo
    update_info_cls = PartInfo
    _group: dist.ProcessGroup | None = None

    def init_transfer_engine(self, init_info: JoinInfo) -> None:
        """Join the group; returns when it stands."""
        rank = 1 + self.parallel_config.rank
        where = (init_info.address, init_info.port, init_info.name)
        self._group = make_group(*where, rank=rank, world_size=init_info.world_size)

    def start_weight_update(self) -> None:
        """Prepare the layers."""
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take a part. Not vLLM's own form, which waits for an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: PartInfo) -> None:
        """Load a part's tensors; its memory is free afterwards."""
        if update_info.named:
            self._load(update_info.named)
        elif update_info.files:
            self._load(pair for path in update_info.files for pair in _read(path))
        elif update_info.handle is not None:
            flat = open_buffer(update_info.handle)
            # Copies: vLLM keeps what it is given until a layer is complete, the buffer is written again before.
            self._load((name, tensor.clone()) for name, tensor in unpack(flat, update_info.rows))
            wait_for_reads(flat)
        else:
            assert self._group is not None, "join first"
            self._load(receive_tensors(self._group, update_info.rows, self.device))

    def finish_weight_update(self) -> None:
        """All layers are there."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """The group ends with the process."""

    def _load(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self.model.load_weights(named)


def _read(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, safe_open is no mapping
            yield name, file.get_tensor(name)


WeightTransferEngineFactory.register_engine(BACKEND, PrimeTransfer)
