"""Answered blocks on disk: each appears whole or not at all, so that a killed request goes on where it was.

<folder>/
    request.json         what is asked, of whom and how: only the same request goes on
    block-000007.jsonl   the lines of one block (samples, rows), put there by a rename when all are there
    lock                 held by the process that works on it
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from prime_megatron.errors import InputError
from prime_megatron.generate.sample import GeneratedSample, format_sample, read_samples

_REQUEST = "request.json"
_LOCK = "lock"


class Blocks:
    """The blocks of one request. Made by `open_blocks`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, index: int) -> bool:
        """Whether the block is answered."""
        return self._path(index).exists()

    def commit(self, index: int, samples: Iterable[GeneratedSample]) -> None:
        """Keep a block's samples: on disk, then under its name."""
        self.commit_lines(index, (format_sample(sample).encode() for sample in samples))

    def commit_lines(self, index: int, lines: Iterable[bytes]) -> None:
        """Keep a block of lines of another kind."""
        with whole_file(self._path(index)) as file:
            for line in lines:
                file.write(line)

    def lines(self, index: int) -> Iterator[bytes]:
        """The lines of a block that is there."""
        with self._path(index).open("rb") as file:
            yield from file

    def read(self, index: int) -> list[GeneratedSample]:
        """The samples of an answered block."""
        return read_samples(self._path(index))

    def line_at(self, index: int, offset: int) -> bytes:
        """The line of a block that begins at a byte."""
        with self._path(index).open("rb") as file:
            file.seek(offset)
            return file.readline()

    def join(self, count: int, output: Path) -> None:
        """Write the blocks 0 .. count - 1 into one file, which appears whole."""
        with whole_file(output) as file:
            for index in range(count):
                file.write(self._path(index).read_bytes())

    def _path(self, index: int) -> Path:
        return self.folder / f"block-{index:06d}.jsonl"


@contextmanager
def open_blocks(folder: Path, request: Mapping[str, Any]) -> Iterator[Blocks]:
    """The blocks of a request, new or those of an earlier attempt, for this process alone.

    Args:
        folder: made where it is not there.
        request: JSON values that name everything an answer depends on.

    Raises:
        InputError: the folder holds another request's blocks (the first key that differs is named), another process
            works on it, or it is no folder of ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process works on it; wait for it, or name another output") from None
        _check_request(folder, json.loads(json.dumps(request)))
        for left in folder.glob(".*.tmp"):
            left.unlink()
        yield Blocks(folder)


def remove_blocks(folder: Path) -> None:
    """Forget what was answered."""
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at the path, and stays there through a crash, when the block ends well; else nothing does."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _check_request(folder: Path, request: dict[str, Any]) -> None:
    path = folder / _REQUEST
    if not path.exists():
        with whole_file(path) as file:
            file.write(json.dumps(request, indent=1, sort_keys=True).encode() + b"\n")
        return
    try:
        saved = json.loads(path.read_bytes())
    except ValueError:
        raise InputError(f"{path}: damaged; remove {folder} (--overwrite) to ask anew") from None
    for key in sorted(saved.keys() | request.keys()):
        if saved.get(key) != request.get(key):
            raise InputError(
                f"{folder}: holds answers to another request, its {key} is another; name another output, or give "
                "--overwrite to ask anew"
            )
