"""One save, from the snapshot to the completion marker. Collective over the world, in the order of the methods."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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

    Args:
        root: folder of the checkpoints.
        snapshot: what is saved beside the models.
        roles: the models.
        whole: a context in which all of a role is on the device.
        leave: a role leaves the device after it: its tensors are copied, or written at once where ``background`` is
            not wanted.
        background: `write_in_background` comes next, not `write`.

    Raises:
        RunError: on every rank, where any rank met an error: no space, a file system that fails.
    """

    def __init__(
        self,
        root: Path,
        snapshot: Snapshot,
        roles: Sequence[Role],
        whole: Callable[[Role], AbstractContextManager[None]] = nullcontext,
        *,
        leave: bool = False,
        background: bool = False,
    ) -> None:
        self.step = snapshot.step
        self.root = root
        self.temporary = temporary_folder(root, snapshot.step)
        self.call: ForkedCall | None = None
        self.num_bytes = 0
        self.writes: dict[str, ShardWrite] = {}
        self._written: dict[str, Written] = {}
        self._error: str | None = None
        rng = gather_all(dict(snapshot.rng))
        self._on_first(lambda: self._begin(snapshot, [role.name for role in roles], rng))
        waiting = 0
        for role in roles:
            with whole(role):
                shards = RoleShards(role)
                num_bytes = sum(gather_all(shards.num_bytes))
                self.num_bytes += num_bytes
                waiting += num_bytes
                self._on_first(functools.partial(self._check_space, waiting))
                write = shards.plan(self.temporary / role.name)
                write.stage(leaves=leave)
                self.writes[role.name] = write
            if leave and not background:
                # Now, so that no more than one model's tensors wait in host memory.
                self._write_one(role.name)
                write.buckets.clear()
                waiting = 0

    def write(self) -> None:
        """Write this rank's shards here and now, and finish."""
        for name in self.writes.keys() - self._written.keys():
            self._write_one(name)
        self._finish((self._written, self._error))

    def write_in_background(self) -> None:
        """Start writing in a child that keeps this moment's tensors; `finish` must follow."""
        self.call = ForkedCall(lambda: {name: write.write() for name, write in self.writes.items()})

    def _write_one(self, name: str) -> None:
        """An error is agreed on in the end, by all ranks."""
        try:
            if self._error is None:
                self._written[name] = self.writes[name].write()
        except Exception as error:
            self._error = describe(error)

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
        for name in names:
            (self.temporary / name).mkdir(parents=True)
        state = json.dumps(dict(snapshot.state), indent=1, allow_nan=True)
        (self.temporary / STATE_FILE).write_text(state + "\n", encoding="utf-8")
        (self.temporary / CONFIG_FILE).write_text(snapshot.config_yaml, encoding="utf-8")
        flat = {f"{rank}.{name}": tensor for rank, states in enumerate(rng) for name, tensor in states.items()}
        save_file(flat, self.temporary / RNG_FILE)

    def _check_space(self, waiting: int) -> None:
        free = shutil.disk_usage(self.root).free
        if free < waiting * SPARE:
            raise OSError(f"{free:,} bytes are free and the models that are still to be written need {waiting:,}")

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
