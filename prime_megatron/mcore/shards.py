"""What lies in a role's folder of a checkpoint, held against what a run writes there before anything else reads it."""

from __future__ import annotations

from pathlib import Path

from prime_megatron.errors import InputError
from prime_megatron.mcore.index import INDEX_FILE, read_index
from prime_megatron.strict_json import read_json

POSITION_FILE = "position.json"
"""Adam's step count and the schedule's position."""
BACKEND = ("torch_dist", 1)
BACKEND_FILE = "metadata.json"
_FILES = (INDEX_FILE, POSITION_FILE, BACKEND_FILE)


def check_shards(folder: Path) -> None:
    """Whether a role's folder holds what `ShardWrite` writes and nothing that would be unpickled.

    Raises:
        InputError: a file of another kind or form, an index with an entry that is no tensor.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a checkpoint of a run with this model")
    strange = [path.name for path in sorted(folder.iterdir()) if path.name not in _FILES and path.suffix != ".distcp"]
    if strange:
        raise InputError(f"{folder}: {strange[0]} is no file of a run's checkpoint; give another checkpoint")
    backend = read_json(folder / BACKEND_FILE)
    found = (backend.get("sharded_backend"), backend.get("sharded_backend_version"))
    if found != BACKEND:
        raise InputError(f"{folder / BACKEND_FILE}: names the form {found}, and a run writes {BACKEND}")
    read_position(folder)
    read_index(folder, tensors_only=True)


def read_position(folder: Path) -> dict[str, int]:
    """Adam's step count and the schedule's position. Raises InputError: the file says neither."""
    position = read_json(folder / POSITION_FILE)
    for key in ("adam_steps", "scheduler_steps"):
        if type(position.get(key)) is not int or not 0 <= position[key] < 2**63:
            raise InputError(f"{folder / POSITION_FILE}: {key} is not a number of steps; give another checkpoint")
    return position
