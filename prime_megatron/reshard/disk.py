"""Sync through a folder, for engines that neither share memory with the trainer nor take tensors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch.distributed as dist

from prime_megatron.reshard.slices import Params


class FolderEngine(Protocol):
    """An engine that loads a Hugging Face folder."""

    def load_folder(self, folder: Path, version: int) -> None: ...


class DiskSync:
    """Writes a Hugging Face folder for every version, and removes it when every engine has read it.

    Args:
        export: writes the policy into a folder that does not exist; collective over the world.
        folder: where the folders go; every engine must see the same files there.
    """

    def __init__(self, export: Callable[[Path], None], folder: Path) -> None:
        self.export = export
        self.folder = folder

    def send(self, engine: FolderEngine, params: Params, version: int) -> None:
        """Write, load, remove. Collective over the world."""
        target = self.folder / f"policy-{version}"
        if dist.get_rank() == 0:
            shutil.rmtree(target, ignore_errors=True)  # left by a run that was killed
        dist.barrier()
        self.export(target)
        engine.load_folder(target, version)
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(target)

    def differing(self, engine: FolderEngine, params: Params) -> list[str]:
        """Nothing: this engine's tensors cannot be read from here; it checks its own answers."""
        return []
