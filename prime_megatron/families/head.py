"""Whether a folder whose config.json ties the output layer to the embedding has another output layer all the same."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from prime_megatron.errors import InputError
from prime_megatron.families.base import FamilyConfig
from prime_megatron.families.folder import EMBEDDING, OUTPUT_LAYER, HfFolder

_State = tuple[tuple[str, int, int], ...]
"""Files by path, size in bytes and time of the last change in ns."""


def head_differs(config: FamilyConfig, folder: Path) -> bool:
    """Whether lm_head.weight is there and has another value than the embedding, as ``PreTrainedModel.tie_weights`` of
    transformers 5 asks. False where the weights cannot be read: who needs them says so.

    The two tensors are mapped and read whole where they are equal, and once in a process while the files stay.
    """
    try:
        with HfFolder(folder, config) as weights:
            paths = {weights.files[name] for name in (OUTPUT_LAYER, EMBEDDING) if name in weights.files}
        found = [(str(path), path.stat()) for path in sorted(paths)]
        return _compared(config, folder, tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in found))
    except (InputError, OSError):
        return False


@lru_cache(maxsize=16)
def _compared(config: FamilyConfig, folder: Path, state: _State) -> bool:
    with HfFolder(folder, config) as weights:
        return weights.head_differs()
