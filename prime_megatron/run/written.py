"""What a run writes to its output folder, by name: what --overwrite deletes, and how a folder is known as a run's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from prime_megatron.checkpoint.layout import CHECKPOINTS, leftovers, step_of
from prime_megatron.run.lock import LOCK_FILE

_FILES = re.compile(
    r"(metrics|memory|samples|events)\.jsonl|(summary|status)\.json(\.tmp)?|(wandb|mlflow_run)_id\.txt|report\.html"
    r"|engine-\d+\.log|\.prime-megatron-done"
)
_FOLDERS = re.compile(
    r"policy|prm|critic|model|wandb|mlflow|trace|stalls|prime-engine-\w+|\.(policy|prm|critic|model)\.partial"
)
"""Deleted with all that is in them."""
_PARTS = {
    "tensorboard": re.compile(r"events\.out\.tfevents\..+"),
    "nonfinite": re.compile(r"step-\d+-\w+-rank-\d+\.safetensors"),
    "logs": re.compile(r"job-.+|attempts\.jsonl"),
}
"""Folders of which only so much is a run's; the user may keep files beside it."""


def is_written(name: str) -> bool:
    """Whether an entry of an output folder has a name that a run gives."""
    return bool(_FILES.fullmatch(name) or _FOLDERS.fullmatch(name)) or name in (*_PARTS, CHECKPOINTS)


def foreign(path: Path) -> str | None:
    """The first entry of a folder that is no run's; None: there is nothing, or a run wrote all that is there.

    The names alone do not make a run (a model's folder may be called "policy"): a step's checkpoint does, or that there
    is nothing but the logs of a job that is about to begin.
    """
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(LOCK_FILE))
    strange = [name for name in names if not is_written(name)]
    if strange or not names:
        return strange[0] if strange else None
    steps = path / CHECKPOINTS
    is_run = steps.is_dir() and any(step_of(entry) is not None for entry in steps.iterdir())
    return None if is_run or names == ["logs"] else names[0]


def delete_written(path: Path) -> None:
    """Delete what a run wrote to a folder, and nothing else; links go, not what they lead to.

    Raises:
        OSError: an entry cannot be deleted.
    """
    for entry in list(path.iterdir()):
        if entry.is_symlink() or not entry.is_dir():
            if is_written(entry.name):
                entry.unlink()
        elif entry.name == CHECKPOINTS:
            _delete_parts(entry, [*(one for one in entry.iterdir() if step_of(one) is not None), *leftovers(entry)])
        elif entry.name in _PARTS:
            _delete_parts(entry, [one for one in entry.iterdir() if _PARTS[entry.name].fullmatch(one.name)])
        elif _FOLDERS.fullmatch(entry.name):
            shutil.rmtree(entry)


def _delete_parts(folder: Path, parts: list[Path]) -> None:
    for part in parts:
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        else:
            part.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
