"""The unit on disk.

<output_dir>/checkpoints/
    step-00000012/
        policy/, prm/       tensors, Megatron's torch_dist format, and position.json
        state.json          step, prompt cursor, waiting groups, progress, clock, fault counters
        rng.safetensors     every rank's random states
        config.yaml         the resolved config
        manifest.json       size and sha256 of every file above
        COMPLETE            sha256 of manifest.json; written last, after the rename
    .tmp-step-00000013/     a save under way, or what a killed one left
"""

from __future__ import annotations

import re
from pathlib import Path

CHECKPOINTS = "checkpoints"
"""Below run.output_dir."""
STATE_FILE = "state.json"
RNG_FILE = "rng.safetensors"
CONFIG_FILE = "config.yaml"
MANIFEST_FILE = "manifest.json"
MARKER_FILE = "COMPLETE"

_STEP = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".tmp-"


def step_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def temporary_folder(root: Path, step: int) -> Path:
    """Where it is written; on the same file system, so that a rename moves it."""
    return root / f"{_TEMPORARY}step-{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a folder's name speaks of; None for any other name."""
    match = _STEP.fullmatch(path.name)
    return int(match[1]) if match else None


def leftovers(root: Path) -> list[Path]:
    """Saves that were never finished."""
    return sorted(root.glob(f"{_TEMPORARY}step-*"))
