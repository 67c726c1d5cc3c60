"""One save, from the snapshot to the completion marker. Collective over the world, in the order of the methods."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from prime_megatron.checkpoint.background import ForkedCall, describe
from prime_megatron.checkpoint.layout import CONFIG_FILE, RNG_FILE, STATE_FILE, step_folder, temporary_folder
from prime_megatron.checkpoint.manifest import publish, write_manifest
from prime_megatron.errors import RunError
from prime_megatron.mcore.checkpoint import RoleShards, ShardWrite, Written
from prime_megatron.mcore.role import Role
from prime_megatron.parallel.collectives import from_rank, gather_all

SPARE = 1.02
"""Space asked for over the tensors' bytes: headers and metadata."""


@dataclass(frozen=True)
class Snapshot:
    """What is saved beside the models' tensors."""

    step: int
    state: Mapping[str, Any]
    """JSON values."""
    config_yaml: str
    rng: Mapping[str, Tensor]
    """This rank's random states."""


class Save:
    """Writes a checkpoint under a temporary name; nothing of it is visible before `finish` has renamed it.

    Raises:
        RunError: on every rank, where any rank met an error: no space, a file system that fails.
    """

    def __init__(self, root: Path, snapshot: Snapshot, roles: Sequence[Role]) -> None:
        self.step = snapshot.step
        self.root = root
        self.temporary = temporary_folder(root, snapshot.step)
        self.call: ForkedCall | None = None
        shards = {role.name: RoleShards(role) for role in roles}
        self.num_bytes = sum(gather_all(sum(part.num_bytes for part in shards.values())))
        rng = gather_all(dict(snapshot.rng))
        self._on_first(lambda: self._begin(snapshot, list(shards), rng))
        self.writes: dict[str, ShardWrite] = {name: part.plan(self.temporary / name) for name, part in shards.items()}
        for write in self.writes.values():
            write.stage()

    def write(self) -> None:
        """Write this rank's shards here and now, and finish."""
        try:
            outcome: tuple[Any, str | None] = (self._write(), None)
        except Exception as error:  # agreed on below, by all ranks
            outcome = (None, describe(error))
        self._finish(outcome)

    def write_in_background(self) -> None:
        """Start writing in a child that keeps this moment's tensors; `finish` must follow."""
        self.call = ForkedCall(self._write)

    def done(self) -> bool:
        """Whether every rank's child is done."""
        assert self.call is not None
        return all(gather_all(self.call.done))

    def finish(self) -> None:
        """Wait for the children and give the checkpoint its name."""
        assert self.call is not None
        self._finish(self.call.result())

    def _begin(self, snapshot: Snapshot, names: list[str], rng: list[dict[str, Tensor]]) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        if self.temporary.exists():
            shutil.rmtree(self.temporary)
        free = shutil.disk_usage(self.root).free
        if free < self.num_bytes * SPARE:
            raise OSError(f"{free:,} bytes are free and the models alone need {self.num_bytes:,}")
        for name in names:
            (self.temporary / name).mkdir(parents=True)
        state = json.dumps(dict(snapshot.state), indent=1, allow_nan=True)
        (self.temporary / STATE_FILE).write_text(state + "\n", encoding="utf-8")
        (self.temporary / CONFIG_FILE).write_text(snapshot.config_yaml, encoding="utf-8")
        flat = {f"{rank}.{name}": tensor for rank, states in enumerate(rng) for name, tensor in states.items()}
        save_file(flat, self.temporary / RNG_FILE)

    def _write(self) -> dict[str, Written]:
        return {name: write.write() for name, write in self.writes.items()}

    def _finish(self, outcome: tuple[Any, str | None]) -> None:
        everyones = gather_all(outcome)
        errors = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(everyones) if error is not None]
        self._on_first(lambda: self._complete(everyones, errors))

    def _complete(self, everyones: list[tuple[dict[str, Written], str | None]], errors: list[str]) -> None:
        if errors:
            raise OSError(errors[0])
        known: dict[str, str] = {}
        for name, write in self.writes.items():
            written = [parts[name] for parts, _ in everyones]
            write.finish(written)
            known |= {f"{name}/{file}": sha for part in written for file, sha in part.sha256.items()}
        write_manifest(self.temporary, known)
        final = step_folder(self.root, self.step)
        if final.is_symlink():
            final.unlink()
        elif final.exists():
            shutil.rmtree(final)
        publish(self.temporary, final)

    def _on_first(self, action: Callable[[], None]) -> None:
        """Run on rank 0; an error there is raised on all, and what was written is removed."""
        problem = None
        if dist.get_rank() == 0:
            try:
                action()
            except Exception as error:  # told to all ranks
                problem = describe(error)
                shutil.rmtree(self.temporary, ignore_errors=True)
        problem = from_rank(problem)
        if problem is not None:
            raise RunError(f"{self.root}: step {self.step} could not be saved: {problem}")
