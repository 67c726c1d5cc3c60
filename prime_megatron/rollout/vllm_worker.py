"""What vLLM's worker processes do for us, one per tensor-parallel rank (vLLM's `worker_extension_cls`).

Imported by a worker before it loads the model. On a CPU vLLM would replace the weights of linear layers by packed
copies (oneDNN), which nobody can write; without that it multiplies with the plain weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import vllm._custom_ops as ops
from safetensors import safe_open
from torch import Tensor
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from prime_megatron.rollout.broadcast import make_group, receive_tensors
from prime_megatron.rollout.live_weights import attach, bit_sums
from prime_megatron.rollout.shared_buffer import Row, open_buffer, unpack, wait_for_reads

if not torch.cuda.is_available():
    ops._supports_onednn = False


class PrimeWorker:
    """Mixed into vLLM's worker; methods are called by name from the driver."""

    model_runner: Any
    rank: int
    prime_group: dist.ProcessGroup
    vllm_config: VllmConfig

    def prime_attach(self, paths: Sequence[str]) -> None:
        """Move this rank's parameters into its segment."""
        attach(self._prime_model, paths[self.rank])

    def prime_bit_sums(self) -> dict[str, int]:
        """Of this rank's parameters."""
        return bit_sums(self._prime_model.named_parameters())

    def prime_load_files(self, paths: Sequence[str]) -> None:
        """Take this rank's part of whole Hugging Face tensors."""
        self._prime_load(pair for path in paths for pair in _read(path))

    def prime_load_bucket(self, handles: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> None:
        """The same from a shared buffer."""
        flat = open_buffer(handles[self.rank])
        # Copies: vLLM keeps what it is given until a layer is complete, the buffer is written again before.
        self._prime_load((name, tensor.clone()) for name, tensor in unpack(flat, rows))
        wait_for_reads(flat)

    def prime_join(self, address: str, port: int, name: str, world_size: int) -> None:
        """Join a broadcast group whose rank 0 is the trainer."""
        self.prime_group = make_group(address, port, name, rank=1 + self.rank, world_size=world_size)

    def prime_receive(self, rows: Sequence[Row]) -> None:
        """Take whole Hugging Face tensors from the group."""
        # Not the parameters' own device: amid an update they are on none.
        device = self.model_runner.device
        self._prime_load(receive_tensors(self.prime_group, rows, device))

    def prime_finish(self) -> None:
        """The update is complete."""
        if getattr(self, "_prime_loading", False):
            with set_current_vllm_config(self.vllm_config):
                finalize_layerwise_reload(self._prime_model, self.vllm_config.model_config)
        self._prime_loading = False

    def _prime_load(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """vLLM's reload in place, spread over several calls (its own `reload_weights` wants a layer in one call)."""
        with set_current_vllm_config(self.vllm_config):
            if not getattr(self, "_prime_loading", False):
                initialize_layerwise_reload(self._prime_model)
            self._prime_loading = True
            self._prime_model.load_weights(named)

    @property
    def _prime_model(self) -> Any:
        return self.model_runner.model


def _read(path: str) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, safe_open is no mapping
            yield name, file.get_tensor(name)
