"""On the import path of a run under test: holds its first attempt at a chosen moment until the test lets it go on.

PRIME_TEST_MOMENT names the moment, PRIME_TEST_FOLDER the folder where "at-<moment>" is made and "go" is waited for.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

# Moment -> (module, class or "", function, the call at which it holds). Rank or node 0 holds, the others meet it there.
MOMENTS = {
    "rendezvous": ("prime_megatron.mcore.initialize", "", "_init_process_group", 1),
    "engine": ("prime_megatron.run.assemble", "", "build_engine", 1),
    "rollout": ("prime_megatron.rollout.collect", "Collector", "collect", 2),
    "update": ("prime_megatron.trainer", "PrimeTrainer", "update_policy", 2),
    "save": ("prime_megatron.checkpoint.save", "Save", "write", 2),
    "sft step": ("prime_megatron.sft", "SftTrainer", "step", 2),
    "export": ("prime_megatron.run.parts", "Parts", "save_models", 1),
}


def hold(moment: str) -> None:
    folder = Path(os.environ["PRIME_TEST_FOLDER"])
    (folder / f"at-{moment}").touch()
    deadline = time.monotonic() + 60.0
    while not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def held(function: Callable[..., Any], moment: str, call: int) -> Callable[..., Any]:
    calls: list[None] = []

    def first_hold(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == call:
            hold(moment)
        return function(*args, **kwargs)

    return first_hold


class Hook(importlib.abc.MetaPathFinder):
    """Changes one function of one module as it is imported."""

    def __init__(self, moment: str) -> None:
        self.moment = moment

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        module, owner, function, call = MOMENTS[self.moment]
        if name != module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(loaded: ModuleType) -> None:
            load(loaded)
            place = getattr(loaded, owner) if owner else loaded
            setattr(place, function, held(getattr(place, function), self.moment, call))

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


if "PRIME_TEST_MOMENT" in os.environ and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
    MOMENT = os.environ["PRIME_TEST_MOMENT"]
    if MOMENT == "start":
        # Of the launcher: it is not our program yet, and has no handlers.
        if (
            os.environ.get("SLURM_STEP_NUM_TASKS") == "2"
            and "RANK" not in os.environ
            and os.environ["SLURM_PROCID"] == "0"
        ):
            hold(MOMENT)
    elif os.environ.get("RANK") == "0":
        sys.meta_path.insert(0, Hook(MOMENT))
