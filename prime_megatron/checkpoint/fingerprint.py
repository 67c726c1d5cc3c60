"""Whether a config continues the run that a checkpoint is of.

The config's sections say at each field what a resumed run may change (`config.base.Free`). Of the other keys the
values are compared. A key that only one side knows counts as at its default on the other side:

- the checkpoint lacks it (a key that is newer than the checkpoint): the present default stands for the saved value, so
  that a new key does not break an old checkpoint as long as it is not set;
- the present config lacks it (a key that is gone): it is not compared, for nothing reads it any more.

A default that has changed since the checkpoint is a difference like any other: the checkpoint holds the old value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prime_megatron.checkpoint.contents import Contents, changed_parts
from prime_megatron.config import StageConfig, TrainConfig
from prime_megatron.config.base import OnResume
from prime_megatron.config.keys import Key, keys_of
from prime_megatron.errors import InputError


def check_same_run(
    saved: dict[str, Any],
    config: TrainConfig | StageConfig,
    held: Contents | None = None,
    holds: Contents | None = None,
) -> None:
    """Refuse a config, or models and data, that would change what the run computes.

    A folder or a file may lie elsewhere where its content is the same; one whose content is not is refused wherever it
    lies.

    Args:
        saved: the checkpoint's config, as its ``model_dump(mode="json")`` gave it then.
        config: the config to continue with.
        held: what the checkpoint says of the content of its models and data; None: nothing.
        holds: their content now.

    Raises:
        InputError: one line for every key that differs and may not.
    """
    held, holds = held or {}, holds or {}
    by_content = held.keys() & holds.keys()
    now = config.model_dump(mode="json")
    lines = [
        f"  {key.name}: {_show(before)} -> {_show(after)}"
        for key, before, after in differences(type(config), saved, now)
        if key.on_resume is OnResume.fixed and key.name not in by_content
    ]
    for key in sorted(by_content):
        if changed := changed_parts(held[key], holds[key]):
            lines.append(f"  {key}: the content is not what it was ({', '.join(changed)})")
    lines += _steps(saved, now)
    if lines:
        raise InputError(
            "--resume: the config changes the meaning of the run (saved -> now); set these keys back, or start a new "
            "run in another output folder\n" + "\n".join(lines)
        )


def differences(
    section: type[TrainConfig | StageConfig], saved: dict[str, Any], now: dict[str, Any]
) -> Iterator[tuple[Key, Any, Any]]:
    """(key, saved value, present value) of every key of the config class that differs."""
    for key in keys_of(section):
        before, after = _at(saved, key), _at(now, key)
        if before != after:
            yield key, before, after


def _at(config: Any, key: Key) -> Any:
    """The value of a key; its default where the config does not have it."""
    for part in key.name.split("."):
        if not isinstance(config, dict) or part not in config:
            return key.default
        config = config[part]
    return config


def _steps(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """run.steps may change where no learning rate depends on it; a schedule that differs is refused already."""
    before, after = saved["run"]["steps"], now["run"]["steps"]
    if "models" in now:
        optimizers = {role: now["models"][role]["optimizer"] for role in ("policy", "prm", "critic")}
    else:  # a run on rows has one
        optimizers = {"model": now["optimizer"]}
    bound = {
        role: "decays to the last step" if optimizer["schedule"] != "constant" else "warms up for a part of the steps"
        for role, optimizer in optimizers.items()
        if optimizer["schedule"] != "constant" or optimizer["warmup_ratio"]
    }
    if before == after:
        return []
    return [f"  run.steps: {before} -> {after} (the learning rate of {role} {why})" for role, why in bound.items()]


def _show(value: Any) -> str:
    return "(not set)" if value is None else repr(value)
