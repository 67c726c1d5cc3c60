"""The checkpoints of a run: when it saves, what, and how it continues. Every method is collective over the world."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file

from prime_megatron import __version__
from prime_megatron.checkpoint import rng
from prime_megatron.checkpoint.contents import contents_of
from prime_megatron.checkpoint.discovery import FoundCheckpoint, find
from prime_megatron.checkpoint.fingerprint import check_same_run
from prime_megatron.checkpoint.layout import CHECKPOINTS, RNG_FILE, STATE_FILE, step_folder
from prime_megatron.checkpoint.manifest import content_damage, structural_damage
from prime_megatron.checkpoint.retention import prune
from prime_megatron.checkpoint.save import Save, Snapshot
from prime_megatron.config import StageConfig, TrainConfig
from prime_megatron.config.load import dump_yaml
from prime_megatron.errors import InputError, RunError
from prime_megatron.mcore.checkpoint import load_role
from prime_megatron.mcore.role import Role
from prime_megatron.metrics import MetricsLog
from prime_megatron.parallel.collectives import agree_on, from_rank, gather_all
from prime_megatron.strict_json import read_json

MAX_STATE_BYTES = 2**34
"""The responses of waiting groups are in it."""


class Stateful(Protocol):
    """A part of the run that is more than its config: JSON values out and in."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: dict[str, Any]) -> None: ...


class Checkpoints:
    """Saves and restores a run.

    Args:
        config: the run; ``checkpoint`` says when.
        roles: the models that learn, and others whose weights no folder has.
        stateful: everything else that is saved, by name.
        log: is told what happens.
        whole: a context in which all of a role is on the device.
        leave: a role leaves the device after that context.
    """

    def __init__(
        self,
        config: TrainConfig | StageConfig,
        roles: Sequence[Role],
        stateful: Mapping[str, Stateful],
        log: MetricsLog,
        *,
        whole: Callable[[Role], AbstractContextManager[None]] = nullcontext,
        leave: bool = False,
    ) -> None:
        self.config = config
        self.roles = roles
        self.stateful = stateful
        self.log = log
        self.whole = whole
        self.leave = leave
        self.root = Path(config.run.output_dir) / CHECKPOINTS
        self.saved_step = 0
        """The newest step that is safe on disk (0: the initial models are)."""
        self._contents = from_rank(contents_of(config.model_dump(mode="json")) if dist.get_rank() == 0 else None)
        self._pending: Save | None = None
        self._broken: tuple[Path, ...] = ()

    def resume(self, resume: str | None) -> int:
        """Restore what ``--resume`` names; returns the number of finished steps, 0 for a start from the beginning.

        Raises:
            InputError: the checkpoint is damaged, or the config would change the meaning of the run.
        """
        if resume is None:
            return 0
        found = find(self.root, resume, check=_damage, agree=from_rank)
        for line in found.passed_over:
            self.log.warn(line)
        if found.path is None:
            self.log.message(f"--resume: no checkpoint in {self.root}; starting from the beginning")
            return 0
        return self._load(found, found.path)

    def after_step(self, step: int) -> None:
        """Save when the step is due; see whether a save in the background is done. A failure is a warning."""
        try:
            if self._pending is not None and self._pending.done():
                self._complete()
            every = self.config.checkpoint.every
            if every and step % every == 0:
                self._save(step, background=self.config.checkpoint.asynchronous)
        except RunError as error:
            self.log.warn(f"{error}; the run goes on, the newest checkpoint is that of {self._newest()}")

    def save_last(self, step: int) -> None:
        """Be sure that this step is on disk: the run ends after it.

        Raises:
            RunError: it cannot be saved; the checkpoints before it are as they were.
        """
        try:
            if self._pending is not None:
                self._complete()
        except RunError as error:
            self.log.warn(str(error))
        try:
            if self.saved_step != step:
                self._save(step, background=False)
        except RunError as error:
            raise RunError(f"{error}; the newest checkpoint is that of {self._newest()}") from None

    def close(self) -> None:
        """Let a save in the background come to its end."""
        if self._pending is not None:
            self._complete()

    def _newest(self) -> str:
        return f"step {self.saved_step}" if self.saved_step else "no step yet"

    def _save(self, step: int, *, background: bool) -> None:
        if self._pending is not None:
            self._complete()
        state = {
            "step": step,
            "layout": self._layout(),
            "versions": {
                "prime_megatron": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
                "megatron-core": version("megatron-core"),
            },
            "config": self.config.model_dump(mode="json"),
            "contents": self._contents,
            "parts": {name: part.state() for name, part in self.stateful.items()},
        }
        snapshot = Snapshot(step, state, dump_yaml(self.config), rng.capture())
        save = Save(self.root, snapshot, self.roles, self.whole, leave=self.leave, background=background)
        if background:
            save.write_in_background()
            self._pending = save
            return
        save.write()
        self._saved(step)

    def _complete(self) -> None:
        save, self._pending = self._pending, None
        assert save is not None
        save.finish()
        self._saved(save.step)

    def _saved(self, step: int) -> None:
        self.saved_step = step
        self.log.message(f"step {step} is saved in {step_folder(self.root, step)}")
        if dist.get_rank() == 0:
            limits = self.config.checkpoint
            prune(self.root, limits.keep_last, limits.keep_every, self._broken)

    def _load(self, found: FoundCheckpoint, path: Path) -> int:
        state = read_state(path)
        held = state.get("contents")  # checkpoints of earlier versions have none
        with _told_as_input(f"{path / STATE_FILE}: config is not what a run saves"):
            check_same_run(state["config"], self.config, held, self._contents)
        for role in self.roles:
            with self.whole(role):
                load_role(role, path / role.name)
        for name, part in self.stateful.items():
            with _told_as_input(f"{path / STATE_FILE}: {name} is not what a run saves"):
                part.restore(state["parts"][name])
        step = int(state["step"])
        self.log.message(f"resumed after step {step} from {path}")
        if state["layout"] == self._layout():
            with _told_as_input(f"{path / RNG_FILE}: holds no random states of this run"):
                _restore_rng(path / RNG_FILE)
        else:
            self.log.message(
                f"the layout was {state['layout']} and is {self._layout()}: random states begin anew "
                "(sampling has none, it is counted)"
            )
        self.saved_step, self._broken = step, found.broken
        return step

    def _layout(self) -> dict[str, Any]:
        parallel = self.config.parallel
        names = ("tensor", "pipeline", "virtual_pipeline", "context", "expert", "expert_tensor")
        return {"world": dist.get_world_size()} | {name: getattr(parallel, name) for name in names}


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint, read once for all ranks. Collective over the world.

    Raises:
        InputError: it is not JSON, or lacks what every run saves.
    """
    state: dict[str, Any] = {}

    def read() -> None:
        state.update(read_json(path / STATE_FILE, MAX_STATE_BYTES))
        wanted: dict[str, type] = {"step": int, "layout": dict, "config": dict, "parts": dict}
        for key, kind in wanted.items():
            if type(state.get(key)) is not kind:
                raise InputError(f"{path / STATE_FILE}: {key} is not what a run saves; give another checkpoint")

    agree_on(read)
    return from_rank(state)


def _restore_rng(path: Path) -> None:
    prefix = f"{dist.get_rank()}."
    states = load_file(path)
    rng.restore({key.removeprefix(prefix): value for key, value in states.items() if key.startswith(prefix)})


@contextmanager
def _told_as_input(what: str) -> Iterator[None]:
    """What a part makes of a state that is not its own, on any rank, is a user's error on all. Collective."""
    problem = None
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RuntimeError, OSError) as error:
        problem = f"{what} ({next(iter(str(error).splitlines()), '')[:200] or type(error).__name__})"
    except SafetensorError as error:
        problem = f"{what} ({str(error).splitlines()[0][:200]})"
    problem = next((one for one in gather_all(problem) if one is not None), None)
    if problem is not None:
        raise InputError(f"{problem}; give another checkpoint")


def _damage(path: Path) -> str | None:
    """`manifest.damage` with the hashing shared by all ranks."""
    problem = from_rank(structural_damage(path) if dist.get_rank() == 0 else None)
    if problem is not None:
        return problem
    problems = gather_all(content_damage(path, dist.get_rank(), dist.get_world_size()))
    return next((problem for problem in problems if problem is not None), None)
