"""Every random state of this process: Python, numpy, torch, CUDA, Megatron's trackers; as tensors."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from prime_megatron import device
from prime_megatron.mcore.checkpoint import restore_tracker_states, tracker_states

_TRACKER = "tracker."


def capture() -> dict[str, Tensor]:
    """The states by name. Sampling needs none: it is counted by (seed, step, prompt, sample)."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    assert version == 3 and kind == "MT19937"
    states = {
        "python.words": torch.tensor(words, dtype=torch.int64),
        "python.gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy.keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy.position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy.cached": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.on_gpu():
        states["cuda"] = torch.cuda.get_rng_state()
    states |= {f"{_TRACKER}{name}": state.clone() for name, state in tracker_states().items()}
    return states


def restore(states: Mapping[str, Tensor]) -> None:
    """Inverse of `capture`."""
    gauss = states["python.gauss"].tolist()
    random.setstate((3, tuple(states["python.words"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = states["numpy.position"].tolist()
    keys = states["numpy.keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, float(states["numpy.cached"])))
    torch.set_rng_state(states["torch"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    restore_tracker_states(
        {name.removeprefix(_TRACKER): state for name, state in states.items() if name.startswith(_TRACKER)}
    )
