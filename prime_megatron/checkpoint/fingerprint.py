"""Whether a config continues the run that a checkpoint is of."""

from __future__ import annotations

from typing import Any

from prime_megatron.checkpoint.contents import Contents, changed_parts
from prime_megatron.errors import InputError

FREE = (
    "run.name", "run.output_dir", "run.max_nonfinite", "run.stall_timeout_s", "run.steps", "preset",
    "models.logprob_impl", "models.trust_remote_code", "verify.workers", "rollout.engine", "rollout.tensor",
    "rollout.expert", "rollout.data",
    "rollout.max_concurrent", "rollout.dtype", "rollout.bucket_bytes", "rollout.check_every", "rollout.logprob_alarm",
    "rollout.max_restarts", "rollout.generate_timeout_s", "rollout.record", "rollout.vllm", "rollout.sglang",
    "rollout.filter.max_rounds", "parallel", "packing", "eval", "data.eval", "log", "checkpoint", "launch",
)  # fmt: skip
"""Keys and sections that may differ: layout, engine, logging, launching, saving. run.steps has a rule of its own."""


FIXED = ("parallel.distributed_optimizer",)
"""Keys of free sections that may not differ: the optimizer's state is saved in another form."""


def check_same_run(
    saved: dict[str, Any], now: dict[str, Any], held: Contents | None = None, holds: Contents | None = None
) -> None:
    """Refuse a config, or models and data, that would change what the run means.

    A folder or a file may lie elsewhere where its content is the same; one whose content is not is refused wherever it
    lies.

    Args:
        saved: the checkpoint's config, as ``TrainConfig.model_dump(mode="json")``.
        now: the config to continue with.
        held: what the checkpoint says of the content of its models and data; None: nothing.
        holds: their content now.

    Raises:
        InputError: one line for every key that differs and may not.
    """
    held, holds = held or {}, holds or {}
    by_content = held.keys() & holds.keys()
    lines = [
        f"  {key}: {_show(before)} -> {_show(after)}"
        for key, before, after in differences(saved, now)
        if not _is_free(key) and key not in by_content
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


def differences(saved: Any, now: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, saved value, present value) of every leaf that differs; a key on one side only is None there."""
    if isinstance(saved, dict) and isinstance(now, dict):
        found = []
        for name in sorted(saved.keys() | now.keys()):
            inner = f"{key}.{name}" if key else name
            found += differences(saved.get(name), now.get(name), inner)
        return found
    return [] if saved == now else [(key, saved, now)]


def _is_free(key: str) -> bool:
    if key in FIXED:
        return False
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _steps(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """run.steps may change where no schedule ends with it."""
    before, after = saved["run"]["steps"], now["run"]["steps"]
    decaying = [
        role
        for role in ("policy", "prm", "critic")
        if saved["models"].get(role) and saved["models"][role]["optimizer"]["schedule"] != "constant"
    ]
    if before == after or not decaying:
        return []
    return [f"  run.steps: {before} -> {after} (the learning rate of {', '.join(decaying)} decays to the last step)"]


def _show(value: Any) -> str:
    return "(not set)" if value is None else repr(value)
