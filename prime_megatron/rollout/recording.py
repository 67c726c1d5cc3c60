"""The groups of a step on disk: recorded with rollout.record, replayed with rollout.engine=replay."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.strict_json import parse_json
from prime_megatron.types import Group, Prompt, Sample

_START = b'{"step": '
"""Of every line."""


class Recorder:
    """Appends one JSON line a step: {"step": int, "groups": [...]}. Only the rank that is given a path writes."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path is not None else None
        if self._path is not None:
            check_record(path)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()

    def restore(self, step: int) -> None:
        """Drop what was recorded beyond the step; at a fresh start (step 0) everything."""
        if self._path is None:
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        self._path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")

    def write(self, step: int, groups: list[Group]) -> None:
        """Record the groups that make up a step's batch."""
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, "groups": [asdict(group) for group in groups]}) + "\n")


def check_record(path: str | None) -> None:
    """Whether a run may write its recording here: nothing is there, or an earlier recording, which it replaces.

    Raises:
        InputError: another file, a link, a folder, a pipe or a device.
    """
    if path is None or not os.path.lexists(path):
        return
    if os.path.islink(path) or not os.path.isfile(path):
        raise InputError(f"rollout.record: {path} is not a regular file; name another")
    with open(path, "rb") as file:
        start = file.read(len(_START))
    if start and start != _START:
        raise InputError(f"rollout.record: {path} is a file that no run recorded; name another")


def read_recording(path: str) -> dict[int, list[Group]]:
    """Groups by step.

    Raises:
        InputError: the file is missing or a line is not a recorded step.
    """
    try:
        with open(path, "rb") as file:
            return dict(_recorded(line, f"{path}:{number}") for number, line in enumerate(file, 1))
    except OSError as error:
        raise InputError(f"{path}: no recording ({error.strerror}); make one with rollout.record") from None


def _recorded(line: bytes, where: str) -> tuple[int, list[Group]]:
    try:
        row = parse_json(line)
        return int(row["step"]), [group_from_dict(group) for group in row["groups"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where}: not a recorded step ({str(error)[:200]}); record it again") from None


def group_from_dict(row: dict[str, Any]) -> Group:
    """Inverse of dataclasses.asdict for a Group."""
    tuples = {key: tuple(row["prompt"].get(key, ())) for key in ("token_ids", "other_truths", "told_ids")}
    prompt = Prompt(**row["prompt"] | tuples)
    samples = tuple(
        Sample(**{**sample, "token_ids": tuple(sample["token_ids"]), "logprobs": tuple(sample["logprobs"])})
        for sample in row["samples"]
    )
    return Group(prompt, samples)
