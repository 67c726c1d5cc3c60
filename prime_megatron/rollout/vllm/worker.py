"""What vLLM's worker processes do for us, one per tensor-parallel rank (vLLM's `worker_extension_cls`).

Imported by a worker before it loads the model, which makes our weight-transfer backend known. On a CPU vLLM would
replace the weights of linear layers by packed copies (oneDNN), which cannot be written; without that it multiplies with
the plain weights. So with experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import vllm._custom_ops as ops
from torch import Tensor
from vllm.model_executor.models.utils import extract_layer_index

from prime_megatron.rollout.vllm.experts import keep_experts_plain
from prime_megatron.rollout.vllm.transfer import BACKEND
from prime_megatron.weights.segment import attach, bit_sums

assert BACKEND, "registered by its import"

if not torch.cuda.is_available():
    ops._supports_onednn = False
    keep_experts_plain()


class PrimeWorker:
    """Mixed into vLLM's worker; methods are called by name from the driver."""

    model_runner: Any
    rank: int

    def prime_attach(self, paths: Sequence[str]) -> None:
        """Move this rank's parameters into its segment."""
        attach(self.model_runner.model, paths[self.rank])

    def prime_bit_sums(self) -> dict[str, int]:
        """Of this rank's parameters."""
        return bit_sums(self.model_runner.model.named_parameters())

    def prime_windows(self) -> list[int | None]:
        """The attention window of every layer that was built, in tokens; None: all of a sequence."""
        layers = self.model_runner.vllm_config.compilation_config.static_forward_context
        found = {extract_layer_index(name): layer for name, layer in layers.items() if hasattr(layer, "sliding_window")}
        return [found[index].sliding_window for index in sorted(found)]

    def prime_parameters(self) -> dict[str, Tensor]:
        """This rank's parameters themselves, for a caller in the same process."""
        return {name: param.detach() for name, param in self.model_runner.model.named_parameters()}
