"""How fast a run learns: tokens and model FLOPs a second, and their share of what this device reaches."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prime_megatron import device
from prime_megatron.families import FamilyConfig
from prime_megatron.families.count import num_matmul_parameters
from prime_megatron.metrics import measure_peak_flops, model_flops

PEAK_SIZE = {"cpu": 512, "cuda": 8192}
"""Matrix size of the peak that utilisation is held against."""


class Speed:
    """Figures of a step's speed.

    Args:
        family: of the model whose size every pass is taken to have.
        dtype: compute dtype.
        world_size: ranks.
    """

    def __init__(self, family: FamilyConfig, dtype: torch.dtype, world_size: int) -> None:
        self.family = family
        self.dtype = dtype
        self.world_size = world_size
        self._peak_flops = 0.0

    def start(self) -> None:
        """Measure what matrix products reach here, the yardstick of the utilisation."""
        here = device.current_device()
        size = PEAK_SIZE[here.type]
        self._peak_flops = measure_peak_flops(device.synchronize, here, self.dtype, size=size, repeats=3)

    def figures(self, lengths: Sequence[int], forwards: float, wall_s: float) -> dict[str, float]:
        """Of a step.

        Args:
            lengths: tokens of every sequence over all ranks, prompt and response.
            forwards: passes over them, a backward counted as two.
            wall_s: seconds that they took.
        """
        family = self.family
        one_forward = model_flops(
            num_matmul_params=num_matmul_parameters(family),
            num_layers=family.layers,
            attention_width=family.heads * family.head_dim,
            lengths=lengths,
            num_forward=1,
            num_backward=0,
        )
        flops = one_forward * forwards
        return {
            "speed/tokens_per_s": sum(lengths) / wall_s,
            "speed/model_flops_per_s": flops / wall_s,
            "speed/utilisation": flops / wall_s / (self._peak_flops * self.world_size),
        }
