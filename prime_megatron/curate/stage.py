"""A stage: rows in, decisions in blocks that are kept whole, three files out.

OUT                  the rows that stay, JSON lines or parquet
OUT.dropped.jsonl    the others, with `dropped`: stage, rule, why
OUT.report.json      counts and examples by rule: rows in = kept + dropped
OUT.blocks/          what is decided so far; the same command goes on from it, and the files have the same bytes

OUT is written last: where it is, all is there.
"""

from __future__ import annotations

import glob
import json
import os
import resource
import shutil
import sys
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from prime_megatron.curate.decision import Decision, Tally, dropped_line, from_line
from prime_megatron.curate.row import CuratedRow, read_row
from prime_megatron.curate.tables import OUTPUTS, rows_of, write_parquet
from prime_megatron.curate.words import hash64
from prime_megatron.errors import InputError
from prime_megatron.generate.blocks import Blocks, remove_blocks, whole_file
from prime_megatron.generate.tables import Row, file_digest

Item = TypeVar("Item")
Made = TypeVar("Made", covariant=True)
_KEPT = "kept"
_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Files:
    """Where a stage writes."""

    output: Path

    @property
    def dropped(self) -> Path:
        """The rows that are left out."""
        return self.output.with_name(f"{self.output.name}.dropped.jsonl")

    @property
    def report(self) -> Path:
        """Counts and examples."""
        return self.output.with_name(f"{self.output.name}.report.json")

    @property
    def blocks(self) -> Path:
        """What is decided so far."""
        return self.output.with_name(f"{self.output.name}.blocks")

    def check(self, inputs: Sequence[str], *, overwrite: bool) -> None:
        """Whether the stage may write here.

        Raises:
            InputError: another kind of file, no folder for it, or something is there already.
        """
        if not self.output.name.endswith(OUTPUTS):
            raise InputError(f"--output {self.output}: use one of the endings {', '.join(OUTPUTS)}")
        if not self.output.parent.is_dir():
            raise InputError(f"--output {self.output}: there is no folder {self.output.parent}")
        whole = (self.output, self.dropped, self.report)
        for path in whole:
            if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
                raise InputError(f"{path}: exists and is no regular file; name another output")
        if self.output.exists() and not overwrite:
            raise InputError(f"--output {self.output}: exists; give --overwrite to replace it")
        beside = next((path for path in whole[1:] if path.exists()), None)
        if beside is not None and not overwrite and not self.blocks.is_dir():
            raise InputError(f"{beside}: exists, and no unfinished stage wrote it; give --overwrite to replace it")
        own = {path.resolve() for path in whole}
        read = next((file for file in inputs if Path(file).resolve() in own), None)
        if read is not None:
            raise InputError(f"--output {self.output}: the stage would write over {read}, which it reads")

    def forget_parts(self) -> None:
        """Delete what an attempt that was killed while it wrote the three files left beside them."""
        for path in (self.output, self.dropped, self.report):
            for part in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                part.unlink()

    def clear(self) -> None:
        """Forget what an earlier stage wrote here, finished or not."""
        remove_blocks(self.blocks)
        for path in (self.output, self.dropped, self.report):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Source:
    """The files that a stage reads, looked through once before anything is written."""

    files: tuple[str, ...]
    digests: tuple[str, ...]
    rows: int


class Reader(Protocol[Made]):
    """Makes what a stage decides about of a row of its input."""

    def __call__(self, row: Row, origin: str, place: int) -> Made:
        """``place``: of the row among all, from 0. Raises InputError."""
        ...


class RowReader:
    """See `Reader`: rows that an earlier stage wrote; while the input is looked through, their ids are noted."""

    def __init__(self) -> None:
        self._ids = array("Q")
        self.abilities: set[str] = set()
        """Those of the rows that have a ground truth."""

    def __call__(self, row: Row, origin: str, place: int) -> CuratedRow:
        """See `Reader.__call__`."""
        read = read_row(row, origin)
        if place == len(self._ids):
            self._ids.append(hash64(read.id))
            if read.ground_truth is not None:
                self.abilities.add(read.ability)
        return read

    def check_ids(self, source: Source) -> None:
        """Raises InputError where two rows have one id, naming both."""
        values, counts = np.unique(np.frombuffer(self._ids, dtype=np.uint64), return_counts=True)
        twice = set(values[counts > 1].tolist())
        first: dict[str, str] = {}
        for origin, row in rows_of(source.files) if twice else ():
            if hash64(row["id"]) in twice and first.setdefault(row["id"], origin) != origin:
                raise InputError(f"{origin}: id {row['id']!r} is that of {first[row['id']]}; give each source a --name")


class Teller:
    """Says on stderr how far a stage is, every few seconds."""

    def __init__(self, name: str, every_s: float = 2.0) -> None:
        self._name, self._every_s = name, every_s
        self._start_s = self._told_s = time.monotonic()

    def __call__(self, done: int, total: int | None, what: str = "rows") -> None:
        """``total`` None: not known yet."""
        now = time.monotonic()
        if now - self._told_s < self._every_s and done != total:
            return
        self._told_s = now
        of = "" if total is None else f"/{total}"
        rate = done / max(now - self._start_s, 1e-9)
        print(f"{self._name}: {done}{of} {what}, {rate:.0f}/s", file=sys.stderr, flush=True)


def survey(files: Sequence[str], read: Reader[Any], name: str) -> Source:
    """Read every row once: all that is wrong with the input is told before anything is written.

    Raises:
        InputError: a file or row that cannot be used.
    """
    tell, rows = Teller(f"{name}: looking through"), 0
    for origin, row in rows_of(files):
        read(row, origin, rows)
        rows += 1
        if rows % 1000 == 0:
            tell(rows, None)
    source = Source(tuple(files), tuple(file_digest(Path(file)) for file in files), rows)
    if isinstance(read, RowReader):
        read.check_ids(source)
    return source


def batches(source: Source, read: Reader[Item], size: int) -> Iterator[list[Item]]:
    """The rows again, ``size`` at a time."""
    batch: list[Item] = []
    for place, (origin, row) in enumerate(rows_of(source.files)):
        batch.append(read(row, origin, place))
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def fill_blocks(
    blocks: Blocks,
    source: Source,
    read: Reader[Item],
    size: int,
    make: Callable[[list[Item]], Iterable[bytes]],
    tell: Callable[[int, int], None],
) -> None:
    """Make the lines of every block of ``size`` rows that is not there yet."""
    if all(blocks.has(index) for index in range(num_blocks(source, size))):
        return
    for index, batch in enumerate(batches(source, read, size)):
        if not blocks.has(index):
            blocks.commit_lines(index, make(batch))
        tell(min((index + 1) * size, source.rows), source.rows)


def num_blocks(source: Source, size: int) -> int:
    """Blocks of ``size`` rows."""
    return -(-source.rows // size)


def decisions_of(blocks: Blocks, count: int) -> Iterator[Decision]:
    """All decisions, in the order of the rows."""
    for index in range(count):
        for line in blocks.lines(index):
            yield from_line(line)


def finish(
    files: Files,
    stage: str,
    head: dict[str, Any],
    decisions: Iterable[Decision],
    more: Callable[[], dict[str, Any]] = dict,
    told: Callable[[Decision], None] = lambda decision: None,
) -> dict[str, Any]:
    """Write the three files; returns the report.

    Args:
        head: what the report begins with: inputs, settings.
        decisions: about all rows, in order.
        more: what the report ends with, asked after every decision was told.
        told: hears of every decision once, in order.
    """
    tally, kept = Tally(), files.blocks / _KEPT
    files.forget_parts()
    # OUT takes its name when all else is there; rows that it cannot hold leave nothing behind.
    with whole_file(files.output) as out, whole_file(files.dropped) as dropped:
        lines = out if files.output.suffix == ".jsonl" else kept.open("wb")
        for decision in decisions:
            tally.add(decision)
            told(decision)
            if decision.rule:
                dropped.write(dropped_line(decision, stage))
            else:
                lines.write(decision.line)
        if lines is not out:
            lines.close()
            write_parquet(out, files.output.name, kept)
        report = {"stage": stage, **head, **tally.report(), **more()}
        with whole_file(files.report) as text:
            text.write(json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")
    shutil.rmtree(files.blocks, ignore_errors=True)
    return report


def peak_memory_mib() -> float:
    """The most memory that this process held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEBIBYTE
