"""The groups of a step on disk: recorded with rollout.record, replayed with rollout.engine=replay."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prime_megatron.errors import InputError
from prime_megatron.types import Group, Prompt, Sample


class Recorder:
    """Appends one JSON line a step: {"step": int, "groups": [...]}. Only the rank that is given a path writes."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path is not None else None
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()

    def restore(self, step: int) -> None:
        """Drop what was recorded beyond the step; at a fresh start (step 0) everything."""
        if self._path is None:
            return
        lines = self._path.read_text().splitlines(keepends=True)
        self._path.write_text("".join(line for line in lines if json.loads(line)["step"] <= step))

    def write(self, step: int, groups: list[Group]) -> None:
        """Record the groups that make up a step's batch."""
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, "groups": [asdict(group) for group in groups]}) + "\n")


def read_recording(path: str) -> dict[int, list[Group]]:
    """Groups by step.

    Raises:
        InputError: the file is missing or a line is not a recorded step.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise InputError(f"{path}: no recording ({error.strerror}); make one with rollout.record") from None
    steps = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            steps[int(row["step"])] = [group_from_dict(group) for group in row["groups"]]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number}: not a recorded step ({error}); record it again") from None
    return steps


def group_from_dict(row: dict[str, Any]) -> Group:
    """Inverse of dataclasses.asdict for a Group."""
    tuples = {key: tuple(row["prompt"].get(key, ())) for key in ("token_ids", "other_truths")}
    prompt = Prompt(**row["prompt"] | tuples)
    samples = tuple(
        Sample(**{**sample, "token_ids": tuple(sample["token_ids"]), "logprobs": tuple(sample["logprobs"])})
        for sample in row["samples"]
    )
    return Group(prompt, samples)
