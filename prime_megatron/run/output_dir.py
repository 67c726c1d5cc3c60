"""The folder that a run writes to: never over someone's files, never over another run by accident."""

from __future__ import annotations

import shutil
from pathlib import Path

from prime_megatron.errors import InputError

MARKER = ".prime-megatron-run"
"""Lies in every folder that a run made; without it --overwrite deletes nothing."""


def check_output_dir(path: Path, *, resume: str | None, overwrite: bool) -> None:
    """Whether a run may write here; changes nothing.

    Args:
        path: run.output_dir.
        resume: "auto", a checkpoint folder, or None.
        overwrite: the user allows its content to be deleted.

    Raises:
        InputError: resume and overwrite together; not a folder; not empty and neither option given; overwrite of a
            folder that no run made; a checkpoint that is not there.
    """
    if resume is not None and overwrite:
        raise InputError("--resume and --overwrite exclude each other: one continues the run, the other deletes it")
    if resume is not None and resume != "auto" and not Path(resume).is_dir():
        raise InputError(f"--resume {resume}: no such folder; give a checkpoint folder, or --resume auto")
    if path.exists() and not path.is_dir():
        raise InputError(f"run.output_dir: {path} is a file; give a folder")
    if not path.is_dir() or not any(path.iterdir()):
        return
    if resume is None and not overwrite:
        raise InputError(
            f"run.output_dir: {path} is not empty; continue with --resume auto, delete its content with --overwrite, "
            "or choose another folder"
        )
    if overwrite and not (path / MARKER).exists():
        raise InputError(
            f"run.output_dir: --overwrite deletes only what a run made, and {path} was not made by one "
            f"(it has no {MARKER}); empty it yourself or choose another folder"
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


def prepare_output_dir(path: Path, *, resume: str | None, overwrite: bool) -> None:
    """Check, empty (overwrite) and make the folder. One process of the run calls this, the others wait for it.

    Raises:
        InputError: as `check_output_dir`, or the folder cannot be made.
    """
    check_output_dir(path, resume=resume, overwrite=overwrite)
    try:
        if overwrite and path.is_dir():
            for entry in path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.name != MARKER:
                    entry.unlink()
        path.mkdir(parents=True, exist_ok=True)
        (path / MARKER).touch()
    except OSError as error:
        raise InputError(f"run.output_dir: cannot write to {path} ({error.strerror})") from None
