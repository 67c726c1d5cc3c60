"""The folder that a run writes to: never over someone's files, never over another run by accident."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prime_megatron.config import StageConfig, TrainConfig
from prime_megatron.errors import InputError
from prime_megatron.run.lock import LOCK_FILE, check_owner, owned
from prime_megatron.run.written import delete_written, foreign, is_written, only_starts
from prime_megatron.strict_json import parse_json, read_bytes

MARKER = ".prime-megatron-run"
"""Lies in every folder that a run made; without it --overwrite deletes nothing."""

DONE_FILE = ".prime-megatron-done"
"""How a run came to its end: its steps, and whether its models were exported."""
MAX_DONE_BYTES = 4096


def mark_done(config: TrainConfig | StageConfig, steps: int) -> None:
    """Note that the run has done all its steps; an attempt that resumes it then has nothing to do."""
    done = {"steps": steps, "exported": config.checkpoint.export_final}
    (Path(config.run.output_dir) / DONE_FILE).write_text(json.dumps(done) + "\n", encoding="utf-8")


def is_done(path: Path, *, steps: int, export: bool) -> bool:
    """Whether a run in this folder has done so many steps, and exported its models where that is asked for.

    steps: run.steps; 0, where epochs say how long the run is: as many as they took.
    """
    try:
        done = parse_json(read_bytes(path / DONE_FILE, MAX_DONE_BYTES))
        return bool(done["steps"] >= steps and (done["exported"] or not export))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def check_output_dir(path: Path, *, resume: str | None, overwrite: bool) -> None:
    """Whether a run may write here; changes nothing.

    Args:
        path: run.output_dir.
        resume: "auto", a checkpoint folder, or None.
        overwrite: the user allows its content to be deleted.

    Raises:
        InputError: resume and overwrite together; not a folder; not empty and neither option given; overwrite of a
            folder that no run made; resume in a folder with files that no run wrote; a checkpoint that is not there;
            another run writes to the folder.
    """
    if resume is not None and overwrite:
        raise InputError("--resume and --overwrite exclude each other: one continues the run, the other deletes it")
    if resume is not None and resume != "auto" and not Path(resume).is_dir():
        raise InputError(f"--resume {resume}: no such folder; give a checkpoint folder, or --resume auto")
    if path.exists() and not path.is_dir():
        raise InputError(f"run.output_dir: {path} is a file; give a folder")
    if not path.is_dir():
        return
    check_owner(path)
    if all(entry.name.startswith(LOCK_FILE) for entry in path.iterdir()) or only_starts(path, MARKER):
        return
    if resume is None and not overwrite:
        raise InputError(
            f"run.output_dir: {path} is not empty; continue with --resume auto, delete its content with --overwrite, "
            "or choose another folder"
        )
    for entry in path.iterdir():
        if is_written(entry.name) and not (entry.is_file() or entry.is_dir() or entry.is_symlink()):
            raise InputError(f"run.output_dir: {entry} is a pipe or a device where a run writes; choose another folder")
    if (path / MARKER).exists():
        return
    if overwrite:
        raise InputError(
            f"run.output_dir: --overwrite deletes only what a run made, and {path} was not made by one "
            f"(it has no {MARKER}); empty it yourself or choose another folder"
        )
    if strange := foreign(path):
        raise InputError(
            f"run.output_dir: {path} was not made by a run (it has no {MARKER}) and holds {strange}; give --resume a "
            "run's folder, or choose an empty one"
        )


def check_inputs_outside(path: Path, inputs: dict[str, str]) -> None:
    """Refuse inputs (config key -> path) that lie in the output folder: --overwrite would delete them.

    Raises:
        InputError: naming the key.
    """
    folder = path.resolve()
    for key, name in inputs.items():
        if Path(name).resolve().is_relative_to(folder):
            raise InputError(
                f"{key}: {name} lies in run.output_dir {path}, where --overwrite would delete it; move one"
            )


@contextmanager
def own_output_dir(path: Path, *, resume: str | None, overwrite: bool) -> Iterator[None]:
    """Check, make, own and empty (overwrite) the folder; it is this run's within the block. For one process of the run.

    Raises:
        InputError: as `check_output_dir`, or the folder cannot be made.
    """
    check_output_dir(path, resume=resume, overwrite=overwrite)
    with owned(path):
        _prepare(path, overwrite=overwrite)
        yield


def _prepare(path: Path, *, overwrite: bool) -> None:
    try:
        if overwrite:
            delete_written(path)
        (path / MARKER).touch()
        (path / DONE_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"run.output_dir: cannot write to {path} ({error.strerror})") from None
