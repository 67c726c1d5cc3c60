"""Files in and out: rows one by one with their origin, in bounded memory; JSON lines and parquet out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from prime_megatron.data.files import KINDS, data_files, iterate
from prime_megatron.errors import InputError
from prime_megatron.generate.tables import Row, read_table

WHOLE = (".json", ".json.gz")
"""Kinds that are read whole: a JSON list or pandas' columns, as some sources are published."""
OUTPUTS = (".jsonl", ".parquet")
_PARQUET_ROWS = 4096


def input_files(paths: Sequence[str]) -> list[str]:
    """The files that words of the command line name: a file, a folder of data files, a pattern. Raises InputError."""
    files = data_files(paths)
    for file in files:
        if not Path(file).is_file():
            raise InputError(f"{file}: no such data file")
        if not file.endswith((*KINDS, *WHOLE)):
            raise InputError(f"{file}: unknown kind of data file; use {', '.join((*KINDS, *WHOLE))}")
    twice = next((file for place, file in enumerate(files) if file in files[:place]), None)
    if twice is not None:
        raise InputError(f"{twice}: named twice; name a file once")
    return files


def rows_of(files: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """("file, row n", row) of every row, file after file, n from 1.

    Raises:
        InputError: a file without rows, a damaged file or row; one line with the file, and the row as far as rows can
            be told.
    """
    for file in files:
        empty = True
        for origin, row in _rows(file):
            empty = False
            yield origin, row
        if empty:
            raise InputError(f"{file}: the data file is empty; it needs at least one row")


def _rows(file: str) -> Iterator[tuple[str, Row]]:
    if file.endswith(WHOLE):
        yield from read_table(Path(file))
        return
    last = 0
    try:
        for number, row in iterate(file):
            last = number
            yield f"{file}, row {number}", row
    except InputError as error:
        message = str(error)
        if message.startswith(f"{file}: ") and last:
            message = f"{file}, after row {last}: {message.removeprefix(f'{file}: ')}"
        raise InputError(message) from None


def write_parquet(file: BinaryIO, name: str, lines: Path) -> None:
    """Rows of JSON lines as parquet, in two passes: their common type, then the rows.

    Raises:
        InputError: there is none, or no rows; ``name``: the output's.
    """
    import pyarrow as pa  # only parquet pays for its import
    import pyarrow.parquet as pq

    try:
        tables = [pa.Table.from_pylist(batch).schema for batch in _batches(lines)]
        if not tables:
            raise InputError(f"{name}: no row is left, and parquet without rows has no columns; write .jsonl")
        schema = pa.unify_schemas(tables, promote_options="permissive")
        with pq.ParquetWriter(file, schema) as writer:
            for batch in _batches(lines):
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    except pa.ArrowException as error:
        raise InputError(
            f"{name}: the rows have no common type for parquet ({str(error).splitlines()[0]}); write .jsonl"
        ) from None


def _batches(lines: Path) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    with lines.open("rb") as file:
        for line in file:
            batch.append(_storable(json.loads(line)))
            if len(batch) == _PARQUET_ROWS:
                yield batch
                batch = []
    if batch:
        yield batch


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """Parquet has no empty objects."""
    return {key: None if value == {} else value for key, value in row.items()}
